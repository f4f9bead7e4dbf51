"""What the world's truth looks like to a network: a class of sound a frame, a column of 0 or 1 a prompt attribute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livetalk.data.world.motion import segments
from livetalk.data.world.prompts import VALUES, Attributes
from livetalk.data.world.speech import Phone
from livetalk.geometry import FPS

SILENCE, OTHER = 0, 1
_LETTERS = "ɑaæʌəɜɛeiɪɔoʊuɐɒɚᵻwɹjlɫtdnɾszʃʒθðkɡŋhʔpbmfv"
SOUND_CLASSES = 2 + len(_LETTERS)
"""Silence, any other sound, then one class a letter of the phonetic alphabet."""

ATTRIBUTES = tuple(f"{name}: {value}" for name, values in VALUES.items() for value in values[1:])
"""Names of the columns of attribute_vector: every value of a prompt attribute but its default."""


def sound_classes(phones: Sequence[Phone], frames: int) -> np.ndarray:
    """int64 [frames]: the class of the sound said at j / FPS seconds."""
    classes = np.full(frames, SILENCE, np.int64)
    seconds = np.arange(frames) / FPS
    for start, end, letter, _ in segments(phones):
        index = _LETTERS.find(letter)
        classes[(seconds >= start) & (seconds < end)] = OTHER if index < 0 else 2 + index
    return classes


def attribute_vector(attributes: Attributes) -> np.ndarray:
    """float32 [len(ATTRIBUTES)] of zeros and ones."""
    flags = [getattr(attributes, name) == value for name, values in VALUES.items() for value in values[1:]]
    return np.asarray(flags, np.float32)
