"""The user's sound as it comes, in any pieces and rates, for those talkers that listen by themselves."""

from __future__ import annotations

import numpy as np

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.detector import DetectorConfig, Voice, VoiceDetector
from livetalk.streaming.sound import Resampler, mono

KEPT_S = 1.0


class Ear:
    """Sound at SAMPLE_RATE and the voices in it. `sound(at)` gives the latest of it again, from sample `at` on, as far
    back as KEPT_S before the last push."""

    def __init__(self, config: DetectorConfig) -> None:
        self.detector = VoiceDetector(config)
        self._resampler = Resampler()
        self._recent = np.zeros(0, np.float32)
        self.heard = 0

    def push(self, pcm: np.ndarray, rate: int) -> tuple[np.ndarray, list[Voice]]:
        """What is new, float32 [n], and what was noticed. Raises ValueError for what is no sound."""
        sound = self._resampler.push(mono(pcm, rate), rate)
        kept = max(0, len(self._recent) - round(KEPT_S * SAMPLE_RATE))
        self._recent = np.concatenate([self._recent[kept:], sound])
        self.heard += len(sound)
        return sound, self.detector.push(sound)

    def end(self) -> list[Voice]:
        """The user has finished: a voice that is there ends."""
        return self.detector.end()

    def sound(self, at: int) -> np.ndarray:
        return self._recent[max(0, len(self._recent) - max(0, self.heard - at)) :]
