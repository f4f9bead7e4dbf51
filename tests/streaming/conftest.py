"""Tiny random performers, a clock that is moved by hand, and sound that says where each of its samples comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.geometry import FPS, Geometry
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from livetalk.streaming.player import Shown
from livetalk.streaming.session import Block, Session

FACE = Image.new("RGB", (50, 40), (200, 120, 90))
OTHER_FACE = Image.new("RGB", (40, 40), (40, 90, 200))
TINY = Geometry(height=16, width=16, clip_latents=6, window=9, anchors=3)
DEEP = StreamConfig(lead_ms=8000)
"""Remembers more blocks than any test here takes back."""


class HandClock:
    """A playback position that only tests move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def speech(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32) * 0.1


def numbered(first: int, count: int) -> np.ndarray:
    """Samples whose values tell their numbers, exactly: number n (from 1) is n / 2^23."""
    return np.arange(first, first + count, dtype=np.float32) / 2**23


def frames_of(blocks: list[Block]) -> np.ndarray:
    return np.concatenate([block.frames for block in blocks])


def sound_of(blocks: list[Block]) -> np.ndarray:
    return np.concatenate([block.sound for block in blocks])


def take(session: Session, blocks: int, fill: bool = False) -> list[Block]:
    """Exactly that many blocks."""
    taken = [session.next_block(fill) for _ in range(blocks)]
    assert all(block is not None for block in taken)
    return taken


def same(first: list[Block], second: list[Block]) -> bool:
    """Whether two streams show and say the same, frame by frame at the same time, however cut into blocks."""
    times = [[block.first / FPS for block in blocks[:1]] for blocks in (first, second)]
    pictures = np.array_equal(frames_of(first), frames_of(second))
    return times[0] == times[1] and pictures and np.array_equal(sound_of(first), sound_of(second))


class Counting:
    """A decoder that paints on each frame which one of the take it is; its state is how many it has made."""

    class State:
        def __init__(self):
            self.reset()

        def reset(self):
            self.frames = 0

        def snapshot(self):
            return self.frames

        def restore(self, frames):
            self.frames = frames

    def decoder_state(self, first=None):
        return self.State()

    def decode_step(self, latents, state):
        first, state.frames = state.frames, state.frames + 4 * latents.shape[2] - 3 * (state.frames == 0)
        grey = (torch.arange(first, state.frames) % 200) / 127.5 - 1
        return grey[None, None, :, None, None].expand(1, 3, -1, 16, 16)


class Deaf:
    """Hears what its model hears, and nothing in it: random weights make nothing of it anyway, but take their time."""

    def __init__(self, hearing):
        self.span = hearing.span
        self.channels = hearing.encoder.config.channels

    def features(self, sound, frames):
        return torch.zeros(1, len(frames), self.channels)


def quick(performer: Performer) -> Performer:
    """The same with a decoder and a hearing that take no time, for tests of the order of things."""
    performer.decoder, performer.hearing = Counting(), Deaf(performer.hearing)
    return performer


class Witness:
    """Sees that frames follow each other and that numbered sound comes in order. heard: samples, missed: those left
    out before the last one heard."""

    def __init__(self) -> None:
        self.frames = self.heard = self.last = 0

    @property
    def missed(self) -> int:
        return self.last - self.heard

    def sees(self, shown: Shown) -> None:
        assert shown.index == self.frames
        self.frames += 1
        numbers = np.rint(shown.sound[shown.sound > 0] * 2**23).astype(int)
        assert (np.diff(numbers, prepend=self.last) > 0).all()
        self.heard += len(numbers)
        self.last = int(numbers[-1]) if len(numbers) else self.last


@pytest.fixture
def make(tiny_parts):
    """Makes a tiny performer: make(config, geometry=TINY, timesteps=(1000.0, 500.0))."""

    def build(config: StreamConfig | None = None, geometry: Geometry = TINY, timesteps=(1000.0, 500.0)) -> Performer:
        parts = tiny_parts
        return Performer(
            parts["generator"], parts["vae"], parts["audio"], parts["text"], geometry, timesteps, config=config
        )

    return build


@pytest.fixture
def performer(make) -> Performer:
    return make(DEEP)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()
