"""A viewer's voice for tests."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from av import AudioFrame

RATE, CHUNK = 48_000, 960


class Tone(MediaStreamTrack):
    """Two tones, 20 ms at a time, until it is stopped."""

    kind = "audio"

    def __init__(self, amplitude: float = 0.3) -> None:
        super().__init__()
        self.amplitude = amplitude
        self._sent = 0
        self._began: float | None = None

    async def recv(self) -> AudioFrame:
        loop = asyncio.get_running_loop()
        self._began = loop.time() if self._began is None else self._began
        await asyncio.sleep(max(0.0, self._began + self._sent / RATE - loop.time()))
        at = (self._sent + np.arange(CHUNK)) / RATE
        wave = self.amplitude * (np.sin(2 * np.pi * 220 * at) + np.sin(2 * np.pi * 1370 * at)) / 2
        frame = AudioFrame.from_ndarray((32767 * wave).astype(np.int16)[None], format="s16", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = self._sent, RATE, Fraction(1, RATE)
        self._sent += CHUNK
        return frame
