"""A YAML file plus `key=value` overrides become a frozen dataclass. The only file that knows OmegaConf.

Every key must exist in the dataclass, and a misspelt one is refused with the nearest known name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints


def read(
    path: str | Path | None,
    overrides: list[str],
    schemas: dict[str, type],
    default: str,
    aliases: dict[str, str],
) -> Any:
    """The dataclass of `schemas` that the key `run` of a file names, or `default`, with the file's values.

    path: YAML file, or None for the defaults. overrides: `key=value` with dots for nested keys. aliases: other names of
    keys. Values are literal: nothing is interpolated. Raises ValueError, in one line with a remedy, for anything that
    is not a valid config.
    """
    from omegaconf import OmegaConf

    data = _read_yaml(path) if path is not None else {}
    name = data.get("run", default)
    if not isinstance(name, str) or name not in schemas:
        raise ValueError(f"{path or 'config'}: run: {name!r} is not known{_hint(str(name), schemas)}")
    schema, where = schemas[name], f"{path}: "
    aliases = {alias: key for alias, key in aliases.items() if key in get_type_hints(schema)}
    merged = OmegaConf.structured(schema)
    for key, value in data.items():
        known = aliases.get(key, key)
        if known != key and known in data:
            raise ValueError(f"{where}{key!r} and {known!r} are the same key: keep one")
        merged = _refusing(OmegaConf.merge, merged, _checked({known: value}, schema, where), where=where)
    for item in overrides:
        change = _checked(_override(item, schema, aliases), schema, "")
        merged = _refusing(OmegaConf.merge, merged, change, where="")
    return _refusing(OmegaConf.to_object, merged, where="")


def _refusing(act: Callable, *arguments: Any, where: str) -> Any:
    """act(*arguments), with what OmegaConf refuses as a ValueError of one line that names the key."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return act(*arguments)
    except OmegaConfBaseException as error:
        # Of the elements of a list neither key nor value is known here, and the message is an unfilled template.
        change = arguments[-1]
        reason = str(error).splitlines()[0].replace("'$VALUE' of type '$VALUE_TYPE'", f"in {change}")
        raise ValueError(f"{where}{error.full_key or ', '.join(map(str, change))}: {reason}") from error


def _read_yaml(path: str | Path) -> dict:
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config {path} is not a file: name one of configs/*.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"config {path} is empty or not a mapping: it needs at least `run: NAME`")
    return data


def _override(item: str, schema: type, aliases: dict[str, str]) -> dict:
    """`a.b=value` as the nested mapping it stands for. Texts stay as typed: YAML would turn `off` into False."""
    import yaml

    key, equals, text = item.partition("=")
    key = aliases.get(key.strip(), key.strip())
    if not equals or not key:
        raise ValueError(f"argument {item!r} is not key=value: write for example seed=1")
    if key == "run":
        raise ValueError(f"argument {item!r}: the script or the config file says what to run")
    if _leaf_type(key, schema, aliases) is str:
        value: Any = text
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}={text!r} cannot be read: {str(error).splitlines()[0]}") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _checked(data: dict, schema: type, where: str) -> dict:
    """`data` with every key known to `schema`, every text a text, and nothing that OmegaConf would interpolate."""
    types = get_type_hints(schema)
    out = {}
    for key, value in data.items():
        if key not in types:
            raise ValueError(f"{where}unknown key {key!r}{_hint(str(key), types)}")
        if is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}{key}: {value!r} is not a mapping of {', '.join(get_type_hints(types[key]))}")
            out[key] = _checked(value, types[key], f"{where}{key}: ")
        elif types[key] is str and not isinstance(value, str):
            raise ValueError(f"{where}{key}: {value!r} is not text: put it in quotes")
        else:
            out[key] = _literal(value, f"{where}{key}")
    return out


def _literal(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_literal(item, where) for item in value]
    if value == "???":
        raise ValueError(f"{where}: '???' is not a value: write something else")
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _leaf_type(path: str, schema: type, aliases: dict[str, str]) -> Any:
    head, _, rest = path.partition(".")
    types = get_type_hints(schema)
    if head not in types:
        settable = {*types, *aliases} - {"run"}  # which the script or the file says
        raise ValueError(f"unknown key {head!r}{_hint(head, settable)}")
    if not rest:
        return types[head]
    if not is_dataclass(types[head]):
        raise ValueError(f"key {path!r}: {head!r} has no parts")
    return _leaf_type(rest, types[head], aliases)


def _hint(word: str, known: Any) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f": known are {', '.join(sorted(known))}"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config under its dotted name, for logs and JSON."""
    out: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        name = prefix + entry.name
        out.update(flat(value, name + ".") if is_dataclass(value) else {name: value})
    return out
