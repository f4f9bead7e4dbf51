"""Weights out of a run's checkpoint, whole or sharded, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from livetalk.models.layouts import DIT_TO_DIFFUSERS
from livetalk.models.text import published_name
from livetalk.models.weights import Entry
from livetalk.training import checkpoint, sharded_checkpoint

LAYOUTS = ("published", "diffusers")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT = "text"
PORTION = 2**30


@dataclass(frozen=True)
class ExportRun:
    """`scripts/export.sh`: one .safetensors under published names from a checkpoint of a training.

    checkpoint: its folder, or that of a run, whose newest is taken. module: student, critic, dit or text, as the
    training calls it. averaged: the average (EMA), where the run keeps one. layout: names, of Wan2.1's own files or of
    diffusers'. output: the file, "" for outputs/MODULE-STEP.safetensors.
    """

    run: str = "export"
    checkpoint: str = ""
    module: str = "student"
    averaged: bool = True
    precision: str = "bfloat16"
    layout: str = "published"
    output: str = ""

    def __post_init__(self) -> None:
        for name, given, known in (("layout", self.layout, LAYOUTS), ("precision", self.precision, PRECISIONS)):
            if given not in known:
                raise ValueError(f"{name} {given!r} is not known: use {' or '.join(known)}")
        if self.output and Path(self.output).suffix != ".safetensors":
            raise ValueError(f"output={self.output}: it is a file of weights, give a name that ends in .safetensors")


def found(folder: str | Path) -> Path:
    """The checkpoint at `folder`, or the newest of the run there. Raises ValueError if there is none."""
    folder = Path(folder)
    if (folder / checkpoint.MARKER).is_file():
        return folder
    if not (there := checkpoint.whole(folder)):
        raise ValueError(f"no whole checkpoint in {folder}: name that of a run, such as runs/NAME/dmd")
    return there[-1]


def entries(path: Path, run: ExportRun) -> Iterator[Entry]:
    """The module's weights, each read when its turn comes. Raises ValueError if the checkpoint has no such module,
    or adapters of it."""
    known = sharded_checkpoint.names_of(path) if checkpoint.sharded(path) else _names(path)
    names = sharded_checkpoint.weight_names(known, run.module, run.averaged)
    if not names:
        modules = sorted({name.split(".")[1] for name in known if name.startswith(sharded_checkpoint.WEIGHTS)})
        raise ValueError(f"{path} has no module {run.module!r}: it has {', '.join(modules)}")
    if any(".lora_A." in name for name in names):
        raise ValueError(f"{path} is of adapters: what they make of the teacher is in the run's family, part teacher")
    read = _Portions(path, list(names.values())) if checkpoint.sharded(path) else partial(_read, path)
    for ours, theirs in names.items():
        shape, dtype = _known(path, theirs)
        kept = PRECISIONS[run.precision] if dtype.is_floating_point else dtype
        yield Entry(_renamed(ours, run), tuple(shape), kept, partial(read, theirs))


class _Portions:
    """Reads tensors of a sharded checkpoint, asked for in order, PORTION bytes at a time."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path, self.names = path, names
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self.held:
            self.held, wanted, total = {}, {}, 0
            for next_name in self.names[self.names.index(name) :]:
                shape, dtype = sharded_checkpoint.size_of(self.path, next_name)
                total += shape.numel() * dtype.itemsize
                if wanted and total > PORTION:
                    break
                wanted[next_name] = next_name
            self.held = sharded_checkpoint.read(self.path, wanted)
        return self.held[name]


def _renamed(name: str, run: ExportRun) -> str:
    if run.module == TEXT:
        return published_name(name)
    return DIT_TO_DIFFUSERS.translate(name) if run.layout == "diffusers" else name


def _place(path: Path, name: str) -> tuple[Path, str]:
    """File and name of a tensor in a checkpoint that one process wrote."""
    kind, _, rest = name.partition(".")
    return path / f"{kind}.safetensors", rest


def _names(path: Path) -> list[str]:
    out = []
    for kind in (sharded_checkpoint.WEIGHTS, sharded_checkpoint.AVERAGED):
        with safe_open(path / f"{kind}safetensors", "pt") as file:
            out += [kind + name for name in file.keys()]
    return out


def _known(path: Path, name: str) -> tuple[torch.Size, torch.dtype]:
    if checkpoint.sharded(path):
        return sharded_checkpoint.size_of(path, name)
    file, rest = _place(path, name)
    with safe_open(file, "pt") as source:
        value = source.get_tensor(rest)
    return value.shape, value.dtype


def _read(path: Path, name: str) -> Tensor:
    file, rest = _place(path, name)
    with safe_open(file, "pt") as source:
        return source.get_tensor(rest)
