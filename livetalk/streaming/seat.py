"""What one stream holds on its device: window, decoder, lanes. PlainSeat is the obvious way and the other's test.

Blocks are denoised in order and decoded in order; the two may go on beside each other, in two threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from livetalk.conditions import Conditions
from livetalk.media import to_pixels

if TYPE_CHECKING:
    from livetalk.streaming.performer import Performer


class Seat(Protocol):
    """A stream's place. lanes: where denoising and decoding are queued, on a GPU."""

    lanes: tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]

    def reset(self) -> None:
        """Before the first block."""

    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        """Clean latents of the next block, from noise [steps, *shape of the latents]."""

    def keep(self, latents: Tensor) -> None:
        """What is left to do so that later blocks see the block, once its latents are on their way."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Frames uint8 [n, H, W, 3] of the next latents, on the host."""

    def rewind(self, blocks: int) -> None:
        """Undoes the denoising of the latest blocks."""

    def snapshot(self) -> Any:
        """What `restore` takes to bring the decoder back to here."""

    def restore(self, snapshot: Any) -> None:
        """Brings the decoder back."""


def lanes(device: torch.device) -> tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]:
    """Streams of their own, so that decoding runs beside denoising and streams beside each other. Decoding goes first:
    its frames are waited for."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.Stream(device), torch.cuda.Stream(device, priority=-1)


def to_host(frames: Tensor) -> np.ndarray:
    """The same in pinned memory, which PyTorch hands out again once nobody holds it; waits for this copy alone."""
    if frames.device.type == "cpu":
        return frames.numpy()
    pinned = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
    pinned.copy_(frames, non_blocking=True)
    torch.cuda.current_stream(frames.device).record_event().synchronize()
    return pinned.numpy()


class PlainSeat:
    """The networks' own forwards, one kernel after the other."""

    def __init__(self, performer: Performer) -> None:
        self.performer = performer
        self.lanes = lanes(performer.device)
        with nullcontext() if self.lanes[0] is None else torch.cuda.stream(self.lanes[0]):
            self._cache = performer.new_cache()
        self._decoder = performer.decoder.decoder_state()

    def reset(self) -> None:
        self._cache.reset()
        self._decoder.reset()

    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        waiting: Iterator[Tensor] = iter(noise)

        def draw(shape: tuple[int, ...]) -> Tensor:
            drawn = next(waiting)
            assert drawn.shape == shape
            return drawn

        return self.performer.denoise(conditions, self._cache, draw)

    def keep(self, latents: Tensor) -> None:
        """Nothing: the last pass was made with the others."""

    def decode(self, latents: Tensor) -> np.ndarray:
        return to_pixels(self.performer.decoder.decode_step(latents, self._decoder))

    def rewind(self, blocks: int) -> None:
        self._cache.rewind(blocks)

    def snapshot(self) -> Any:
        return self._decoder.snapshot()

    def restore(self, snapshot: Any) -> None:
        self._decoder.restore(snapshot)
