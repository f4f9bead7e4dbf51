"""What is checked at the door: the numbers and names of settings, and the files that people name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_GUIDANCE = 100.0


def at_least(least: int, config: Any, *names: str) -> None:
    """Raises ValueError unless the fields `names` of a config, numbers or tuples of them, are `least` or more."""
    for name in names:
        value = getattr(config, name)
        if value == ():
            raise ValueError(f"{name}=[]: give at least one, of {least} or more")
        if min(value if isinstance(value, tuple) else (value,)) < least:
            raise ValueError(f"{name}={value}: give {least} or more")


def above(bound: float, config: Any, *names: str) -> None:
    """As at_least, unless the fields are more than `bound`."""
    for name in names:
        if not (value := getattr(config, name)) > bound:
            raise ValueError(f"{name}={value}: give more than {bound}")


def decays(config: Any, *names: str) -> None:
    """As at_least, unless the fields are from 0 to under 1: shares that an average keeps of what it was."""
    for name in names:
        value = getattr(config, name)
        if not all(0 <= number < 1 for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name}={value}: give 0 or more, under 1")


def shares(config: Any, *names: str) -> None:
    """As at_least, unless the fields are from 0 to 1."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ValueError(f"{name}={value} is no share: give a number from 0 to 1")


def known_name(name: str) -> None:
    """Raises ValueError unless a run of this name lies below runs/."""
    path = Path(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"name={name}: the run lies below runs/, give a plain name")


def known_order(order: int, group: str = "") -> None:
    """Of the teacher's steps (OmniAvatar/sampling.py). Raises ValueError for one that is not there."""
    if order not in (1, 2):
        raise ValueError(f"{group}order {order}: 1 for Euler's steps, 2 for steps of second order")


def known_levels(name: str, levels: tuple[float, float]) -> None:
    """Raises ValueError unless a setting is a lowest and a highest noise level, from 0, clean, to 1, noise."""
    low, high = levels
    if not 0 <= low < high <= 1:
        raise ValueError(f"{name}={list(levels)}: give the lower noise level first, both from 0 to 1")


def known_part(part: int, parts: int) -> None:
    """Raises ValueError unless there is a `part`, counted from 0, of so many parts."""
    if not 0 <= part < max(1, parts) or parts < 1:
        raise ValueError(f"part={part} of parts={parts}: parts count from 0, and there is at least 1")


def made_folder(key: str, folder: str | Path, written: bool = True) -> Path:
    """The folder that setting `key` names, made where it is not there yet; unless `written`, it need only be read.

    Raises ValueError if it cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{key}={folder} cannot be made ({error.strerror}): name another folder") from error
    if written and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={folder} cannot be written to: name another folder, or mend its rights")
    return folder


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without the mark that some editors put first (BOM). Raises ValueError, naming the
    line, for another encoding."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8, save the file as UTF-8 text") from error


def read_json(path: str | Path, remedy: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file, which holds at least `keys`. Raises ValueError, with the remedy, for another."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no mapping but a {type(found).__name__}: {remedy}")
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {remedy}")
    return found
