"""What --dry-run prints: how much memory a run takes, from modules built on the meta device, which stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from livetalk.training.trainer import TrainConfig


def table(title: str, rows: dict[str, int], total: int | None = None) -> str:
    """Rows of bytes in GiB under a title; the last line is the total, by default the sum."""
    lines = [title, *(f"{name:<40}{size / 2**30:9.3f} GiB" for name, size in rows.items())]
    total = sum(rows.values()) if total is None else total
    return "\n".join([*lines, f"total memory: {total / 2**30:.2f} GiB"])


def bytes_of(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    return sum(value.numel() * (dtype or value.dtype).itemsize for value in tensors)


def training_rows(stage: str, modules: Iterable[nn.Module], config: TrainConfig, activations: int) -> dict[str, int]:
    """What the trainer holds: float32 weights and gradients, two moments of AdamW, averaged weights, activations."""
    modules = list(modules)
    trained = [value for module in modules for value in module.parameters() if value.requires_grad]
    state = [value for module in modules for value in module.state_dict().values()]
    return {
        f"{stage}: parameters": bytes_of(state, torch.float32),
        f"{stage}: gradients": bytes_of(trained, torch.float32),
        f"{stage}: optimiser state": 2 * bytes_of(trained, torch.float32),
        f"{stage}: averaged weights (EMA)": bytes_of(state, torch.float32) if config.ema else 0,
        f"{stage}: activations (estimate)": activations,
    }


def activation_bytes(forward: Callable[[torch.dtype], object], modules: Iterable[nn.Module], precision: str) -> int:
    """Bytes that autograd keeps for the backward pass of `forward`, run on the meta device in a training's precision.

    An estimate: temporary buffers and what a compiler fuses away are not known here. Square attention matrices are left
    out, since the attention kernels of a GPU do not keep them. `modules` are cast in place.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    own = {value.untyped_storage()._cdata for module in modules for value in module.to(dtype).parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        square = value.ndim >= 3 and value.shape[-1] == value.shape[-2] > 512
        if storage._cdata not in own and not square:
            kept[storage._cdata] = storage.nbytes()
        alive.append(value)
        return value

    # Storages stay alive until all are counted, so that no address is used twice.
    alive: list[Tensor] = []
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        forward(dtype)
    return sum(kept.values())
