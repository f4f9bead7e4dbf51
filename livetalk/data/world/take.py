"""One take of the synthetic world before any picture is drawn: words, sound, motion, prompt.

Pure numpy and a function of (config, split, index, frames) alone, so takes can be made in any order, in any process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from multiprocessing.pool import Pool

import numpy as np

from livetalk.checks import at_least, shares
from livetalk.data.world.motion import Motion, make_motion
from livetalk.data.world.prompts import Attributes, describe
from livetalk.data.world.sentences import sentence
from livetalk.data.world.speech import Phone, Speaker, Utterance
from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

SPLITS = ("train", "dev", "test", "test-voice2")
_CONTEXT = 0.6  # seconds of phonemes kept on each side of a clip: they shape the lips at its edges
_EDGE = 0.03  # seconds of sound kept around an utterance's first and last phoneme
_PHRASE_GAP = 0.2  # seconds: a longer silence is a pause, not speech


@dataclass(frozen=True)
class WorldConfig:
    """The synthetic world. face_model: a packed ICT-FaceKit file, or "tiny" for the head made in code.

    size: pixels; *_people: identities of a split; silent: share of clips without a word; from_rest: share of the
    others that begin with closed lips before the first word, the rest begin in the middle of a sentence.
    """

    face_model: str = "tiny"
    engine: str = "espeak"
    second_engine: str = "flite"
    seed: int = 0
    size: int = 128
    supersample: int = 2
    train_people: int = 4096
    dev_people: int = 128
    test_people: int = 256
    silent: float = 0.06
    from_rest: float = 0.5
    slowest: float = 130.0
    fastest: float = 180.0

    def __post_init__(self):
        shares(self, "silent", "from_rest")
        at_least(1, self, "size", "supersample", "train_people", "dev_people", "test_people")
        at_least(0, self, "seed")
        if not 0 < self.slowest <= self.fastest:
            raise ValueError(f"slowest={self.slowest} and fastest={self.fastest} words a minute are no range")

    def people(self, split: str) -> int:
        return {"train": self.train_people, "dev": self.dev_people, "test": self.test_people}[material(split)]


def material(split: str) -> str:
    """The split whose people, sentences and chances a split uses: "test-voice2" is "test" with another engine.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return split.removesuffix("-voice2")


def generator(config: WorldConfig, split: str, *key: int) -> np.random.Generator:
    """The random numbers of one purpose: streams of different splits and keys are independent."""
    return np.random.default_rng([config.seed, SPLITS.index(material(split)), *key])


# purposes, the first number of a generator's key
IDENTITY, PERSON, SCENE, SPEECH, MOTION = range(5)


@dataclass(frozen=True)
class Take:
    """pcm: float32 [T * 1000] at 16 kHz; phones: seconds from the clip's start, a little beyond its edges too;
    speech: bool [T], whether frame j falls into speech (gaps under 0.2 s included); text: the sentences."""

    split: str
    index: int
    identity: int
    text: str
    prompt: str
    attributes: Attributes
    pcm: np.ndarray
    phones: tuple[Phone, ...]
    speech: np.ndarray
    motion: Motion


def make_take(config: WorldConfig, split: str, frames: int, index: int) -> Take:
    """Take `index` of a split, `frames` frames long. Raises ValueError as Speaker does."""
    assert frames >= 1 and index >= 0
    identity = int(generator(config, split, IDENTITY, index).integers(config.people(split)))
    pcm, phones, text = _speech(config, split, frames, generator(config, split, SPEECH, index))
    rng = generator(config, split, MOTION, index)
    attributes = Attributes.sample(rng, speaking=bool(phones))
    return Take(
        split=split,
        index=index,
        identity=identity,
        text=text,
        prompt=describe(attributes, rng),
        attributes=attributes,
        pcm=pcm,
        phones=phones,
        speech=speech_mask(phones, frames),
        motion=make_motion(phones, frames, attributes, rng),
    )


def prepare_many(
    config: WorldConfig,
    split: str,
    indices: Sequence[int],
    frames: int = 81,
    workers: int = 0,
    pool: Pool | None = None,
) -> Iterator[Take]:
    """Takes in the order of `indices`, made by `workers` processes (0: this one) or by a `pool` the caller keeps."""
    task = partial(make_take, config, split, frames)
    if pool is None and workers <= 1:
        yield from map(task, indices)
        return
    with nullcontext(pool) if pool is not None else get_context("spawn").Pool(workers) as active:
        yield from active.imap(task, indices, chunksize=4)


