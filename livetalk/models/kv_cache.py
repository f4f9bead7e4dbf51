"""The block-wise key-value cache with anchor-heavy identity sinks (AHIS).

The window holds `window` latent frames: the first `anchors` frames of the session stay for ever, the others are a
ring of the latest ones, the current block included. Memory is allocated once and never moved: frame f lives in slot f
while f < anchors, else in slot anchors + (f - anchors) mod (window - anchors). Attention does not care about the
order of keys, so slot order serves as well as time order.

Positions. "absolute": keys are kept rotated at their index in the session, as published. "relative": keys are kept
un-rotated and turned to their rank inside the window at every pass, so positions stay in [0, window) and a session
never ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk.models.attention import Grid, Turn, View, attention
from livetalk.models.rope import rope_table, rotate

POSITIONS = ("absolute", "relative")


@dataclass(frozen=True)
class CacheConfig:
    """Sizes in latent frames. journal: how many blocks can be rewound (each costs one block's keys and values)."""

    window: int = 15
    anchors: int = 9
    block: int = 3
    positions: str = "relative"
    journal: int = 0

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"positions {self.positions!r}: choose one of {', '.join(POSITIONS)}")
        if min(self.block, self.window) < 1 or min(self.anchors, self.journal) < 0:
            raise ValueError(f"{self}: sizes must be positive")
        if self.anchors + self.block > self.window:
            raise ValueError(
                f"a window of {self.window} latent frames cannot hold {self.anchors} anchors and a block of "
                f"{self.block}: make the window at least {self.anchors + self.block}"
            )

    @property
    def ring(self) -> int:
        return self.window - self.anchors

    def slot(self, frame: int) -> int:
        return frame if frame < self.anchors else self.anchors + (frame - self.anchors) % self.ring


