"""Arithmetic of training steps, from sizes alone: multiplications and additions that the model needs, once each.

What is computed again to save memory does not count, so that a share of a card's rate ("model FLOP utilisation") tells
how much of its time goes into the model. A backward pass is twice its forward pass.
"""

from __future__ import annotations

from livetalk.geometry import PATCH, TIME_STRIDE, Geometry
from livetalk.models.dit import MODULATIONS, DiTConfig


def layers_flops(config: DiTConfig, tokens: int, pairs: int) -> int:
    """One pass over `tokens` tokens with `pairs` pairs of a query and a key, without what prepare() does."""
    dim, text = config.dim, config.text_len
    linears = tokens * (12 * dim**2 + 4 * dim * config.ffn_dim)
    layer = linears + 4 * dim * pairs + 4 * dim * tokens * text
    ends = 2 * tokens * dim * PATCH**2 * (config.in_channels + config.out_channels)
    return config.layers * layer + ends


def prepare_flops(config: DiTConfig, frames: int, levels: int) -> int:
    """Text, audio and time of a pass over `frames` latent frames; levels: timesteps that are embedded."""
    dim = config.dim
    text = config.text_len * (2 * config.text_dim * dim + 2 * dim**2 + config.layers * 4 * dim**2)
    audio = 2 * frames * config.audio_hidden * (TIME_STRIDE * config.audio_dim + len(config.audio_layers) * dim)
    return text + audio + 2 * levels * (config.freq_dim * dim + (1 + MODULATIONS) * dim**2)


def clip_flops(config: DiTConfig, geometry: Geometry, block: int = 0) -> int:
    """A pass over a clip, every frame seeing all, or with `block` its own block and earlier ones."""
    frames, per = geometry.clip_latents, geometry.tokens_per_frame
    tokens = frames * per
    pairs = sum(block * per * (start + block) * per for start in range(0, frames, block)) if block else tokens**2
    return layers_flops(config, tokens, pairs) + prepare_flops(config, frames, frames if block else 1)


def block_flops(config: DiTConfig, geometry: Geometry, start: int) -> int:
    """A pass over the block that begins at latent frame `start`, through the cache."""
    per, block = geometry.tokens_per_frame, geometry.block
    seen = min(start + block, geometry.window)
    return layers_flops(config, block * per, block * per * seen * per)


def rollout_flops(config: DiTConfig, geometry: Geometry, passes: int) -> int:
    """A clip, each block in `passes` denoising passes and, but for the last, a clean one."""
    starts = range(0, geometry.clip_latents, geometry.block)
    once = prepare_flops(config, geometry.block, passes + 1)
    whole = sum((passes + 1) * block_flops(config, geometry, start) + once for start in starts)
    return whole - block_flops(config, geometry, starts[-1])


def ode_flops(student: DiTConfig, geometry: Geometry) -> int:
    """A step of the ODE initialisation with one sample."""
    return 3 * clip_flops(student, geometry, geometry.block)


def dmd_flops(
    student: DiTConfig, critic: DiTConfig, teacher: DiTConfig, geometry: Geometry, exit: int, guided: int, learns: bool
) -> int:
    """A step of distribution matching with one sample: the critic's turn and, if the student learns, its turn.

    exit: index of the timestep at which blocks leave; guided: passes of the teacher that its guidance needs.
    """
    rolled = rollout_flops(student, geometry, exit + 1)
    scored = clip_flops(critic, geometry)
    total = rolled + 3 * scored
    if learns:
        starts = range(0, geometry.clip_latents, geometry.block)
        graded = sum(block_flops(student, geometry, start) for start in starts)
        graded += len(starts) * prepare_flops(student, geometry.block, 1)
        total += rolled + 2 * graded + scored + guided * clip_flops(teacher, geometry)
    return total