def speech_mask(phones: Sequence[Phone], frames: int) -> np.ndarray:
    """bool [frames]: moments j / 16 s inside runs of phonemes, where gaps under 0.2 s do not end a run."""
    seconds, mask, end = np.arange(frames) / FPS, np.zeros(frames, bool), -np.inf
    for phone in phones:
        start = end if phone.start - end < _PHRASE_GAP else phone.start
        mask |= (seconds >= start) & (seconds < phone.end)
        end = phone.end
    return mask


# --- sound -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _speaker(engine: str) -> Speaker:
    return Speaker(engine)


def _pause(rng: np.random.Generator) -> float:
    kind = rng.random()
    low, high = (0.15, 0.45) if kind < 0.65 else (0.45, 1.1) if kind < 0.93 else (1.3, 2.5)
    return float(rng.uniform(low, high))


def _speech(config: WorldConfig, split: str, frames: int, rng: np.random.Generator) -> tuple:
    """(pcm [frames * 1000], phones, text): a window on somebody who speaks sentence after sentence, with pauses."""
    silent, gain, noise = rng.random() < config.silent, rng.uniform(-6.0, 5.0), rng.uniform(-80.0, -52.0)
    quiet = rng.random() < 0.25
    pcm = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    phones: list[Phone] = []
    texts: list[str] = []
    if not silent:
        for start, utterance, text in _sentences(config, split, frames / FPS, rng):
            shifted = [Phone(p.start + start, p.end + start, p.ipa) for p in utterance.phones]
            shifted = [p for p in shifted if p.end > -_CONTEXT and p.start < frames / FPS + _CONTEXT]
            phones += shifted
            _add(pcm, utterance.pcm, round(start * SAMPLE_RATE))
            if any(p.end > 0 and p.start < frames / FPS for p in shifted):
                texts.append(text)
        pcm *= 10 ** (gain / 20)
        pcm *= min(1.0, 0.95 / max(float(np.abs(pcm).max()), 1e-6))
    if not quiet:
        noise_rng = np.random.default_rng(rng.integers(1 << 63))
        pcm += noise_rng.standard_normal(len(pcm), dtype=np.float32) * np.float32(10 ** (noise / 20))
    return np.clip(pcm, -1.0, 1.0), tuple(phones), " ".join(texts)


def _sentences(config: WorldConfig, split: str, seconds: float, rng) -> Iterator[tuple[float, Utterance, str]]:
    """(start in seconds, utterance, text) until the clip and its context are full."""
    second = split.endswith("-voice2")
    speaker = _speaker(config.second_engine if second else config.engine)
    choices = speaker.voices(material(split))
    if not choices:
        raise ValueError(f"{speaker.engine} has no voices for split {split}: take another engine, espeak has some")
    voice = choices[rng.integers(len(choices))]
    rate = float(rng.uniform(config.slowest, config.fastest))
    now, cut = float(rng.uniform(0.1, 0.8)), float(rng.uniform(0.15, 0.85))
    ongoing = rng.random() >= config.from_rest
    while now < seconds + _CONTEXT:
        text = sentence(material(split), rng)
        utterance = _trimmed(speaker.say(text, voice, rate))
        length = len(utterance.pcm) / SAMPLE_RATE
        if ongoing:
            now, ongoing = -cut * length, False
        yield now, utterance, text
        now += length + _pause(rng)


def _trimmed(utterance: Utterance) -> Utterance:
    """Without silence before and after, at a fixed loudness, faded at both ends."""
    begin = max(0.0, utterance.phones[0].start - _EDGE)
    first, last = round(begin * SAMPLE_RATE), round((utterance.phones[-1].end + _EDGE) * SAMPLE_RATE)
    pcm = utterance.pcm[first:last]
    fade = np.minimum(np.arange(len(pcm)), np.arange(len(pcm))[::-1]) / (0.005 * SAMPLE_RATE)
    loudness = max(float(np.sqrt(np.mean(np.square(pcm)))), 1e-4)
    pcm = (pcm * np.minimum(fade, 1.0) * (0.09 / loudness)).astype(np.float32)
    begin = first / SAMPLE_RATE
    return Utterance(pcm, tuple(Phone(p.start - begin, p.end - begin, p.ipa) for p in utterance.phones))


def _add(target: np.ndarray, sound: np.ndarray, offset: int) -> None:
    first, last = max(0, offset), min(len(target), offset + len(sound))
    if first < last:
        target[first:last] += sound[first - offset : last - offset]
