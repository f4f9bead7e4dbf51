"""Sum, norm over channels and SiLU of a picture in one reading of it."""

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
    pixels,
    root,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    OTHER: tl.constexpr,
    TOTAL: tl.constexpr,
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
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, bias: Tensor | None, other: Tensor | None, gamma: Tensor, total: Tensor | None, out: Tensor):
    """out = silu(n(s)), s = x + bias + other, n(s) = s / |s| * sqrt(C) * gamma; total = s. All but bias and gamma [C]
    are [T, H, W, C], contiguous."""
    channels = x.shape[-1]
    pixels, wide = x.numel() // channels, triton.next_power_of_2(channels)
    rows = max(1, VALUES // wide)
    given = (x, gamma if bias is None else bias, x if other is None else other, gamma, x if total is None else total)
    assert all(value.is_contiguous() for value in (x, out)) and (other is None or other.is_contiguous())
    _norm_silu[(triton.cdiv(pixels, rows),)](
        *given,
        out,
        pixels,
        math.sqrt(channels),
        C=channels,
        WIDE=wide,
        ROWS=rows,
        BIAS=bias is not None,
        OTHER=other is not None,
        TOTAL=total is not None,
        num_warps=4,
    )
