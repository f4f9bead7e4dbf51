"""Checkpoints of sharded runs, by torch.distributed.checkpoint: every process writes its own parts, in the background.

Nothing is gathered: a later run may have another number of processes, each of which reads the parts that it needs.
The folder is that of checkpoint.py, and is whole once the first process has marked it, when all have written.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter

from livetalk.training import checkpoint, distributed, going_on
from livetalk.training.ema import EMA

log = logging.getLogger(__name__)
WEIGHTS, AVERAGED, OPTIMISER = "weights.", "ema.", "optimiser."
DAMAGE = (CheckpointException, RuntimeError, UnpicklingError, EOFError, OSError, json.JSONDecodeError)


class Learner(Protocol):
    """What is kept of modules that learn together: see trainer.Player."""

    modules: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    ema: EMA | None


class ShardedCheckpoints:
    """Those of the run in `folder`. All processes call the same methods in the same order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of its own, so that what is written in the background does not meet what training exchanges.
        self.group = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future | None = None

    def save(self, step: int, learners: Iterable[Learner], settings: dict, keep: int) -> None:
        """Copies everything to the host's memory, and writes it while training goes on."""
        self.finish()
        if distributed.rank() == 0:
            checkpoint.begin(self.folder, step)
        distributed.wait()
        copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors_of(learners).items()}
        self.writing = self.thread.submit(self._write, step, copies, settings, keep)

    def _write(self, step: int, copies: dict[str, Tensor], settings: dict, keep: int) -> None:
        writer = FileSystemWriter(checkpoint.partial_of(self.folder, step))
        dcp.save(copies, storage_writer=writer, process_group=self.group)
        if distributed.rank() == 0:
            checkpoint.complete(self.folder, step, settings, keep)

    def finish(self) -> None:
        """Waits until the last save is on disk, and raises what went wrong there."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def load_latest(self, learners: Iterable[Learner]) -> dict | None:
        """Fills everything from the newest checkpoint that can be read; its step and settings, None if there is none.

        Raises ValueError if all are damaged, and for one that is not of a sharded run or of other networks.
        """
        self.finish()
        learners = list(learners)
        found = checkpoint.whole(self.folder)
        for path in reversed(found):
            if not checkpoint.sharded(path):
                raise ValueError(f"{path} is of a run without train.shard: go on without, or give another name=")
            try:
                self._fill(path, learners)
                return json.loads((path / checkpoint.MARKER).read_text())
            except DAMAGE as error:
                log.warning("%s is damaged (%s): trying the one before", path, str(error).splitlines()[0])
        if found:
            raise ValueError(f"no checkpoint in {self.folder} can be read: remove the folder to start anew")
        return None

    def read_weights(self, module: str) -> dict[str, Tensor]:
        """Those to use, as last saved, of one of the trained modules: all of them, in this process alone."""
        self.finish()
        path = checkpoint.whole(self.folder)[-1]
        return read(path, weight_names(names_of(path), module, averaged=True))

    def _fill(self, path: Path, learners: list[Learner]) -> None:
        names = set(names_of(path))
        for learner in learners:
            _make_room(learner, names)
        wanted = tensors_of(learners)
        begun = any(name.startswith(AVERAGED) for name in names)
        if not begun:  # a run that had no average begins one with the weights that it goes on from
            wanted = {name: value for name, value in wanted.items() if not name.startswith(AVERAGED)}
        theirs = {name: size_of(path, name)[0] for name in names if name in wanted or not name.startswith(AVERAGED)}
        going_on.require_same(path, theirs, {name: value.shape for name, value in wanted.items()})
        dcp.load(wanted, storage_reader=FileSystemReader(path), process_group=self.group)
        for learner in learners:
            if learner.ema and not begun:
                learner.ema.weights = EMA(learner.modules, learner.ema.decay).weights


def tensors_of(learners: Iterable[Learner]) -> dict[str, Tensor]:
    """All that a run is, by name: weights, averages, and the optimisers' state of each weight."""
    found: dict[str, Tensor] = {}
    for learner in learners:
        found |= {WEIGHTS + name: value for name, value in learner.modules.state_dict().items()}
        if learner.ema:
            found |= {AVERAGED + name: value for name, value in learner.ema.weights.items()}
        for name, parameter in learner.modules.named_parameters():
            state = learner.optimiser.state.get(parameter, {})  # none before it learns for the first time
            found |= {f"{OPTIMISER}{name}.{key}": value for key, value in state.items()}
    return found


def _make_room(learner: Learner, names: set[str]) -> None:
    """Gives an optimiser, in place of what it has, empty state for the weights of which a checkpoint holds some."""
    learner.optimiser.state.clear()
    fused = learner.optimiser.param_groups[0]["fused"]
    for name, parameter in learner.modules.named_parameters():
        if f"{OPTIMISER}{name}.step" in names:
            device = parameter.device if fused else "cpu"
            learner.optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }


def names_of(path: Path) -> list[str]:
    """Names of the tensors that a sharded checkpoint holds."""
    return list(_metadata(path))


@lru_cache(1)
def _metadata(path: Path) -> dict:
    """By name; of the checkpoint that was asked for last."""
    return FileSystemReader(path).read_metadata().state_dict_metadata


def weight_names(names: Iterable[str], module: str, averaged: bool) -> dict[str, str]:
    """Our name of each weight of a trained module, and that in a checkpoint: of the average where it is wanted and
    there."""
    for kind in (AVERAGED, WEIGHTS) if averaged else (WEIGHTS,):
        start = f"{kind}{module}."
        if found := {name.removeprefix(start): name for name in names if name.startswith(start)}:
            return found
    return {}


def read(path: Path, names: dict[str, str]) -> dict[str, Tensor]:
    """Whole tensors of a sharded checkpoint, {ours: theirs}, put together on the host by this process alone."""
    reader, sizes = FileSystemReader(path), {theirs: size_of(path, theirs) for theirs in names.values()}
    found = {theirs: torch.empty(size, dtype=dtype) for theirs, (size, dtype) in sizes.items()}
    with warnings.catch_warnings():  # one process alone is what is meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(found, storage_reader=reader, no_dist=True)
    return {ours: found[theirs] for ours, theirs in names.items()}


def size_of(path: Path, name: str) -> tuple[torch.Size, torch.dtype]:
    """Shape and type of a tensor of a sharded checkpoint."""
    known = _metadata(path)[name]
    return known.size, known.properties.dtype
