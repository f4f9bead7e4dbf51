"""The causal student: denoise one block, roll out blocks. Training, streaming and the pipeline all run this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from livetalk import flow
from livetalk.conditions import Conditions, pin
from livetalk.models.dit import WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache

Noise = Callable[[tuple[int, ...]], Tensor]
CLEAN = 0.0


def gaussian(generator: torch.Generator, dtype: torch.dtype, device: torch.device | str) -> Noise:
    """Standard normal tensors drawn one after another from `generator`, whose device decides the numbers."""
    return lambda shape: torch.randn(shape, generator=generator, device=generator.device).to(device, dtype)


def new_cache(
    dit: WanDiT,
    config: CacheConfig,
    *,
    rows: int,
    columns: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    turned: bool = False,
) -> KVCache:
    """An empty cache for `batch` clips that `dit` generates together, of rows x columns tokens a latent frame."""
    sizes = {"layers": dit.config.layers, "heads": dit.config.heads, "head_dim": dit.config.head_dim}
    place = {"batch": batch, "dtype": dtype, "device": device}
    return KVCache(config, rows=rows, columns=columns, turned=turned, **place, **sizes)


def denoise_block(
    dit: WanDiT,
    conditions: Conditions,
    frames: int,
    timesteps: Sequence[float],
    cache: KVCache,
    noise: Noise,
    graded: bool = False,
    last: bool = False,
    plain: WanDiT | None = None,
) -> Tensor:
    """Generates the next block: clean latents [B, 16, frames, h, w], its keys and values left in the cache.

    For each timestep: predict x0, then noise it freshly to the next level. One more pass at t = 0 over the clean block
    writes what later blocks see; it is left out of the last one. graded, for training, where gradients are on: the
    pass at the last timestep, and no other, carries gradient; nothing reaches earlier blocks. plain: the same network
    in a form that makes the other passes quicker.
    """
    levels = [float(t) for t in timesteps]
    graded, plain = graded and torch.is_grad_enabled(), plain or dit
    with torch.set_grad_enabled(graded):
        prepared = dit.prepare(conditions, frames, [*levels, CLEAN])
    cache.advance(frames)
    shape = (conditions.text.shape[0], dit.config.out_channels, frames, 2 * cache.rows, 2 * cache.columns)
    x = noise(shape)
    for index, level in enumerate(levels):
        x = pin(x, conditions.image)
        leaves = index + 1 == len(levels)
        if graded and leaves:
            # Before pytorch#165068 autocast keeps casts of weights made without gradient, which cuts the weights off.
            torch.clear_autocast_cache()
        with torch.set_grad_enabled(graded and leaves):
            network = dit if graded and leaves else plain
            x0 = flow.x0_from_flow(x, network(x, level, prepared, cache), flow.sigma_of(level))
        if not leaves:
            x = flow.add_noise(x0, noise(shape), flow.sigma_of(levels[index + 1]))
    x0 = pin(x0, conditions.image)
    if not last:
        with torch.no_grad():
            plain(x0, CLEAN, prepared, cache)
    return x0


def rollout(
    dit: WanDiT,
    conditions: Conditions,
    latents: int,
    timesteps: Sequence[float],
    cache: KVCache,
    noise: Noise,
    graded: range = range(0),
    plain: WanDiT | None = None,
) -> Iterator[Tensor]:
    """Yields the blocks of a clip of `latents` latent frames, a whole number of blocks; the cache starts anew, and in
    the end lacks the last block.

    graded: latent frames whose blocks carry gradient, each from its last timestep alone (Self Forcing,
    arXiv:2506.08009): a training that leaves at an exit step passes the timesteps up to that one. plain: as above.
    """
    block = cache.config.block
    if latents % block:
        raise ValueError(f"{latents} latent frames are not a whole number of blocks of {block}: pad with silence")
    cache.reset()
    for start in range(0, latents, block):
        part, last = conditions.block(start, block), start + block == latents
        yield denoise_block(dit, part, block, timesteps, cache, noise, start in graded, last, plain)
