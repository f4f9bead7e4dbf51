"""What one stream holds on its device: window, decoder, lanes. PlainSeat is the obvious way and the other's test.

Blocks are denoised in order and decoded in order; the two may go on beside each other, in two threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from livetalk.conditions import Conditions
from livetalk.media import to_pixels
from livetalk.models.vae import DecoderState

if TYPE_CHECKING:
    from livetalk.streaming.performer import Performer


Fetch = Callable[[], np.ndarray]


class Seat(Protocol):
    """A stream's place. lanes: where denoising and decoding are queued, on a GPU. joint: a block is decoded as soon as
    it is denoised, in the same lane, and fetched by whoever decodes."""

    lanes: tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]
    joint: bool

    def opening(self, reference: Tensor) -> Any:
        """What `reset` takes, of the latent [1, 16, 1, h, w] of a picture; the stream before may still go on."""

    def reset(self, opening: Any) -> None:
        """Before the first block of a picture."""

    def features(self, sound: Tensor, frames: range) -> Tensor:
        """What frames hear, [1, n, C], from sound [1, S] of exactly their span."""

    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        """Clean latents of the next block, from noise [steps, *shape of the latents]."""

    def keep(self, latents: Tensor) -> None:
        """What is left to do so that later blocks see the block, once its latents are on their way."""

    def prompt(self, text: Tensor) -> None:
        """Makes ready for text features [1, L, text_dim] that blocks will soon have."""

    def decode(self, latents: Tensor) -> list[Fetch]:
        """Begins to decode the next latents; what it returns waits for their frames uint8 [n, H, W, 3] on the host, one
        for each part where some are there before others."""

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


@contextmanager
def following(lane: torch.cuda.Stream | None, device: torch.device) -> Iterator[None]:
    """Queues in a lane what comes after what the calling thread has queued so far; on a CPU it just runs."""
    if lane is None:
        yield
        return
    lane.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(lane):
        yield


def fetching(frames: Tensor) -> Fetch:
    """Begins to copy them into pinned memory, which PyTorch hands out again once nobody holds it. What it returns waits
    for this copy alone."""
    if frames.device.type == "cpu":
        return frames.numpy
    pinned = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
    pinned.copy_(frames, non_blocking=True)
    done = torch.cuda.current_stream(frames.device).record_event()

    def fetch() -> np.ndarray:
        done.synchronize()
        return pinned.numpy()

    return fetch


class PlainSeat:
    """The networks' own forwards, one kernel after the other."""

    joint = False

    def __init__(self, performer: Performer) -> None:
        self.performer = performer
        self.lanes = lanes(performer.device)
        with nullcontext() if self.lanes[0] is None else torch.cuda.stream(self.lanes[0]):
            self._cache = performer.new_cache()
        self._decoder = performer.decoder.decoder_state()

    def opening(self, reference: Tensor) -> DecoderState:
        with following(self.lanes[1], self.performer.device):
            return self.performer.decoder.decoder_state(reference)

    def reset(self, opening: DecoderState) -> None:
        self._cache.reset()
        self._decoder = opening

    def features(self, sound: Tensor, frames: range) -> Tensor:
        return self.performer.hearing.features(sound, frames)

    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        waiting: Iterator[Tensor] = iter(noise)

        def draw(shape: tuple[int, ...]) -> Tensor:
            drawn = next(waiting)
            assert drawn.shape == shape
            return drawn

        return self.performer.denoise(conditions, self._cache, draw)

    def keep(self, latents: Tensor) -> None:
        """Nothing: the last pass was made with the others."""

    def prompt(self, text: Tensor) -> None:
        """Nothing: every block does all of it."""

    def decode(self, latents: Tensor) -> list[Fetch]:
        frames = to_pixels(self.performer.decoder.decode_step(latents, self._decoder))
        return [lambda: frames]

    def rewind(self, blocks: int) -> None:
        self._cache.rewind(blocks)

    def snapshot(self) -> Any:
        return self._decoder.snapshot()

    def restore(self, snapshot: Any) -> None:
        self._decoder.restore(snapshot)
