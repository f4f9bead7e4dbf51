"""Speech by espeak-ng through ctypes: sound, and when each word and sound of the language begins.

The library is loaded afresh for each text, because its oscillators and noise keep running from text to text: the same
words with the same settings give the same samples, whatever was said before. It is not thread safe and there is one of
it in a process, so threads take turns; a sentence takes a few milliseconds.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from threading import Lock

import numpy as np

_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 1, 2, 0x8000
_RATE, _PITCH = 1, 3
_UTF8 = 1
_WORD_EVENT, _PHONEME_EVENT = 1, 7

_LIBRARY = Lock()


@dataclass(frozen=True, eq=False)
class Spoken:
    """Sound of one text: pcm float32 [samples] in [-1, 1] at `rate`.

    words: (first sample, first letter in the text counted from 0, letters) of each; sounds: (first sample, name in
    IPA).
    """

    pcm: np.ndarray
    rate: int
    words: tuple[tuple[int, int, int], ...]
    sounds: tuple[tuple[int, str], ...]


def speak(text: str, voice: str, words_a_minute: float, pitch: int = 50) -> Spoken:
    """Says `text` with a voice as espeak-ng names it, "en-us+f3" for example; pitch 0-99, 50 is the voice's own.

    Raises ValueError if espeakng-loader is not installed or the voice is unknown.
    """
    with _LIBRARY:
        engine = _Espeak()
        try:
            engine.synthesise(text, voice, words_a_minute, pitch)
        finally:
            engine.close()
    pcm = np.concatenate(engine.pcm) if engine.pcm else np.zeros(0, np.int16)
    return Spoken(pcm.astype(np.float32) / 32768.0, engine.rate, tuple(engine.words), tuple(engine.sounds))


def available() -> None:
    """Raises ValueError, in one line, if espeakng-loader is not installed."""
    _loader()


def _loader():
    try:
        import espeakng_loader
    except ImportError as error:
        remedy = "pip install -e .[data] or .[realtime]"
        raise ValueError(f"speech needs the package espeakng-loader: {remedy}") from error
    return espeakng_loader


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """One loading of libespeak-ng (0.3 ms)."""

    def __init__(self):
        loader = _loader()
        self.pcm: list[np.ndarray] = []
        self.words: list[tuple[int, int, int]] = []
        self.sounds: list[tuple[int, str]] = []
        self._callback = _CALLBACK(self._receive)  # held: the library keeps only a pointer
        self.library = ctypes.CDLL(loader.get_library_path())
        options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), options)
        if self.rate <= 0:
            raise ValueError("espeak-ng found no voice data: reinstall espeakng-loader")
        self.library.espeak_SetSynthCallback(self._callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def synthesise(self, text: str, voice: str, words_a_minute: float, pitch: int) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: write for example en-us+f3, en-gb+m3 or de+f2")
        self.library.espeak_SetParameter(_RATE, round(words_a_minute), 0)
        self.library.espeak_SetParameter(_PITCH, int(pitch), 0)
        data = text.encode()
        status = self.library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, _UTF8, None, None)
        assert status == 0, f"espeak_Synth returned {status}"
        self.library.espeak_Synchronize()

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self.pcm.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type:
            event = events[index]
            if event.type == _WORD_EVENT:
                self.words.append((event.sample, event.text_position - 1, event.length))
            elif event.type == _PHONEME_EVENT:
                self.sounds.append((event.sample, event.id.decode(errors="ignore")))
            index += 1
        return 0

    def close(self) -> None:
        import _ctypes

        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)