class KVCache:
    """Keys and values [layers, B, window * tokens, heads, d] of one session, and the host-side arithmetic around them.

    Used as an attend object: call `advance(frames)` when a block begins, then run any number of passes over it (each
    overwrites the block's own slots), then advance again.

    turned: keep keys at relative positions rotated too, so that passes over a block do not rotate the past anew. The
    same numbers, in less time and half as much memory again.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        rows: int,
        columns: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        turned: bool = False,
    ) -> None:
        self.config = config
        self.rows, self.columns = rows, columns
        self.tokens = rows * columns
        shape = (layers, batch, config.window * self.tokens, heads, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self._turned = torch.zeros_like(self.keys) if turned and config.positions == "relative" else None
        saved = (config.journal, 2, layers, batch, config.block * self.tokens, heads, head_dim)
        self._journal = torch.zeros(saved, dtype=dtype, device=device)
        self._ranks = rope_table(torch.arange(config.window, device=device), rows, columns, head_dim)
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory stays. seen: latent frames begun so far, blocks: blocks begun so far."""
        self.seen = 0
        self.blocks = 0
        self._held = 0
        self._starts: deque[int] = deque(maxlen=self.config.journal + 1)
        self._aged: set[int] = set()
        self._rewound = self._all_moved = False

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def repeatable(self) -> bool:
        """Later blocks overwrite what a pass has seen; one that carries gradient keeps a copy of it."""
        return torch.is_grad_enabled()

    def advance(self, frames: int | None = None) -> None:
        """Begins the next block of `frames` latent frames (default and at most the configured block)."""
        frames = self.config.block if frames is None else frames
        if not 1 <= frames <= self.config.block:
            raise ValueError(f"a block of {frames} latent frames: the cache was built for at most {self.config.block}")
        self._starts.append(self.seen)
        self.seen += frames
        self.blocks += 1
        self._held = min(self._held + 1, self.config.journal)
        self._aged.clear()
        self._all_moved, self._rewound = self._rewound, False
        if self.config.journal:
            index = self._slots(self._starts[-1], self.seen)
            entry = self._journal[(self.blocks - 1) % self.config.journal]
            entry[0][:, :, : len(index)] = self.keys[:, :, index]
            entry[1][:, :, : len(index)] = self.values[:, :, index]

    def rewind(self, blocks: int = 1) -> None:
        """Undoes the last `blocks` advances and all passes over them. Raises ValueError beyond the journal."""
        if not 0 <= blocks <= self._held:
            raise ValueError(f"cannot rewind {blocks} blocks: the journal holds {self._held}")
        self._held -= blocks
        self._rewound = True
        for _ in range(blocks):
            entry = self._journal[(self.blocks - 1) % self.config.journal]
            start = self._starts.pop()
            index = self._slots(start, self.seen)
            self.keys[:, :, index] = entry[0][:, :, : len(index)]
            self.values[:, :, index] = entry[1][:, :, : len(index)]
            self.seen = start
            self.blocks -= 1

    def open(self, grid: Grid, head_dim: int, device: torch.device) -> View:
        start = self._starts[-1] if self._starts else -1
        assert (grid.first, grid.frames) == (start, self.seen - start), (
            f"pass over latent frames {grid.first}+{grid.frames}, but the cache is at {start}+{self.seen - start}: "
            "call advance() when a block begins"
        )
        assert (grid.rows, grid.columns) == (self.rows, self.columns)
        if self.config.positions == "absolute":
            frames = torch.arange(start, self.seen, device=device)
            return self._view(rope_table(frames, self.rows, self.columns, head_dim), None, grid.turn)
        past = self._ranks.unflatten(0, (self.config.window, -1))
        last = min(self.seen, self.config.window)
        query = past[last - grid.frames : last].flatten(0, 1)
        return self._view(query, self._slot_table(past), grid.turn)

    def _slot_table(self, ranks: Tensor) -> Tensor:
        """Rotations of every slot in use: anchors keep their rank, the ring's ranks follow age."""
        config = self.config
        if self.seen <= config.window:
            return ranks[: self.seen].flatten(0, 1)
        oldest = (self.seen - config.ring - config.anchors) % config.ring
        ring = ranks[config.anchors :].roll(oldest, dims=0)
        return torch.cat([ranks[: config.anchors], ring]).flatten(0, 1)

    def _view(self, own: Tensor, slots: Tensor | None, turn: Turn) -> View:
        """own: rotations of the current block; slots: of every slot in use, or None when keys are kept rotated."""
        current = self._slots(self._starts[-1], self.seen)
        past = self._tokens_of(self._past()) if torch.is_grad_enabled() else None
        used = min(self.seen, self.config.window) * self.tokens
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        shown, moved = self.keys, None
        if self._turned is not None:
            shown, moved, ranks, slots = self._turned, self._moved(), slots, None

        def view(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, turned = turn(q, own), turn(k, own)
            graded = torch.is_grad_enabled() and k.requires_grad
            if moved is not None and layer not in kept:
                self._age(layer, moved, ranks, turn)
            if graded:
                if layer not in kept:
                    kept[layer] = self._copied(layer, shown, past, k.dtype)
                return self._graded(q, turned, v, kept[layer], None if slots is None else slots[past])
            if shown is self._turned:
                self.keys[layer].index_copy_(1, current, k.to(self.keys.dtype))
            shown[layer].index_copy_(1, current, (turned if slots is None else k).to(self.keys.dtype))
            self.values[layer].index_copy_(1, current, v.to(self.values.dtype))
            keys, values = shown[layer, :, :used], self.values[layer, :, :used]
            return attention(q, keys if slots is None else rotate(keys, slots), values)

        return view

    @torch.no_grad()
    def _age(self, layer: int, moved: Tensor, ranks: Tensor, turn: Turn) -> None:
        """Rotates the keys of the slots `moved` to their present ranks, once a block."""
        if layer not in self._aged:
            self._aged.add(layer)
            keys = turn(self.keys[layer].index_select(1, moved), ranks[moved])
            self._turned[layer].index_copy_(1, moved, keys)

    def _moved(self) -> Tensor | None:
        """Token indices of the past's slots whose ranks are not those of the block before, or that were restored."""
        if not self._all_moved and self.seen <= self.config.window:
            return None
        low = 0 if self._all_moved else self.config.anchors
        slots = [slot for slot in self._past() if slot >= low]
        return self._tokens_of(slots) if slots else None

    def _copied(self, layer: int, shown: Tensor, past: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots `past`, in the type in which passes make them."""
        return tuple(held[layer].index_select(1, past).to(dtype) for held in (shown, self.values))

    def _graded(
        self, q: Tensor, turned: Tensor, v: Tensor, past: tuple[Tensor, Tensor], slots: Tensor | None
    ) -> Tensor:
        """The pass that carries gradient sees the past by copies, so nothing autograd keeps is overwritten later, and
        the pass may be run again."""
        keys, values = past
        if slots is not None:
            keys = rotate(keys, slots)
        return attention(q, torch.cat([keys.to(turned.dtype), turned], 1), torch.cat([values.to(v.dtype), v], 1))

    def _slots(self, start: int, stop: int) -> Tensor:
        """Token indices of the slots of latent frames start .. stop-1."""
        return self._tokens_of([self.config.slot(frame) for frame in range(start, stop)])

    def _past(self) -> list[int]:
        """The slots in use that do not hold the current block."""
        current = {self.config.slot(frame) for frame in range(self._starts[-1], self.seen)}
        return [slot for slot in range(min(self.seen, self.config.window)) if slot not in current]

    def _tokens_of(self, slots: list[int]) -> Tensor:
        """Token indices of slots, made on the device: a copy from the host's memory would wait for it."""
        tokens, device = self.tokens, self.device
        parts = [torch.arange(slot * tokens, (slot + 1) * tokens, device=device) for slot in slots]
        return torch.cat([torch.arange(0, device=device), *parts])
