"""When somebody speaks: silero-vad, or loudness alone where that is chosen.

Both take sound [samples] at SAMPLE_RATE and give a bool for each of `frames` frames at FPS.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

ABOVE_NOISE = 10.0  # decibels over the quietest tenth from which sound counts
FAINTEST = -55.0  # decibels of full scale below which nothing is speech
PAUSE = 0.2  # seconds: shorter gaps do not end speech


class Silero:
    """silero-vad's own network and rules. Raises ValueError, with the remedy, where it is not installed."""

    def __init__(self) -> None:
        try:
            import silero_vad
        except ImportError as error:
            raise ValueError(
                "silero-vad, which finds speech, is not installed: pip install silero-vad, or choose voice=energy"
            ) from error
        self.find = silero_vad.get_speech_timestamps
        self.network = silero_vad.load_silero_vad()

    def __call__(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = self.find(torch.from_numpy(pcm), self.network, sampling_rate=SAMPLE_RATE)
        speech = np.zeros(frames, bool)
        for stretch in found:
            speech[stretch["start"] // SAMPLES_PER_FRAME : -(-stretch["end"] // SAMPLES_PER_FRAME)] = True
        return speech


class Energy:
    """Whatever is louder than the noise of the recording by a good deal counts as speech, music too."""

    def __call__(self, pcm: np.ndarray, frames: int) -> np.ndarray:
        whole = np.pad(pcm, (0, max(0, frames * SAMPLES_PER_FRAME - len(pcm))))[: frames * SAMPLES_PER_FRAME]
        power = np.square(whole.reshape(frames, SAMPLES_PER_FRAME)).mean(axis=1)
        loud = 10 * np.log10(power + 1e-12)
        speech = loud > max(np.quantile(loud, 0.1) + ABOVE_NOISE, FAINTEST)
        at = np.flatnonzero(speech)
        for before, after in pairwise(at):
            if (after - before - 1) / FPS < PAUSE:
                speech[before:after] = True
        return speech
