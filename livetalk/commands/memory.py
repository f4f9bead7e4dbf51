"""What --dry-run prints: how much memory a run takes, from modules built on the meta device, which stores nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from livetalk.conditions import Conditions
from livetalk.geometry import TIME_STRIDE
from livetalk.models.attention import Attend, BlockCausal, FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.training.trainer import TrainConfig


def table(title: str, rows: dict[str, int], total: int | None = None, more: Sequence[str] = ()) -> str:
    """Rows of bytes in GiB under a title, and further lines; the last line is the total, by default the sum."""
    lines = [title, *(f"{name:<40}{size / 2**30:9.3f} GiB" for name, size in rows.items()), *more]
    total = sum(rows.values()) if total is None else total
    return "\n".join([*lines, f"total memory: {total / 2**30:.2f} GiB"])


def spread_lines(
    rows: dict[str, int], spread: tuple[str, ...], whole: int = 0, processes: tuple[int, ...] = (2, 8)
) -> list[str]:
    """What one of several processes holds with train.shard=true, which divides the rows whose names begin so. whole:
    bytes that it holds besides (kept_whole)."""
    lines = []
    for count in processes:
        held = whole + sum(size / count if name.startswith(spread) else size for name, size in rows.items())
        lines.append(f"{f'one of {count} processes, train.shard=true':<40}{held / 2**30:9.3f} GiB")
    return lines


def kept_whole(modules: Iterable[nn.Module], config: TrainConfig) -> int:
    """Bytes of the layers, and of their gradients, that every process of a sharded training keeps from pass to pass."""
    trained = sum(value.numel() for module in modules for value in module.parameters() if value.requires_grad)
    weight = torch.bfloat16.itemsize if config.precision == "bf16" else torch.float32.itemsize
    if config.no_sync:
        return trained * (weight + torch.float32.itemsize)
    return 0 if config.regather else trained * weight


def samples_at_once(config: TrainConfig) -> int:
    """Samples that one process takes at a time."""
    return config.at_once or -(-config.batch // config.accumulate)


def kept_by_passes(config: DiTConfig, tokens: int, full: int, recompute: bool) -> int:
    """Bytes for the backward pass: `full`, or with recompute the float32 input of every block and what one block keeps
    that is run again."""
    return 4 * tokens * config.dim * config.layers + full // config.layers if recompute else full


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

    An estimate: temporary buffers and what a compiler fuses away are not known here. Attention keeps what the kernels
    of a GPU keep, and no matrix of scores. `modules` are cast in place.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    own = {value.untyped_storage()._cdata for module in modules for value in module.to(dtype).parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        alive.append(value)
        return value

    # Storages stay alive until all are counted, so that no address is used twice.
    alive: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with torch.device("meta"), FusedAttention(), hooks:
        forward(dtype)
    return sum(kept.values())


def clip_activations(
    dit: WanDiT, samples: int, shape: tuple[int, int, int], precision: str, attend: Attend | None = None
) -> int:
    """Bytes that autograd keeps for a pass of a network on the meta device over `samples` clips of `shape`, latents,
    height and width; a level for each latent where attention is block-causal."""
    config, latents, attend = dit.config, shape[0], attend or FullAttention()
    levels = (samples, latents) if isinstance(attend, BlockCausal) else (samples,)

    def forward(dtype: torch.dtype) -> object:
        noisy = torch.empty(samples, config.out_channels, *shape, dtype=dtype)
        sound = torch.empty(samples, latents, TIME_STRIDE * config.audio_dim, dtype=dtype)
        told = torch.empty(samples, config.text_len, config.text_dim, dtype=dtype)
        given = dit(noisy, torch.empty(levels), Conditions(told, noisy[:, :, :1], sound), attend)
        assert given.shape == noisy.shape
        return given

    return activation_bytes(forward, [dit], precision)


class FusedAttention(TorchFunctionMode):
    """Lets attention keep for the backward pass what fused kernels do. For the meta device: it computes nothing."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is scaled_dot_product_attention:
            return Attended.apply(*arguments[:3])
        return function(*arguments, **(named or {}))


class Attended(torch.autograd.Function):
    """The shape of an attention's result; queries, keys, values and result are kept."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        result = queries.new_empty(*queries.shape[:-1], values.shape[-1])
        ctx.save_for_backward(queries, keys, values, result)
        return result
