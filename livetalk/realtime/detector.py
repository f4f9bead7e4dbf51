"""Whether somebody speaks: by level above the background and by periodicity, with no model and no dependency.

A voice hums: its vowels repeat themselves 60 to 400 times a second, which noise, clicks and rustling do not. It begins
where sound is louder than the background and hums for a while, and ends when it has been quiet for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livetalk.geometry import SAMPLE_RATE

HOP = SAMPLE_RATE // 50
"""Samples between two looks; each looks at WINDOW samples."""
HOP_MS = 1000 * HOP // SAMPLE_RATE
WINDOW = 3 * HOP
_LAGS = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
_SIZE = 2048  # of the transform; no lag wraps around
_BAND = slice(80 * _SIZE // SAMPLE_RATE, 1200 * _SIZE // SAMPLE_RATE)
_HUMS = 0.33
"""The least autocorrelation of a hum, of 1. White, pink and brown noise exceed it in less than one window of 200."""
_DOWN, _UP, _UP_SPEAKING = 0.1, 8.0, 1.0
"""The background follows the level: down by this part of the difference a hop, up by these dB a second."""


@dataclass(frozen=True)
class DetectorConfig:
    """Levels in dB above the background, which is followed; times in milliseconds.

    above_db: what a voice that begins has above it, for `onset_ms` in all; below_db: what it has while it goes on.
    quiet_ms: silence that ends it. least_db: no voice is below this level (0 dB is full scale).
    """

    above_db: float = 5.0
    below_db: float = 3.0
    onset_ms: int = 80
    quiet_ms: int = 600
    least_db: float = -50.0

    def __post_init__(self) -> None:
        if not 0 < self.below_db <= self.above_db <= 60:
            raise ValueError(
                f"detector.below_db={self.below_db}, above_db={self.above_db}: give 0 < below_db <= above_db <= 60"
            )
        if not 20 <= self.onset_ms <= 2000 or not 100 <= self.quiet_ms <= 10_000:
            raise ValueError(
                f"detector.onset_ms={self.onset_ms}, quiet_ms={self.quiet_ms}: give 20 to 2000 and 100 to 10000"
            )
        if not -90 <= self.least_db <= 0:
            raise ValueError(f"detector.least_db={self.least_db}: give dB from -90 to 0")


@dataclass(frozen=True)
class Voice:
    """A voice began or ended at sample `at` of all that was pushed; noticed later, by what it takes to be sure."""

    started: bool
    at: int


class VoiceDetector:
    """Give it sound in pieces of any length; however it is cut, it notices the same."""

    def __init__(self, config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig()
        self.speaking = False
        self.background = -60.0
        self._rest = np.zeros(WINDOW - HOP, np.float32)  # what is looked at again, and what is still to come
        self._looked = 0
        self._hummed = 0  # milliseconds, of late
        self._since = 0  # where the humming began
        self._loud = self._humming = 0  # the ends of the latest such hops

    def push(self, pcm: np.ndarray) -> list[Voice]:
        """Sound float32 [n] in [-1, 1] at SAMPLE_RATE."""
        sound = np.concatenate([self._rest, pcm])
        starts = range(0, len(sound) - WINDOW + 1, HOP)
        noticed = [self._look(sound[at : at + WINDOW]) for at in starts]
        self._rest = sound[len(starts) * HOP :]
        return [voice for voice in noticed if voice is not None]

    def end(self) -> list[Voice]:
        """Nothing follows: a voice that is there ends now."""
        ends = [Voice(False, self._looked)] if self.speaking else []
        self.speaking, self._hummed = False, 0
        return ends

    def _look(self, window: np.ndarray) -> Voice | None:
        """At the hop that ends now, with those before."""
        self._looked += HOP
        level, periodicity = _measured(window)
        above = level - self.background
        self._follow(level)
        loud = level > self.config.least_db and above > self.config.below_db
        hums = loud and (self.speaking or above > self.config.above_db) and periodicity > _HUMS
        self._loud = self._looked if loud else self._loud
        self._humming = self._looked if hums else self._humming
        return self._go_on() if self.speaking else self._begin(loud, hums)

    def _begin(self, loud: bool, hums: bool) -> Voice | None:
        if hums:
            if self._hummed == 0:
                self._since = self._looked - HOP
            self._hummed += HOP_MS
        elif not loud:
            # Short vowels with closures between them add up.
            self._hummed = max(0, self._hummed - HOP_MS // 4)
        if self._hummed < self.config.onset_ms:
            return None
        self.speaking, self._hummed = True, 0
        return Voice(True, self._since)

    def _go_on(self) -> Voice | None:
        """It ends after silence, and also where it is loud but has not hummed for twice as long."""
        quiet = self.config.quiet_ms * SAMPLE_RATE // 1000
        if self._looked - self._loud < quiet and self._looked - self._humming < 2 * quiet:
            return None
        self.speaking = False
        return Voice(False, min(self._loud, self._humming + quiet))

    def _follow(self, level: float) -> None:
        if level < self.background:
            self.background += _DOWN * (level - self.background)
        else:
            up = _UP_SPEAKING if self.speaking else _UP
            self.background = min(level, self.background + up * HOP / SAMPLE_RATE)


def _measured(window: np.ndarray) -> tuple[float, float]:
    """Level in dB and the largest normalised autocorrelation at the lags of a human voice, of sound [WINDOW] between 80
    and 1200 Hz. The root of the power spectrum flattens it, so that a low rumble does not look like a hum."""
    power = np.abs(np.fft.rfft(window * _TAPER, _SIZE)[_BAND].astype(np.complex128)) ** 2
    spectrum = np.zeros(_SIZE // 2 + 1)
    spectrum[_BAND] = np.sqrt(power)
    correlation = np.fft.irfft(spectrum)
    level = 10 * np.log10(power.sum() * _POWER + 1e-12)
    return float(level), float((correlation[_LAGS] / _TAPERED).max() / (correlation[0] + 1e-9))


_TAPER = np.hanning(WINDOW)
_TAPERED = np.correlate(_TAPER, _TAPER, "full")[WINDOW - 1 :][_LAGS] / (_TAPER**2).sum()
"""What the taper alone makes of long lags."""
_POWER = 2 / (_SIZE * (_TAPER**2).sum())
"""From the sum of the band's power to the mean square."""
