"""Speech with exact phoneme times, from four engines behind one interface.

`Speaker("espeak")` drives libespeak-ng (livetalk/espeak.py; about a thousand times faster than real time, many voices);
`Speaker("festival")` runs the festival program, whose diphones are cut from recorded people, for training alone;
`Speaker("flite")` runs the flite program, a synthesiser kept for testing; `Speaker("tone")` needs nothing and makes
formant-like sounds letter by letter, for tests and debug runs. Saying the same words with the same settings gives the
same samples, whatever was said before and in whichever process. espeak-ng is not thread safe: use processes.
"""

from __future__ import annotations

import subprocess
import tempfile
import wave
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import gcd
from pathlib import Path
from shutil import which
from typing import NamedTuple

import numpy as np

from livetalk import espeak
from livetalk.geometry import SAMPLE_RATE

ENGINES = ("espeak", "festival", "flite", "tone")
VOICE_SPLITS = ("train", "dev", "test")


class Phone(NamedTuple):
    """One sound: start and end in seconds, name in IPA (with stress marks where the engine gives them)."""

    start: float
    end: float
    ipa: str


@dataclass(frozen=True)
class Voice:
    """A speaker of one engine: `name` as the engine knows it, `pitch` 0-99 with 50 as the voice's own."""

    name: str
    pitch: int = 50


@dataclass(frozen=True)
class Utterance:
    """Sound of one text.

    pcm: float32 [samples] at 16 kHz, within [-1, 1]; phones: in order, without overlap, gaps are silence;
    words: (start in seconds, word), empty where the engine does not tell.
    """

    pcm: np.ndarray
    phones: tuple[Phone, ...]
    words: tuple[tuple[float, str], ...] = ()


class Speaker:
    """One engine, loaded at the first word it says.

    Raises ValueError for an unknown engine or voice, and when the engine is not installed.
    """

    def __init__(self, engine: str = "espeak"):
        if engine not in ENGINES:
            raise ValueError(f"unknown speech engine {engine!r}: choose one of {', '.join(ENGINES)}")
        self.engine = engine
        self._say = {"espeak": _espeak_say, "festival": _festival_say, "flite": _flite_say, "tone": _tone_say}[engine]

    def voices(self, split: str) -> tuple[Voice, ...]:
        """The voices of a split; timbres (espeak variants, flite voices) of different splits differ. None are
        there of "festival" but for training."""
        return voices(self.engine, split)

    def say(self, text: str, voice: Voice, rate: float = 160.0) -> Utterance:
        """Speak `text` at `rate` words a minute."""
        if not text.strip():
            raise ValueError("there is nothing to say: the text is empty")
        return self._say(text, voice, float(rate))


# --- voices ------------------------------------------------------------------------------------------------------

_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_ESPEAK_VARIANTS = {
    "train": (
        *("f1", "f3", "f5", "m1", "m2", "m4", "m6", "m7", "m8", "Alex", "Andrea", "Andy", "Annie", "AnxiousAndy"),
        *("Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Mario", "Michael", "Mike", "Nguyen", "Reed", "Storm"),
        *("adam", "anika", "announcer", "antonio", "benjamin", "boris", "caleb", "croak", "ed", "edward", "grandma"),
        *("grandpa", "gustave", "ian", "iven", "iven3", "john", "kaukovalta", "klatt2", "klatt4", "marcelo", "max"),
        *("michel", "miguel", "pablo", "paul", "pedro", "shelby", "steph", "steph2"),
    ),
    "dev": ("f2", "m3", "belinda", "victor", "quincy", "sandro", "david"),
    "test": ("f4", "m5", "linda", "zac", "travis", "rob", "robert", "aunty", "norbert"),
}
_OTHER_VOICES = {
    "festival": {"train": ("ked_diphone", "kal_diphone"), "dev": (), "test": ()},
    "flite": {"train": ("kal16",), "dev": ("rms",), "test": ("slt", "awb")},
    "tone": {"train": ("low", "high", "wide"), "dev": ("mid",), "test": ("narrow",)},
}
_PITCHES = (35, 50, 65)


