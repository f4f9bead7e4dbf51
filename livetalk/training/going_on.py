"""A run that goes on is compared with what it was: the settings and networks that its checkpoint was saved with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livetalk.training import distributed

log = logging.getLogger(__name__)
Settings = Mapping[str, Any]
"""Values by dotted name, such as train.lr."""

INDIFFERENT = {
    *("name", "device", "workers", "part", "parts", "chunk", "shard", "size", "score_size", "shown", "features"),
    *("tracking", "project", "pairs_config", "ode_config"),
    *(f"train.{name}" for name in ("until", "seconds", "log_every", "save_every", "keep")),
    *(f"train.{name}" for name in ("compile", "graph", "attention", "recompute", "accumulate")),
    *(f"train.{name}" for name in ("shard", "at_once", "offload", "regather", "no_sync", "sequence")),
}
"""What a run looks at, how it is spread and how long a slice is: none of it is part of what is learnt."""
GROUPS = ("health.",)
"""Likewise."""

FIXED = ("run", "source", "lora.rank", "lora.alpha", "flow.causal", "causal.timesteps", "geometry.block")
"""With another of these, what was learnt so far is of no use: another network, another task."""
FIXED_GROUPS = ("dit.", "text.", "vae.", "small_decoder.", "judges.")


def compare(folder: Path, step: int, before: Settings, now: Settings) -> None:
    """Says, in a warning for each, which settings are not those of the run in `folder` at `step`.

    Raises ValueError where going on would be wrong. What only one of them knows is left out.
    """
    now = json.loads(json.dumps(dict(now)))  # as they were stored
    free = {*INDIFFERENT, *(("train.steps",) if now.get("train.seconds") else ())}  # measured, not given
    changed = [
        name
        for name, value in now.items()
        if name in before and before[name] != value and name not in free and not name.startswith(GROUPS)
    ]
    if wrong := [name for name in changed if name in FIXED or name.startswith(FIXED_GROUPS)]:
        was, given = (_shown(wrong, settings) for settings in (before, now))
        raise ValueError(f"{folder} was begun with {was}, not {given}: go on with that, or give another name=")
    for name in changed if distributed.rank() == 0 else ():
        log.warning(
            "%s: %s=%s from here on, it was %s until step %d", folder, name, _text(now[name]), _text(before[name]), step
        )


def require_same(where: Path, theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the tensors of a checkpoint have the names and shapes of those that a run trains."""
    differing = sorted(name for name in {*theirs, *ours} if (name in theirs, name in ours) != (True, True))
    differing += sorted(name for name in theirs if name in ours and tuple(theirs[name]) != tuple(ours[name]))
    if differing:
        more = ", ..." if len(differing) > 4 else ""
        raise ValueError(
            f"{where} is of other networks, they differ in {', '.join(differing[:4])}{more}: give the sizes that the "
            "run was begun with, or another name="
        )


def _shown(names: list[str], settings: Settings) -> str:
    return ", ".join(f"{name}={_text(settings[name])}" for name in names)


def _text(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
