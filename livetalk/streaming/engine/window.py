"""Keys and values of a window at fixed addresses, in the order of their ranks: what a captured pass can read.

The same frames at the same relative positions as models.kv_cache.KVCache shows: `anchors` first latent frames for ever,
then the latest others. There a ring is addressed anew for every block; here the rolling frames move down by a block
when one begins, a small copy, and every pass over a full window has the same addresses.

Keys are kept rotated at their rank, so that a pass turns its own alone. Those of the rolling frames are kept
un-rotated, too, as the last pass over their block left them: they get another rank when the window moves on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk.models.kv_cache import CacheConfig
from livetalk.models.rope import rope_table, rotate
from livetalk.streaming.engine.undo import places_of


@dataclass(frozen=True)
class Own:
    """Where a pass over the current block writes in one layer, [tokens of the block, heads, d], and what it sees
    [tokens in use, heads, d]. raw: the un-rotated keys, written by the last pass alone."""

    keys: Tensor
    values: Tensor
    raw: Tensor
    seen_keys: Tensor
    seen_values: Tensor


def leaving_of(
    layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, key_dtype: torch.dtype
) -> list[Tensor]:
    """What a block displaces at most, un-rotated keys and values, without memory."""
    shape = (layers, tokens, heads, head_dim)
    return [torch.empty(shape, dtype=kind, device="meta") for kind in (dtype, key_dtype)]


def turn(keys: Tensor, raw: Tensor, table: Tensor) -> None:
    """Rotates raw [layers, tokens, heads, d] into keys of that shape, by table as `rotate` takes it. As one kernel it
    takes no memory of its own; eagerly it takes several times that of raw, in float32."""
    keys.copy_(rotate(raw, table))


def turn_by_layer(keys: Tensor, raw: Tensor, table: Tensor) -> None:
    """The same with the memory of a single layer."""
    for into, out_of in zip(keys, raw, strict=True):
        turn(into, out_of, table)


class WindowCache:
    """One session's window, [layers, window * tokens, heads, d]. `fill` is how many latent frames are in use after
    `advance`: with whole blocks it has a handful of values, then stays at the window's size."""

    def __init__(
        self,
        config: CacheConfig,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        rows: int,
        columns: int,
        dtype: torch.dtype,
        device: torch.device | str,
        key_dtype: torch.dtype | None = None,
        host: bool = False,
        turn: Callable[[Tensor, Tensor, Tensor], None] = turn_by_layer,
    ) -> None:
        """key_dtype: of what attention reads, by default `dtype`; a narrower one where attention is in fp8. host: what
        leaves is kept in the host's memory. turn: what rotates all layers' rolling keys for another rank."""
        if config.positions != "relative":
            raise ValueError(f"positions {config.positions!r}: the engine keeps relative ones, use engine.path=plain")
        self.config, self.tokens = config, rows * columns
        key_dtype = dtype if key_dtype is None else key_dtype
        new = {"dtype": key_dtype, "device": device}
        shape = (layers, config.window * self.tokens, heads, head_dim)
        self.keys, self.values = torch.zeros(shape, **new), torch.zeros(shape, **new)
        self._turn_all = turn
        rolling = (layers, config.ring * self.tokens, heads, head_dim)
        self.raw = torch.zeros(rolling, dtype=dtype, device=device)
        saved = leaving_of(layers, config.block * self.tokens, heads, head_dim, dtype, key_dtype)
        self._saved = places_of(host, saved, config.journal, device, staged=True)
        self.ranks = rope_table(torch.arange(config.window, device=device), rows, columns, head_dim)
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self.seen = self.blocks = self._held = 0
        self._moves: deque[int] = deque(maxlen=max(1, self.config.journal))

    @property
    def fill(self) -> int:
        return min(self.seen, self.config.window)

    def fills(self) -> list[int]:
        """All values of `fill` after advance."""
        block, window = self.config.block, self.config.window
        return [min(block * index, window) for index in range(1, -(-window // block) + 1)]

    def advance(self) -> None:
        """Begins the next block; the oldest rolling frames leave, saved for as many blocks as the journal has."""
        config, block = self.config, self.config.block
        move = max(0, self.seen + block - config.window) - max(0, self.seen - config.window)
        if config.journal and move:
            self._saved.save(self.blocks % config.journal, self._leaving(move))
        self._shift(move)
        self.seen += block
        self.blocks += 1
        self._held = min(self._held + 1, config.journal)
        self._moves.append(move)
        self._turn()

    def rewind(self, blocks: int = 1) -> None:
        """Undoes the last `blocks` advances and all passes over them; a pass may follow `advance` alone, which turns
        the keys. Raises ValueError beyond the journal."""
        if not 0 <= blocks <= self._held:
            raise ValueError(f"cannot rewind {blocks} blocks: the journal holds {self._held}")
        self._held -= blocks
        for _ in range(blocks):
            self.blocks -= 1
            self.seen -= self.config.block
            if move := self._moves.pop():
                self._shift(-move)
                self._saved.load(self.blocks % self.config.journal, self._leaving(move))

    def _leaving(self, frames: int) -> tuple[Tensor, Tensor]:
        """The oldest rolling frames' un-rotated keys and values."""
        low, size = self.config.anchors * self.tokens, frames * self.tokens
        return self.raw[:, :size], self.values[:, low : low + size]

    def own(self, layer: int) -> Own:
        """Of the current block, in one layer. Anchors never turn: a block among them has no un-rotated keys, and those
        of a block that is partly among them are kept for its rolling frames alone, which the caller sees by the size of
        raw."""
        used, size = self.fill * self.tokens, self.config.block * self.tokens
        start = used - size
        rolling = max(0, start - self.config.anchors * self.tokens)
        raw = self.raw[layer, rolling : max(0, used - self.config.anchors * self.tokens)]
        keys, values = self.keys[layer], self.values[layer]
        return Own(keys[start:used], values[start:used], raw, keys[:used], values[:used])

    def own_ranks(self) -> Tensor:
        """Rotations of the current block, [block * tokens, 1, d / 2, 2] float32."""
        used = self.fill * self.tokens
        return self.ranks[used - self.config.block * self.tokens : used]

    def _shift(self, frames: int) -> None:
        """Moves rolling frames' un-rotated keys and values down by `frames`; up if negative."""
        size, ring, low = abs(frames) * self.tokens, self.config.ring * self.tokens, self.config.anchors * self.tokens
        if not size:
            return
        # In pieces no longer than the distance, from the end it moves to: a copy must not overlap itself.
        starts = range(0, ring - size, size)
        for start in starts if frames > 0 else reversed(starts):
            count = min(size, ring - size - start)
            into, out_of = (start, start + size) if frames > 0 else (start + size, start)
            self.raw[:, into : into + count] = self.raw[:, out_of : out_of + count]
            self.values[:, low + into : low + into + count] = self.values[:, low + out_of : low + out_of + count]

    def _turn(self) -> None:
        """Rotates the rolling frames before the current block at the ranks they have now. Anchors keep theirs."""
        low = self.config.anchors * self.tokens
        high = (self.fill - self.config.block) * self.tokens
        if high > low:
            self._turn_all(self.keys[:, low:high], self.raw[:, : high - low], self.ranks[low:high])
