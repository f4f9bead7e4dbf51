"""Shows a stream at its pace: a frame and its sound every 1 / FPS s, to whoever sends pictures and whoever sends sound.

Both have one timeline. Tick n begins n / FPS seconds after the origin; the sound of tick n is samples n * TICK_SAMPLES
and on, at SEND_RATE. So picture and sound cannot drift: where the stream has no frame in time, the last one stays, with
silence, for a whole tick; where this process stood still for long, the origin moves for both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from livetalk.streaming.block import Block
from livetalk.streaming.player import Player, Shown

SEND_RATE = 48_000
TICK_SAMPLES = SEND_RATE // FPS
CHUNK = 960
"""Samples of sound that are sent at once, 20 ms."""
EARLY = 324
"""Samples by which sound is sent early: resampling (36) and Opus (what its encoder looks ahead) make it as late."""
AHEAD_S = (CHUNK + EARLY) / SEND_RATE
"""A tick is taken that much before it begins: sound goes out in chunks, and one may reach into the next tick."""
LATE_S = 0.5
"""When a tick is later than that, all that follow are, too, instead of being hurried after."""
MOST_FRAMES = 8
"""Frames that may wait to be sent; whoever is slower loses the oldest."""
MOST_SOUND = 2 * SEND_RATE
"""Samples that may wait to be sent."""

TAPS = 24
FACTOR = SEND_RATE // SAMPLE_RATE
FADE = 96
"""Samples over which sound that was cut off fades, 6 ms at SAMPLE_RATE: a step to silence would click."""


class Upsampler:
    """Sound at SAMPLE_RATE in pieces -> at SEND_RATE, TAPS / 2 samples (0.75 ms) late, the same however it is cut."""

    def __init__(self) -> None:
        at = (np.arange(TAPS * FACTOR) - (TAPS * FACTOR - 1) / 2) / FACTOR
        low_pass = np.sinc(0.95 * at) * np.kaiser(TAPS * FACTOR, 6.0)
        phases = low_pass.reshape(TAPS, FACTOR).T
        self._phases = (phases / phases.sum(axis=1, keepdims=True)).astype(np.float32)
        self._past = np.zeros(TAPS - 1, np.float32)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """float32 [n] -> float32 [n * FACTOR]."""
        joined = np.concatenate([self._past, sound])
        self._past = joined[len(joined) - TAPS + 1 :]
        parts = [np.convolve(joined, phase, mode="valid") for phase in self._phases]
        return np.stack(parts, axis=1).reshape(-1)


class Overrun(Exception):
    """Sound is not taken as fast as it is made: the connection is stuck."""


class Playout:
    """Pulls from `player`. first: the frame shown until there is one; finish: what is done to each, see Finish.

    seen: called with each tick's frame (None if it stays) and when it is sent, in the event loop's time.
    """

    def __init__(
        self,
        player: Player,
        first: np.ndarray,
        finish: Callable[[np.ndarray], np.ndarray],
        seen: Callable[[Shown | None, float], None] = lambda shown, at: None,
    ) -> None:
        self._player, self._finish, self._seen = player, finish, seen
        self._frame = finish(first)
        self._upsample = Upsampler()
        self._last = 0.0
        self._faded = self._begun = False
        self._changed = asyncio.Event()
        self._frames: deque[tuple[int, np.ndarray]] = deque(maxlen=MOST_FRAMES)
        self._sound: deque[np.ndarray] = deque()
        self._samples = 0
        self._origin: float | None = None
        self._ticks = self._chunks = self._stale = 0
        self.repeated = self.late = 0

    def drop(self, frame: int) -> int:
        """Player.drop, for Session's hold: what is cut off fades instead of breaking off."""
        self._faded = True
        kept = self._player.drop(frame)
        # The tick after those taken by now is the first that shows what came instead.
        self._stale = self._ticks
        return kept

    def show(self, block: Block) -> None:
        """For Session's show: frames of what was dropped that are shown on, without sound, while others are made."""
        self._player.put(block)
        self._stale += len(block.frames)

    async def settled(self) -> None:
        """Returns when all that was taken before the latest drop is sent, a tick and a half at most, and all that was
        shown on after it."""
        if self._origin is not None:
            await self._until(self._stale / FPS)

    async def run(self) -> None:
        """Ticks for ever. Raises Overrun."""
        loop = asyncio.get_running_loop()
        self._origin = loop.time() + AHEAD_S
        while True:
            due = self._origin + self._ticks / FPS
            late = loop.time() - (due - AHEAD_S)
            if late < 0:
                await asyncio.sleep(-late)
            elif late > LATE_S:
                self._origin += late
                self.late += 1
            self._tick()

    def _tick(self) -> None:
        shown = self._player.pull()
        if shown is None:
            sound = np.zeros(SAMPLES_PER_FRAME, np.float32)
            self.repeated += self._begun
        else:
            sound = shown.sound
            self._frame = self._finish(shown.frame)
            self._begun = True
        if self._faded or shown is None:
            self._faded = False
            sound = sound.copy()
            sound[:FADE] += (self._last - sound[0]) * np.linspace(1, 0, FADE, dtype=np.float32)
        self._last = float(sound[-1])
        self._frames.append((self._ticks, self._frame))
        sent = (np.clip(self._upsample(sound), -1, 1) * 32767).astype(np.int16)
        self._sound.append(sent if self._ticks else sent[EARLY:])
        self._samples += len(self._sound[-1])
        if self._samples > MOST_SOUND:
            raise Overrun
        self._seen(shown, self._origin + self._ticks / FPS)
        self._ticks += 1
        self._changed.set()
        self._changed = asyncio.Event()

    # For whoever sends: each returns when it is time to.

    async def frame(self) -> tuple[int, np.ndarray]:
        """The next tick's number and frame, numbers apart by more than 1 where some were lost."""
        while not self._frames:
            await self._changed.wait()
        tick, frame = self._frames.popleft()
        await self._until(tick / FPS)
        return tick, frame

    async def chunk(self) -> tuple[int, np.ndarray]:
        """The next CHUNK samples int16 [CHUNK], and the number of the first."""
        while self._samples < CHUNK:
            await self._changed.wait()
        taken: list[np.ndarray] = []
        missing = CHUNK
        while missing:
            piece = self._sound.popleft()
            taken.append(piece[:missing])
            if len(piece) > missing:
                self._sound.appendleft(piece[missing:])
            missing -= len(taken[-1])
        self._samples -= CHUNK
        first, self._chunks = self._chunks * CHUNK, self._chunks + 1
        await self._until(first / SEND_RATE)
        return first, np.concatenate(taken)

    async def _until(self, seconds: float) -> None:
        wait = self._origin + seconds - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)
