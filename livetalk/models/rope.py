"""Rotary position embedding over time, rows and columns, from integer frame positions, without an upper limit.

Of the d/2 rotated pairs of a head, rows and columns take (d/2) // 3 each and time the rest; pair i of an axis with
width w entries turns by position * 10000^(-2i / w) (Su et al., arXiv:2104.09864). Angles are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs of the time, row and column axes."""
    pairs = head_dim // 2
    space = pairs // 3
    return pairs - 2 * space, space, space


def _angles(positions: Tensor, pairs: int) -> Tensor:
    exponent = torch.arange(pairs, dtype=torch.float64, device=positions.device) / pairs
    return positions.double()[:, None] * BASE**-exponent


def rope_table(frames: Tensor, rows: int, columns: int, head_dim: int) -> Tensor:
    """Cosines and sines [n * rows * columns, 1, head_dim / 2, 2] in float32; frames: integer positions [n]."""
    device = frames.device
    time, height, width = axis_pairs(head_dim)
    t = _angles(frames, time)[:, None, None].expand(-1, rows, columns, -1)
    h = _angles(torch.arange(rows, device=device), height)[None, :, None].expand(len(frames), -1, columns, -1)
    w = _angles(torch.arange(columns, device=device), width)[None, None].expand(len(frames), rows, -1, -1)
    angle = torch.cat([t, h, w], dim=-1).reshape(-1, 1, head_dim // 2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns the interleaved pairs of x [B, S, heads, d] by table [S, 1, d/2, 2]; float32 (or wider) inside."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    cos, sin = table.to(wide.dtype).unbind(-1)
    even, odd = wide.unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
