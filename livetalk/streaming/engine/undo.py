"""Copies of tensors that a stream is about to overwrite, to go back to: on its device, or in the host's memory.

Both have numbered places, allocated once. The tensors that are copied may fill a place in part, from index 0 of each
dimension on. Between `save` or `load` and the next change or reading of them, the stream calls `settle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

SLAB = 1 << 30
"""Bytes of the host's memory that are asked for at once. PyTorch rounds each request for pinned memory up to a power of
two, so that many small ones, or one large one, might take nearly twice what they hold."""
ALIGNED = 512


class Places(Protocol):
    """Where copies lie; see OnDevice and OnHost."""

    def save(self, place: int, values: Sequence[Tensor]) -> None:
        """Copies values into a place."""

    def load(self, place: int, into: Sequence[Tensor]) -> None:
        """Copies them back."""

    def settle(self) -> None:
        """What the current stream does from here on comes after all copies so far."""


def places_of(
    host: bool, like: Sequence[Tensor], count: int, device: torch.device | str, staged: bool = False
) -> Places:
    """So many places for copies of tensors like these, which may be on the meta device unless they are the very ones
    that are copied from the host's places and to them. staged: see OnHost."""
    return OnHost(like, count, device, staged) if host else OnDevice(like, count, device)


def part(place: Tensor, value: Tensor) -> Tensor:
    """What of a place holds a value that may be smaller."""
    return place[tuple(map(slice, value.shape))]


class OnDevice:
    """Copied in the current stream."""

    def __init__(self, like: Sequence[Tensor], count: int, device: torch.device | str) -> None:
        self._places = [[torch.zeros_like(one, device=device) for one in like] for _ in range(count)]

    def save(self, place: int, values: Sequence[Tensor]) -> None:
        for held, value in zip(self._places[place], values, strict=True):
            part(held, value).copy_(value)

    def load(self, place: int, into: Sequence[Tensor]) -> None:
        for held, value in zip(self._places[place], into, strict=True):
            value.copy_(part(held, value))

    def settle(self) -> None:
        """Nothing: one stream does it all."""


class OnHost:
    """Pinned memory, copied to and from by a CUDA stream of its own beside what the current one does; ordinary memory
    on a CPU.

    staged: values are first copied in the current stream, quickly, to tensors `like` them on the device, so that they
    may be overwritten at once and be parts of larger ones; `settle` is called here. Otherwise the values are `like`
    itself, whole and contiguous, at rest until the stream settles.
    """

    def __init__(self, like: Sequence[Tensor], count: int, device: torch.device | str, staged: bool) -> None:
        self._places = _carved([one for _ in range(count) for one in like], torch.device(device).type == "cuda")
        self._width = len(like)
        self._staging = [torch.zeros_like(one, device=device) for one in like] if staged else None
        self._moving: torch.cuda.Stream | None = None
        self._done: torch.cuda.Event | None = None
        if torch.device(device).type == "cuda":
            self._moving = torch.cuda.Stream(device)
            # When they are given up, their memory is nobody else's before the last move is over.
            for value in self._staging or like:
                value.record_stream(self._moving)

    def save(self, place: int, values: Sequence[Tensor]) -> None:
        if self._staging is not None:
            self.settle()
            for stage, value in zip(self._staging, values, strict=True):
                part(stage, value).copy_(value)
            values = self._staging
        self._move(values, self._held(place))

    def load(self, place: int, into: Sequence[Tensor]) -> None:
        self._move(self._held(place), into if self._staging is None else self._staging)
        if self._staging is not None:
            self.settle()
            for stage, value in zip(self._staging, into, strict=True):
                value.copy_(part(stage, value))

    def settle(self) -> None:
        if self._done is not None:
            torch.cuda.current_stream(self._moving.device).wait_event(self._done)

    def _held(self, place: int) -> list[Tensor]:
        return self._places[place * self._width : (place + 1) * self._width]

    def _move(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """After what the current stream has been given so far, and after the moves before."""
        if self._moving is None:
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source)
            return
        self._moving.wait_stream(torch.cuda.current_stream(self._moving.device))
        with torch.cuda.stream(self._moving):
            for source, target in zip(sources, targets, strict=True):
                # In one piece each, or PyTorch would copy it into memory of its own on the way.
                assert source.is_contiguous() and target.is_contiguous()
                target.copy_(source, non_blocking=True)
            self._done = self._moving.record_event()


def host_bytes(like: Sequence[Tensor], count: int) -> int:
    """What OnHost takes of pinned memory, as PyTorch rounds it."""
    return sum(1 << (size - 1).bit_length() for size in _packed([one.nbytes for one in like] * count)[0])


def _packed(sizes: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Bytes of each slab, and each piece's slab and offset there: the first slab with room for it, else a new one."""
    slabs: list[int] = []
    at: list[tuple[int, int]] = []
    for size in sizes:
        size = -(-size // ALIGNED) * ALIGNED
        slab = next((index for index, full in enumerate(slabs) if full + size <= SLAB), len(slabs))
        if slab == len(slabs):
            slabs.append(0)
        at.append((slab, slabs[slab]))
        slabs[slab] += size
    return slabs, at


def _carved(like: Sequence[Tensor], pinned: bool) -> list[Tensor]:
    """Tensors like these in the host's memory."""
    sizes, at = _packed([one.nbytes for one in like])
    slabs = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
    return [
        slabs[slab][start : start + one.nbytes].view(one.dtype).view(one.shape)
        for one, (slab, start) in zip(like, at, strict=True)
    ]
