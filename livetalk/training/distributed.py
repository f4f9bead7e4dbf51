"""Several processes, one model: what the trainer needs of torch.distributed. Alone, every function does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def join(device: torch.device) -> torch.device:
    """Joins the group that torchrun made, if any; returns this process's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def seed(base: int) -> int:
    """`base` in the first process, another number in every other.

    They differ in the low 32 bits, which are all that a generator on the CPU takes of its seed.
    """
    return base + rank() * 0x9E37_79B1


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes."""
    if ranks() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
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
