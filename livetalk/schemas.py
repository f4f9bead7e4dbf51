"""A YAML file plus `key=value` overrides become a frozen dataclass. The only file that knows OmegaConf.

Every key must exist in the dataclass, and a misspelt one is refused with the nearest known name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

SCALARS = {
    bool: ("true or false", "true or false", "true"),
    int: ("a whole number", "whole numbers", "8"),
    float: ("a number", "numbers", "0.5"),
    str: ("text", "texts", "name"),
}
"""What each type is called, one of it and several, and an example."""
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


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


def run_of(path: str | Path | None, default: str) -> Any:
    """What the key `run` of a file says. Raises ValueError for a file that is no YAML mapping."""
    return default if path is None else _read_yaml(path).get("run", default)


def _refusing(act: Callable, *arguments: Any, where: str) -> Any:
    """act(*arguments), with what OmegaConf refuses as a ValueError of one line that names the key."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return act(*arguments)
    except OmegaConfBaseException as error:
        key = error.full_key or ", ".join(map(str, arguments[-1]))
        raise ValueError(f"{where}{key}: {str(error).splitlines()[0]}") from error


def _read_yaml(path: str | Path) -> dict:
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config {path} is not a file: name one of configs/*.yaml")
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path} is not valid YAML: it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config {path} is not valid YAML: {_fault(error, text)}") from error
    if not isinstance(data, dict):
        raise ValueError(f"config {path} is empty or not a mapping: it needs at least `run: NAME`")
    return data


def _fault(error: Exception, text: str) -> str:
    """Where YAML stumbled, with that line, and what to do."""
    from yaml import MarkedYAMLError

    remedy = "put texts with : # { [ * & ! @ in quotes, close what is open, and indent by spaces"
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{str(error).splitlines()[0]}: {remedy}"
    number, lines = error.problem_mark.line, text.splitlines()
    shown = f"line {number + 1}, {lines[number].strip()!r}" if number < len(lines) else "its end"
    return f"{shown} ({error.problem}): {remedy}"


def _override(item: str, schema: type, aliases: dict[str, str]) -> dict:
    """`a.b=value` as the nested mapping it stands for. Texts stay as typed: YAML would turn `off` into False."""
    import yaml

    key, equals, text = item.partition("=")
    key = aliases.get(key.strip(), key.strip())
    if not equals or not key:
        raise ValueError(f"argument {item!r} is not key=value: write for example seed=1")
    if key == "run":
        raise ValueError(f"argument {item!r}: the script or the config file says what to run")
    kind = _leaf_type(key, schema, aliases)
    if kind is str:
        value: Any = text
    elif kind is int and text.strip().isdecimal():
        value = int(text)  # YAML would take 010 for 8
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            wanted = _wanted(kind)
            raise ValueError(f"{key}: {text!r} cannot be read, it is not {wanted}") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _checked(data: dict, schema: type, where: str, above: str = "") -> dict:
    """`data` with every key known to `schema`, every value of its type, and nothing that OmegaConf would interpolate.

    where: the file and a colon; above: the groups around, each with a dot.
    """
    types = get_type_hints(schema)
    out = {}
    for key, value in data.items():
        if key not in types:
            group = f"{above.removesuffix('.')}: " if above else ""
            raise ValueError(f"{where}{group}unknown key {key!r}{_hint(str(key), types)}")
        name = f"{above}{key}"
        if is_dataclass(types[key]):
            if not isinstance(value, dict):
                known = ", ".join(get_type_hints(types[key]))
                raise ValueError(f"{where}{name}: {value!r} is not a mapping of {known}")
            out[key] = _checked(value, types[key], where, f"{name}.")
        else:
            out[key] = _fitting(_literal(value, f"{where}{name}"), types[key], f"{where}{name}")
    return out


def _fitting(value: Any, kind: Any, where: str) -> Any:
    """`value` as a leaf of type `kind`. Raises ValueError if it is none."""
    if get_origin(kind) is tuple:
        return _listed(value, kind, where)
    if set(get_args(kind)) == {bool, str}:  # true, false, or a word, which the dataclass knows
        word = isinstance(value, str) and value.lower() not in BOOLEANS
        return value if word else _fitting(value, bool, where)
    if NoneType in get_args(kind):
        if value is None:
            return None
        kind = next(one for one in get_args(kind) if one is not NoneType)
    try:
        return _scalar(value, kind)
    except ValueError as error:
        remedy = "put it in quotes" if kind is str else f"give for example {SCALARS[kind][2]}"
        raise ValueError(f"{where}: {value!r} is not {SCALARS[kind][0]}: {remedy}") from error


def _listed(value: Any, kind: Any, where: str) -> list:
    parts = get_args(kind)
    kinds = [parts[0]] * len(value) if isinstance(value, list) and parts[-1] is ... else parts
    try:
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ValueError
        return [_scalar(item, one) for item, one in zip(value, kinds, strict=True)]
    except ValueError as error:
        raise ValueError(f"{where}: {value!r} is not {_wanted(kind)}") from error


def _scalar(value: Any, kind: type) -> Any:
    """`value` as a bool, int, float or str; YAML takes 1e-3 for a text. Raises ValueError for another."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) and value == value:  # NaN is not
        return value
    if kind is bool and str(value).lower() in BOOLEANS:
        return BOOLEANS[str(value).lower()]
    if kind is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if kind in (int, float) and isinstance(value, str) or kind is float and type(value) is int:
        return _scalar(kind(value), kind)
    raise ValueError(value)


def _wanted(kind: Any) -> str:
    """What a leaf of type `kind` must be, with an example."""
    parts = get_args(kind)
    if get_origin(kind) is not tuple:
        name, _, example = SCALARS[next(one for one in parts or (kind,) if one is not NoneType)]
        return f"{name}: give for example {example}"
    _, several, example = SCALARS[parts[0]]
    count = "" if parts[-1] is ... else f"{len(parts)} "
    shown = ", ".join([example] * (2 if parts[-1] is ... else len(parts)))
    return f"a list of {count}{several}: give for example [{shown}]"


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
