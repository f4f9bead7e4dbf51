"""How an answer sounds: a Voice turns a sentence into sound. espeak-ng is the one that needs little."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from livetalk import espeak

ESPEAK_VOICE = "en-us+f3"


@dataclass(frozen=True, eq=False)
class Said:
    """A spoken sentence: pcm float32 [samples] in [-1, 1] at `rate`; words: (milliseconds, text) of each, with the
    spaces after it, so that joined they are the sentence."""

    pcm: np.ndarray
    rate: int
    words: tuple[tuple[float, str], ...]


class Voice(Protocol):
    """One serves many conversations at once."""

    def say(self, sentence: str) -> Said:
        """The sentence's sound; called in a thread. Raises ValueError for what it cannot say."""


class EspeakVoice:
    """espeak-ng: formant synthesis, a thousand times faster than real time, any of its languages and voices."""

    def __init__(self, name: str = "", words_a_minute: int = 165) -> None:
        """Raises ValueError if espeak-ng is not installed or has no such voice."""
        self.name, self.words_a_minute = name or ESPEAK_VOICE, words_a_minute
        espeak.speak("a", self.name, words_a_minute)

    def say(self, sentence: str) -> Said:
        spoken = espeak.speak(sentence, self.name, self.words_a_minute)
        times = {at: 1000 * sample / spoken.rate for sample, at, _ in spoken.words}
        return Said(spoken.pcm, spoken.rate, timed(sentence, times))


def timed(sentence: str, times: dict[int, float]) -> tuple[tuple[float, str], ...]:
    """Words of a sentence with their milliseconds, where `times` tells some of them by their first letter's place; a
    word that is not told begins with the one before."""
    words, latest = [], 0.0
    for start, stop in pairwise([*_starts(sentence), len(sentence)]):
        latest = max(latest, times.get(start, latest))
        words.append((latest, sentence[start:stop]))
    return tuple(words)


def spread(sentence: str, milliseconds: float) -> dict[int, float]:
    """Times for `timed` where a voice tells none: each letter takes as long as the others."""
    return {start: milliseconds * start / len(sentence) for start in _starts(sentence)}


def _starts(sentence: str) -> list[int]:
    """Where words begin; the first takes what may be before it."""
    inner = [at for at in range(1, len(sentence)) if sentence[at - 1].isspace() and not sentence[at].isspace()]
    return [0, *inner] if sentence else []
