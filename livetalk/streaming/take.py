"""One performance of one picture, the model's side: cache, decoder state and noise, block by block, and back.

A block is denoised, then decoded; blocks are denoised in order and decoded in order, and the two may run beside each
other in two threads. `rewind` undoes the latest blocks, decoded or not. Everything is local to the take: block 0 begins
with the picture itself, frame 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.conditions import Conditions, group_audio
from livetalk.streaming.performer import Performer
from livetalk.streaming.seat import Fetch


@dataclass
class Ticket:
    """Says of a rendered block from which frame of the stream on it is no longer valid; None: all of it is."""

    stale_from: int | None = None

    def expire(self, frame: int) -> None:
        """It is no longer valid from `frame` on, nor from where it was not before."""
        self.stale_from = frame if self.stale_from is None else min(frame, self.stale_from)


@dataclass
class Rendering:
    """A block of a take, latents [1, 16, block, h, w], and what it takes to undo it.

    noise: the generator's state before it. decoder: the decoder's before it, once `decoded`. fetches: wait for its
    frames, part by part, until that was done; given: how many are there.
    """

    index: int
    frames: range
    latents: Tensor
    noise: Tensor
    done: torch.cuda.Event | None
    decoded: bool = False
    decoder: Any = None
    fetches: list[Fetch] = field(default_factory=list)
    given: int = 0
    ticket: Ticket = field(default_factory=Ticket)

    @property
    def made(self) -> int:
        """One past the last of its frames that is there."""
        return self.frames.start + self.given

    @property
    def over(self) -> bool:
        """Whether all of its frames are there."""
        return self.made == self.frames.stop


class Take:
    """One thread may denoise while another decodes; rewind and restart need both to rest."""

    def __init__(self, performer: Performer) -> None:
        """A place, in which `restart` begins."""
        self.performer = performer
        with torch.inference_mode():
            self._seat = performer.seat(self)
        self._denoising, self._decoding = self._seat.lanes
        self._joint = self._seat.joint
        self._generator = torch.Generator("cpu")
        self._sending = Sending(performer.device, performer.dtype)

    @torch.inference_mode()
    def opening(self, reference: Tensor) -> Any:
        """What `restart` takes, of a reference latent [1, 16, 1, h, w]: work that the picture alone decides. The blocks
        so far may go on meanwhile."""
        return self._seat.opening(reference)

    def restart(self, reference: Tensor, seed: int, opening: Any) -> None:
        """Begins anew, with a reference latent and what was made of it; the blocks so far are forgotten."""
        self.follow()
        for lane in self._seat.lanes:
            if lane is not None:
                # What is still queued reads the picture that is let go of here.
                lane.synchronize()
        with torch.inference_mode():
            self._seat.reset(opening)
        self._reference = reference
        self._generator.manual_seed(seed)
        self._draw_ahead()
        self.blocks = 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While it lasts, `denoise` leaves decoding to `decode`."""
        joint, self._joint = self._joint, False
        try:
            yield
        finally:
            self._joint = joint

    def lane(self) -> AbstractContextManager:
        """Where the denoiser's work is queued, on a GPU."""
        return nullcontext() if self._denoising is None else torch.cuda.stream(self._denoising)

    def follow(self) -> None:
        """What the calling thread has queued on a GPU so far comes before whatever is denoised next."""
        if self._denoising is not None:
            self._denoising.wait_stream(torch.cuda.current_stream(self.performer.device))

    @torch.inference_mode()
    def prompt(self, text: Tensor) -> None:
        """Makes ready for text features before the first block has them; only while nothing is rendered."""
        with self.lane():
            self._seat.prompt(text)

    @torch.inference_mode()
    def denoise(self, sound: np.ndarray, text: Tensor) -> Rendering:
        """Makes the next block from the sound of its hearing's span and text features [1, L, text_dim]."""
        performer, index, seat = self.performer, self.blocks, self._seat
        frames = performer.geometry.block_frames(index)
        before, noise = self._ahead
        with self.lane():
            conditions = self._conditions(sound, text, frames)
            latents = seat.denoise(conditions, noise)
            done = None if self._denoising is None else self._denoising.record_event()
            rendering = Rendering(index, frames, latents, before, done)
            if self._joint:
                self._begin(rendering)
            seat.keep(latents)
        self._draw_ahead()
        self.blocks += 1
        return rendering

    @torch.inference_mode()
    def decode(self, rendering: Rendering) -> np.ndarray:
        """The next frames uint8 [n, H, W, 3] of a block, until it is `over`; then of the next after it."""
        if not rendering.decoded:
            with nullcontext() if self._decoding is None else torch.cuda.stream(self._decoding):
                if self._decoding is not None:
                    self._decoding.wait_event(rendering.done)
                self._begin(rendering)
        # Until the frames are there `rendering` keeps the latents alive.
        frames = rendering.fetches.pop(0)()
        rendering.given += len(frames)
        return frames

    def _begin(self, rendering: Rendering) -> None:
        """Queues the decoding of a block in the current lane."""
        rendering.decoder, rendering.decoded = self._seat.snapshot(), True
        rendering.fetches = self._seat.decode(rendering.latents)

    @torch.inference_mode()
    def rewind(self, undone: list[Rendering]) -> None:
        """Goes back to before the latest blocks, given in the order they were made: it is as if they never were."""
        assert [rendering.index for rendering in undone] == [*range(self.blocks - len(undone), self.blocks)]
        with self.lane():
            self._seat.rewind(len(undone))
        self.blocks -= len(undone)
        if undone:
            # Blocks are decoded in order: if any of them was, then the first.
            self._generator.set_state(undone[0].noise)
            if undone[0].decoded:
                self._seat.restore(undone[0].decoder)
            self._draw_ahead()

    def _conditions(self, sound: np.ndarray, text: Tensor, frames: range) -> Conditions:
        performer, block = self.performer, self.performer.geometry.block
        pcm = self._sending.sent((1, len(sound)), lambda place: np.copyto(place.numpy()[0], sound))
        features = self._seat.features(pcm, frames)
        grouped = group_audio(features) if frames.start == 0 else features.reshape(1, block, -1)
        return Conditions(text, self._reference, grouped.to(performer.dtype), first=self.blocks * block)

    @torch.inference_mode()
    def _draw_ahead(self) -> None:
        """Draws for the next block while the card is at work on this one: the generator's state before, and all draws
        [steps, *shape of the latents] in the order in which the sampler asks for them."""
        before, shape = self._generator.get_state(), self.performer.latent_shape

        def draw(place: Tensor) -> None:
            for one in place:
                torch.randn(shape, generator=self._generator, out=one)

        with self.lane():
            self._ahead = before, self._sending.sent((len(self.performer.timesteps), *shape), draw)


class Sending:
    """Tensors on their way to a device and its precision, so that neither the host nor the card waits.

    On a GPU they are written into pinned memory that is used again and again: asking for more takes tens of
    milliseconds while the card is at work.
    """

    RING = 3

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._rings: dict[tuple[int, ...], deque[tuple[Tensor, torch.cuda.Event]]] = {}

    def sent(self, shape: tuple[int, ...], write: Callable[[Tensor], None]) -> Tensor:
        """What `write` puts into float32 memory of a shape, on the device, for the current stream."""
        if self.device.type != "cuda":
            write(place := torch.empty(shape))
            return place.to(self.device, self.dtype)
        ring = self._rings.setdefault(shape, deque())
        if len(ring) < self.RING:
            place = torch.empty(shape, pin_memory=True)
        else:
            place, copied = ring.popleft()
            copied.synchronize()
        write(place)
        out = place.to(self.device, non_blocking=True)
        ring.append((place, torch.cuda.current_stream(self.device).record_event()))
        return out.to(self.dtype)
