"""Who sees whom: the `attend` argument of the transformer.

An attend object offers `open(grid, heads_dim, device)`, called once a pass, and returns a view: a callable
(layer, q, k, v) -> [B, S, heads, d] on un-rotated queries, keys and values [B, S, heads, d]. Positions, masks and
caches live in the attend object; the transformer has no modes. The third kind, cached, is kv_cache.KVCache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.models.rope import rope_table, rotate

View = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Turn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """The tokens of a pass: `frames` latent frames from index `first` on, each of rows x columns tokens. turn: what
    rotates queries and keys; rope.rotate, or that compiled."""

    first: int
    frames: int
    rows: int
    columns: int
    turn: Turn = rotate

    @property
    def tokens_per_frame(self) -> int:
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.frames * self.tokens_per_frame


class Attend(Protocol):
    repeatable: bool
    """Whether a pass can be run again at any later time and see the same."""

    def open(self, grid: Grid, head_dim: int, device: torch.device) -> View: ...


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention on [B, S, heads, d]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _table(grid: Grid, head_dim: int, device: torch.device) -> Tensor:
    frames = torch.arange(grid.first, grid.first + grid.frames, device=device)
    return rope_table(frames, grid.rows, grid.columns, head_dim)


@dataclass(frozen=True)
class FullAttention:
    """Every token sees every token: the bidirectional teacher and critic."""

    repeatable: ClassVar[bool] = True

    def open(self, grid: Grid, head_dim: int, device: torch.device) -> View:
        table, turn = _table(grid, head_dim, device), grid.turn
        return lambda layer, q, k, v: attention(turn(q, table), turn(k, table), v)


@dataclass(frozen=True)
class BlockCausal:
    """Full attention inside a block of latent frames and to earlier blocks, over a whole clip at once.

    window, anchors: with a window, a block sees the first `anchors` frames and the latest others, `window` frames in
    all with its own, at absolute positions: what KVCache shows it. The mask is the obvious path; without a window the
    blocks are attended one after another, which is the same and skips the masked half.
    """

    block: int
    window: int | None = None
    anchors: int = 0
    masked: bool = False
    repeatable: ClassVar[bool] = True

    def open(self, grid: Grid, head_dim: int, device: torch.device) -> View:
        table, turn = _table(grid, head_dim, device), grid.turn
        if self.masked or self.window is not None:
            frames = self._visible(grid.frames, device)
            per = grid.tokens_per_frame
            mask = frames.repeat_interleave(per, 0).repeat_interleave(per, 1)
            return lambda layer, q, k, v: attention(turn(q, table), turn(k, table), v, mask)
        step = self.block * grid.tokens_per_frame

        def view(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = turn(q, table), turn(k, table)
            parts = [
                attention(q[:, start : start + step], k[:, : start + step], v[:, : start + step])
                for start in range(0, q.shape[1], step)
            ]
            return torch.cat(parts, dim=1)

        return view

    def _visible(self, frames: int, device: torch.device) -> Tensor:
        """[frames, frames] boolean: may the row's frame see the column's."""
        index = torch.arange(frames, device=device)
        end = (index // self.block + 1) * self.block
        seen = index[None] < end[:, None]
        if self.window is None:
            return seen
        ring = self.window - self.anchors
        return seen & ((index[None] < self.anchors) | (index[None] >= end[:, None] - ring))