@cache
def voices(engine: str, split: str) -> tuple[Voice, ...]:
    """Voices of `engine` for "train", "dev" or "test", in a fixed order."""
    if engine not in ENGINES:
        raise ValueError(f"unknown speech engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if split not in VOICE_SPLITS:
        raise ValueError(f"unknown voice split {split!r}: choose one of {', '.join(VOICE_SPLITS)}")
    if engine == "espeak":
        names = [f"{accent}+{variant}" for variant in _ESPEAK_VARIANTS[split] for accent in _ACCENTS]
    else:
        names = _OTHER_VOICES[engine][split]
    return tuple(Voice(name, pitch) for name in names for pitch in _PITCHES)


# --- espeak-ng ---------------------------------------------------------------------------------------------------

_VOICELESS_STOPS = ("p", "t", "k", "tʃ")
_LONGEST_CLOSURE = 0.07


def _espeak_say(text: str, voice: Voice, rate: float) -> Utterance:
    spoken = espeak.speak(text, voice.name, rate, voice.pitch)
    words = tuple((sample / spoken.rate, text[at : at + letters]) for sample, at, letters in spoken.words)
    marks = [*spoken.sounds, (len(spoken.pcm), "")]
    phones = [
        Phone(start / spoken.rate, end / spoken.rate, name)
        for (start, name), (end, _) in pairwise(marks)
        if name.strip("ˈˌː") and end > start
    ]
    closed = tuple(_with_closures(phones, spoken.pcm, spoken.rate))
    return Utterance(_resample(spoken.pcm, spoken.rate), closed, words)


def _with_closures(phones: list[Phone], pcm: np.ndarray, rate: int) -> list[Phone]:
    """Moves the start of voiceless stops to the start of their closure.

    espeak-ng marks these at the burst and counts the silence before it, 30-50 ms, to the sound before; the lips are
    already closed then. The closure is where the level lies 20 dB under the earlier sound's loudest.
    """
    hop = round(0.005 * rate)
    level = np.sqrt(np.mean(pcm[: len(pcm) // hop * hop].reshape(-1, hop) ** 2, axis=1))
    fixed: list[Phone] = []
    for phone in phones:
        if phone.ipa.strip("ˈˌ").startswith(_VOICELESS_STOPS) and fixed:
            before = fixed[-1]
            touching = phone.start - before.end < 0.005
            room = min(_LONGEST_CLOSURE, 0.5 * (before.end - before.start) if touching else phone.start - before.end)
            first, last = round(before.start * rate) // hop, round(phone.start * rate) // hop
            loud = np.flatnonzero(level[first:last] > 0.1 * level[first:last].max(initial=0.0))
            closure = (last - first - 1 - (loud[-1] if touching and len(loud) else -1)) * hop / rate
            start = float(phone.start - min(max(closure, 0.03), room))
            if touching:
                fixed[-1] = before._replace(end=start)
            phone = phone._replace(start=start)
        fixed.append(phone)
    return fixed


def _resample(pcm: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE:
        return pcm
    from scipy.signal import resample_poly

    common = gcd(rate, SAMPLE_RATE)
    return np.clip(resample_poly(pcm, SAMPLE_RATE // common, rate // common), -1.0, 1.0).astype(np.float32)


# --- festival and flite ------------------------------------------------------------------------------------------

_ARPABET = {
    **{"aa": "ˈɑː", "ae": "ˈæ", "ah": "ˈʌ", "ao": "ˈɔː", "aw": "ˈaʊ", "ax": "ə", "ay": "ˈaɪ", "eh": "ˈɛ", "er": "ɜː"},
    **{"ey": "ˈeɪ", "ih": "ɪ", "iy": "i", "ow": "ˈoʊ", "oy": "ˈɔɪ", "uh": "ʊ", "uw": "ˈuː", "axr": "ɚ", "ix": "ɪ"},
    **{"b": "b", "ch": "tʃ", "d": "d", "dh": "ð", "dx": "ɾ", "f": "f", "g": "ɡ", "hh": "h", "jh": "dʒ", "k": "k"},
    **{"l": "l", "m": "m", "n": "n", "ng": "ŋ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ"},
    **{"v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "el": "əl", "em": "əm", "en": "ən", "hv": "h"},
}


def _festival_say(text: str, voice: Voice, rate: float) -> Utterance:
    if voice not in voices("festival", "train"):
        raise ValueError(f"festival has no voice {voice.name!r} at pitch {voice.pitch} here")
    stretch, pitch = 160.0 / rate, 105.0 * 2 ** ((voice.pitch - 50) / 60)
    quoted = text.replace("\\", " ").replace('"', " ")
    program = f"""(voice_{voice.name})
(Parameter.set 'Duration_Stretch {stretch:.4f})
(set! int_lr_params '((target_f0_mean {pitch:.1f}) (target_f0_std 14) (model_f0_mean 170) (model_f0_std 34)))
(set! said (SynthText "{quoted}"))
(utt.save.wave said "speech.wav" 'riff)
(utt.save.segs said "phones")
"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "say.scm").write_text(program)
        _run("festival", ["-b", "say.scm"], "festival festvox-kallpc16k festvox-kdlpc16k", folder)
        # A header that ends in "#", then a line a phone: end, colour, name.
        rows = (Path(folder) / "phones").read_text().partition("#")[2].split("\n")
        listing = [(name, float(end)) for end, _, name in (row.split() for row in rows if row.strip())]
        return Utterance(_read_wave(Path(folder) / "speech.wav"), _arpabet_phones(listing))


def _flite_say(text: str, voice: Voice, rate: float) -> Utterance:
    stretch, pitch = 160.0 / rate, {"slt": 170.0}.get(voice.name, 115.0) * 2 ** ((voice.pitch - 50) / 60)
    settings = ["-voice", voice.name, "--setf", f"duration_stretch={stretch:.4f}"]
    settings += ["--setf", f"int_f0_target_mean={pitch:.1f}", "-psdur", "-t", text, "-o", "speech.wav"]
    with tempfile.TemporaryDirectory() as folder:
        told = _run("flite", settings, "flite", folder)
        pairs = (item.rpartition(":") for item in told.split())  # "name:end" each
        return Utterance(
            _read_wave(Path(folder) / "speech.wav"), _arpabet_phones([(name, float(end)) for name, _, end in pairs])
        )


def _run(program: str, arguments: list[str], packages: str, folder: str) -> str:
    """What an engine's program prints, run in a folder in which it leaves speech.wav. Raises ValueError where it is
    not installed or fails."""
    found = which(program)
    if found is None:
        raise ValueError(f"the speech engine {program} is not installed: apt-get install {packages}")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0 or not (Path(folder) / "speech.wav").exists():
        raise ValueError(f"{program} could not speak ({' '.join(arguments)}): {done.stderr.strip()}")
    return done.stdout


def _read_wave(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16).astype(np.float32) / 32768.0
        return _resample(pcm, file.getframerate())


def _arpabet_phones(listing: list[tuple[str, float]]) -> tuple[Phone, ...]:
    """Phones from names and ends in seconds; "pau" is silence.

    No stress is told: full vowels count as stressed, reduced ones do not.
    """
    bounds = pairwise([0.0, *(end for _, end in listing)])
    named = zip(bounds, listing, strict=True)
    return tuple(Phone(start, end, _ARPABET[name]) for (start, end), (name, _) in named if name != "pau")


# --- tone --------------------------------------------------------------------------------------------------------

_LETTERS = {
    **{"th": "θ", "sh": "ʃ", "ch": "tʃ", "ng": "ŋ", "ee": "iː", "oo": "uː", "ou": "aʊ", "ow": "oʊ", "ai": "eɪ"},
    **{"a": "æ", "b": "b", "c": "k", "d": "d", "e": "ɛ", "f": "f", "g": "ɡ", "h": "h", "i": "ɪ", "j": "dʒ", "k": "k"},
    **{"l": "l", "m": "m", "n": "n", "o": "ɑː", "p": "p", "q": "k", "r": "ɹ", "s": "s", "t": "t", "u": "ʌ", "v": "v"},
    **{"w": "w", "x": "s", "y": "i", "z": "z"},
}
# first two resonances in Hz of the vowels and voiced sounds
_FORMANTS = {
    **{"æ": (700, 1700), "ɛ": (550, 1850), "ɪ": (400, 2000), "iː": (290, 2300), "i": (320, 2200), "ɑː": (740, 1100)},
    **{"ʌ": (620, 1200), "uː": (310, 870), "aʊ": (680, 1050), "oʊ": (480, 900), "eɪ": (450, 2100), "m": (250, 900)},
    **{"n": (250, 1500), "ŋ": (250, 1900), "l": (360, 1100), "ɹ": (420, 1300), "w": (300, 700), "v": (220, 1100)},
    **{"z": (220, 1600), "b": (180, 700), "d": (180, 1700), "ɡ": (180, 2000), "dʒ": (200, 1900)},
}
_HISS = {"s": 5500, "z": 5200, "ʃ": 3000, "tʃ": 3000, "dʒ": 2800, "f": 4200, "v": 3800, "θ": 4600, "h": 1500}
_TONE_PITCH = {"low": 100.0, "high": 210.0, "wide": 150.0, "mid": 130.0, "narrow": 180.0}


def _spell(word: str) -> list[str]:
    phones, index = [], 0
    while index < len(word):
        size = 2 if word[index : index + 2] in _LETTERS else 1
        letters = word[index : index + size]
        if letters in _LETTERS:
            phones.append(_LETTERS[letters])
        index += size
    return phones


def _tone_say(text: str, voice: Voice, rate: float) -> Utterance:
    if voice.name not in _TONE_PITCH:
        raise ValueError(f"the tone engine has no voice {voice.name!r}: choose one of {', '.join(_TONE_PITCH)}")
    phones: list[Phone] = []
    words: list[tuple[float, str]] = []
    now, slow = 0.0, 160.0 / rate
    for word in text.lower().split():
        words.append((now, word.strip(".,?!")))
        stressed = len(word) < 4
        for ipa in _spell(word):
            vowel = ipa[0] in "æɛɪiɑʌuaoe"
            end = now + slow * (0.12 if vowel else 0.08)
            phones.append(Phone(now, end, "ˈ" + ipa if vowel and not stressed else ipa))
            stressed, now = stressed or vowel, end
        now += 0.25 * slow if word[-1] in ".,?!" else 0.0
    pitch = _TONE_PITCH[voice.name] * 2 ** ((voice.pitch - 50) / 60)
    pcm = np.zeros(round(max(now, 0.05) * SAMPLE_RATE), np.float32)
    for phone in phones:
        first, last = round(phone.start * SAMPLE_RATE), round(phone.end * SAMPLE_RATE)
        pcm[first:last] = _tone(phone.ipa.lstrip("ˈ"), np.arange(first, last) / SAMPLE_RATE, pitch)
    return Utterance(pcm, tuple(phones), tuple(words))


def _tone(ipa: str, seconds: np.ndarray, pitch: float) -> np.ndarray:
    sound = np.zeros(len(seconds))
    if ipa in _FORMANTS:
        harmonics = pitch * np.arange(1, int(3500 / pitch))
        gains = sum(1.0 / (1.0 + ((harmonics - f) / 90.0) ** 2) for f in _FORMANTS[ipa])
        voiced = np.sin(2 * np.pi * seconds[:, None] * harmonics) @ gains
        sound += voiced * (0.25 if ipa in "mnŋlɹwbdɡdʒvz" else 1.0)
    if ipa in _HISS:
        noise = np.random.default_rng(round(seconds[0] * SAMPLE_RATE)).standard_normal(len(seconds))
        sound += 0.3 * noise * np.sin(2 * np.pi * _HISS[ipa] * seconds)
    edge = np.minimum(np.arange(len(sound)), np.arange(len(sound))[::-1]) / (0.008 * SAMPLE_RATE)
    return (0.1 * sound * np.minimum(edge, 1.0)).astype(np.float32)
