"""Sum, norm over channels and SiLU of pictures in one reading of them, joined with what was kept of those before."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

VALUES = 8192
"""Of a program, about: pixels times channels."""


@triton.jit
def _norm_silu(
    x,
    bias,
    other,
    gamma,
    total,
    out,
    kept,
    pixels,
    before,
    root,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    OTHER: tl.constexpr,
    TOTAL: tl.constexpr,
    KEEP: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, WIDE)
    within = channels < C
    inside = (rows < pixels)[:, None] & within[None]
    at = rows[:, None] * C + channels[None]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + channels, mask=within, other=0.0).to(tl.float32)[None]
    if OTHER:
        value += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    if TOTAL:
        tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
    length = tl.sqrt(tl.sum(value * value, 1))
    scale = root / tl.maximum(length, 1e-12)
    value = value * scale[:, None] * tl.load(gamma + channels, mask=within, other=0.0).to(tl.float32)[None]
    value = value * tl.sigmoid(value)
    result = value.to(out.dtype.element_ty)
    tl.store(out + (rows + before)[:, None] * C + channels[None], result, mask=inside)
    if KEEP:
        # The last of these pixels take the places of those that were kept, one for one, which move to where they are
        # read: the same program does both, first the one, then the other.
        late = inside & (rows >= pixels - before)[:, None]
        place = (rows - (pixels - before))[:, None] * C + channels[None]
        tl.store(out + place, tl.load(kept + place, mask=late), mask=late)
        tl.debug_barrier()
        tl.store(kept + place, result, mask=late)


def norm_silu(
    x: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    gamma: Tensor,
    total: Tensor | None,
    out: Tensor,
    kept: Tensor,
) -> None:
    """out = kept, then silu(n(s)), s = x + bias + other, n(s) = s / |s| * sqrt(C) * gamma; total = s; kept = the end of
    out. x, other, total [T, H, W, C], out [P + T, H, W, C], kept [P, H, W, C], contiguous; bias and gamma [C]."""
    channels, frames, past = x.shape[-1], len(x), len(kept)
    pixels, wide = x.numel() // channels, triton.next_power_of_2(channels)
    rows = max(1, VALUES // wide)
    given = (x, gamma if bias is None else bias, x if other is None else other, gamma, x if total is None else total)
    assert all(value.is_contiguous() for value in (x, out, kept)) and (other is None or other.is_contiguous())
    assert len(out) == past + frames and out.dtype == kept.dtype
    if frames < past:
        # Some of what is kept stays kept.
        out[:past].copy_(kept)
    _norm_silu[(triton.cdiv(pixels, rows),)](
        *given,
        out,
        kept,
        pixels,
        past * pixels // frames,
        math.sqrt(channels),
        C=channels,
        WIDE=wide,
        ROWS=rows,
        BIAS=bias is not None,
        OTHER=other is not None,
        TOTAL=total is not None,
        KEEP=frames >= past,
        num_warps=4,
    )
    if frames < past:
        kept.copy_(out[frames:])
