"""Checkpoints of a run: written under a temporary name, renamed when whole, a marker written last."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)
MARKER = "complete.json"
SHARDED = ".metadata"


@dataclass(frozen=True)
class State:
    """settings: those the run had when it saved, known once loaded."""

    step: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimiser: dict
    settings: dict = field(default_factory=dict)


def save(folder: Path, state: State, settings: dict, keep: int) -> Path:
    """Writes folder/step-NNNNNNN and removes all but the newest `keep` whole checkpoints, and what killed runs left."""
    partial = begin(folder, state.step)
    for name, tensors in (("weights", state.weights), ("ema", state.ema)):
        # Clones, because tied weights share memory, which the file format refuses.
        own = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        save_file(own, partial / f"{name}.safetensors")
    torch.save(state.optimiser, partial / "optimiser.pt")
    return complete(folder, state.step, settings, keep)


def begin(folder: Path, step: int) -> Path:
    """An empty folder for what belongs to a checkpoint; what killed runs left goes."""
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left)
    partial = partial_of(folder, step)
    partial.mkdir(parents=True)
    return partial


def partial_of(folder: Path, step: int) -> Path:
    return folder / f".{name_of(step)}.partial"


def name_of(step: int) -> str:
    return f"step-{step:07d}"


def complete(folder: Path, step: int, settings: dict, keep: int) -> Path:
    """Marks what begin() began, and all has been written to, as whole; removes all but the newest `keep`."""
    assert keep >= 1
    partial, final = partial_of(folder, step), folder / name_of(step)
    (partial / MARKER).write_text(json.dumps({"step": step, "settings": settings}, indent=1))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def whole(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path.parent for path in Path(folder).glob(f"step-*/{MARKER}"))


@dataclass(frozen=True)
class Marked:
    """What the marker of a checkpoint says."""

    step: int
    settings: dict


def latest_settings(folder: Path) -> Marked | None:
    """Of the newest whole checkpoint, read without its weights; None where there is none, or its marker is damaged."""
    found = whole(folder)
    try:
        return Marked(**json.loads((found[-1] / MARKER).read_text())) if found else None
    except (json.JSONDecodeError, TypeError, OSError):
        return None  # load_latest says so


def sharded(path: Path) -> bool:
    """Whether a checkpoint was written by several processes, each its part (sharded_checkpoint.py)."""
    return (path / SHARDED).is_file()


def load_latest(folder: Path, device: torch.device) -> State | None:
    """The newest checkpoint that can be read, None if there is none. Raises ValueError if all are damaged, or for one
    of a sharded run."""
    found = whole(folder)
    for path in reversed(found):
        if sharded(path):
            raise ValueError(f"{path} is of a run with train.shard=true: go on with that, on one process if you like")
        try:
            return _load(path, device)
        except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, json.JSONDecodeError) as error:
            log.warning("%s is damaged (%s): trying the one before", path, error)
    if found:
        raise ValueError(f"no checkpoint in {folder} can be read: remove the folder to start anew")
    return None


def _load(path: Path, device: torch.device) -> State:
    marker = json.loads((path / MARKER).read_text())
    return State(
        step=marker["step"],
        settings=marker["settings"],
        weights=load_file(path / "weights.safetensors", device=str(device)),
        ema=load_file(path / "ema.safetensors", device=str(device)),
        optimiser=torch.load(path / "optimiser.pt", map_location=device, weights_only=True),
    )
