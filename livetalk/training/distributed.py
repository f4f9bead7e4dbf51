"""Several processes, one model: what the trainer needs of torch.distributed. Alone, every function does nothing."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.tensor import DTensor

log = logging.getLogger(__name__)
PATIENCE = timedelta(hours=1)  # while the first process looks at a checkpoint, the others wait
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Timed out waiting")
"""Of what is said, by gloo or NCCL, where another process is gone."""
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}


def join(device: torch.device) -> torch.device:
    """Joins the group that torchrun made, if any; returns this process's own device.

    Raises ValueError if there are more processes on a machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= cards:
            raise ValueError(f"process {local} of this machine has no GPU, of which there are {cards}: start {cards}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], timeout=PATIENCE)
    return device


def found(device: torch.device) -> None:
    """Founds a group of this process alone, unless there is one."""
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], store=dist.HashStore(), rank=0, world_size=1)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def seed(base: int, part: int | None = None) -> int:
    """`base` for the first part of a batch, by default that of the first process, another number for every other.

    They differ in the low 32 bits, which are all that a generator on the CPU takes of its seed.
    """
    return base + (rank() if part is None else part) * 0x9E37_79B1


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes; those of sharded weights are means already."""
    if ranks() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not gradients:
        return
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    flat /= ranks()
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)


def agreed(value: int, device: torch.device) -> int:
    """The first process's value, in every process."""
    if ranks() == 1:
        return value
    box = torch.tensor([value], device=device)
    dist.broadcast(box, 0)
    return int(box)


def means(scalars: dict[str, float], device: torch.device) -> dict[str, float]:
    """Scalars of the same names in every process, averaged: a number that is not finite in one is so in all."""
    if ranks() == 1:
        return scalars
    values = torch.tensor(list(scalars.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(scalars, (values / ranks()).tolist(), strict=True))


@contextmanager
def failing(where: Callable[[], str]) -> Iterator[None]:
    """Says which process an error ends, and `where`: of several, a launcher shows no more than the first that died.

    A process that is killed says nothing. The others notice when they next exchange something, or are stopped by the
    launcher, which noticed before; they name it, and exit with status 1, without a traceback, which would tell where
    they waited.
    """
    ended = False
    try:
        yield
        ended = True
    except RuntimeError as error:
        if ranks() == 1:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # gloo begins with a line of its source and ends with advice.
        reason = re.sub(r"^\[\S+\] ", "", reason).partition(". ")[0]
        log.error("process %d of %d stops, %s: %s", rank(), ranks(), where(), reason)
        if not any(sign in str(error) for sign in LOST):
            raise
        _blame(silent())
        raise SystemExit(1) from error
    except SystemExit:
        if ranks() > 1 and (lost := silent()):
            log.error("process %d of %d is stopped, %s", rank(), ranks(), where())
            _blame(lost)
        raise
    finally:
        if not ended and ranks() > 1:
            _store_of_signs()  # whatever it was, this process tells of it itself


def _blame(lost: list[int]) -> None:
    if lost:
        several = f"processes {', '.join(map(str, lost))} are" if len(lost) > 1 else f"process {lost[0]} is"
        log.error("%s gone: killed, perhaps for memory, or the machine is lost. Start the same command again", several)


def silent(patience: float = 3.0) -> list[int]:
    """Processes that do not say within `patience` seconds that they are there; [] where that cannot be known.

    To be called by all that are left. Waiting, they also leave the launcher time to see who died first; it would end
    them meanwhile.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store = _store_of_signs()
        missing, until = list(range(ranks())) if store else [], time.monotonic() + patience
        while missing and time.monotonic() < until:
            missing = [one for one in missing if not store.check([str(one)])]
            time.sleep(0.05)
        return missing
    except RuntimeError:  # the store went with the lost process
        return []
    finally:
        signal.signal(signal.SIGTERM, before)


def _store_of_signs() -> dist.Store | None:
    """Where processes that fail say that they are still there, this one among them; None where there is none."""
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        tcp = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=2), wait_for_workers=False)
        # The launcher's store outlives its attempts.
        store = dist.PrefixStore(f"there {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)
        store.set(str(rank()), "")
    except RuntimeError:
        return None
    return store
