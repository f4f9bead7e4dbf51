"""Whether the mouth moves with the sound: the lag at which mouth and loudness go together best, and how well.

The opening of the mouth (faces.mouth_opening) is held against the loudness of the band in which open vowels are loud,
in decibels, at lags up to REACH seconds in steps of STEP. Positive lags: the sound comes later than the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livetalk.geometry import FPS, SAMPLE_RATE

BAND = (300.0, 2000.0)  # hertz: the first formants of open vowels, little of hissing sounds and hum
HOP = 160  # samples between values of the loudness: 10 ms
WINDOW = 0.16  # seconds of a Hann window over its power, some 80 ms at half height
RANGE = 45.0  # decibels below the loudest moment beyond which it is as good as silent
REACH, STEP = 0.5, 0.02


@dataclass(frozen=True)
class Sync:
    """lag: seconds by which the sound comes too late; correlation: at that lag, from -1 to 1; confidence: how far it
    stands above the median over all lags."""

    lag: float
    correlation: float
    confidence: float


def loudness(pcm: np.ndarray) -> np.ndarray:
    """Decibels [n] every HOP samples, in BAND, of sound [samples] at SAMPLE_RATE."""
    from scipy.signal import butter, sosfiltfilt

    band = sosfiltfilt(butter(3, BAND, btype="band", fs=SAMPLE_RATE, output="sos"), pcm)
    power = np.square(band[: len(band) // HOP * HOP].reshape(-1, HOP)).mean(axis=1)
    window = np.hanning(round(WINDOW * SAMPLE_RATE / HOP) + 2)
    decibels = 10 * np.log10(np.convolve(power, window / window.sum(), mode="same") + 1e-12)
    return np.maximum(decibels, decibels.max() - RANGE)


def correlations(opening: np.ndarray, pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lags and the correlation at each, of openings [T] at FPS with sound of the same beginning; 0 where one of the two
    does not change."""
    loud = loudness(pcm)
    shown, heard = np.arange(len(opening)) / FPS, (np.arange(len(loud)) + 0.5) * HOP / SAMPLE_RATE
    lags = np.arange(-round(REACH / STEP), round(REACH / STEP) + 1) * STEP
    found = []
    for lag in lags:
        at = shown + lag
        both = (at >= heard[0]) & (at <= heard[-1])
        mouth, sound = opening[both], np.interp(at[both], heard, loud)
        spread = mouth.std() * sound.std()
        found.append(float(((mouth - mouth.mean()) * (sound - sound.mean())).mean() / spread) if spread > 1e-9 else 0.0)
    return lags, np.asarray(found)


def measure(opening: np.ndarray, pcm: np.ndarray) -> Sync:
    """Of a clip of some seconds, its openings [T] and sound [T * 1000]. A second is too short for any answer."""
    assert len(opening) >= FPS, opening.shape
    lags, found = correlations(opening, pcm)
    best = int(found.argmax())
    lag = lags[best]
    if 0 < best < len(lags) - 1:
        left, middle, right = found[best - 1 : best + 2]
        bend = left - 2 * middle + right
        lag += STEP * 0.5 * (left - right) / bend if bend < 0 else 0.0
    return Sync(float(lag), float(found[best]), float(found[best] - np.median(found)))
