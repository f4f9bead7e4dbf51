"""The sound of a stream: pieces of any rate, their place in time, and the features of a block.

Sound is float32 mono at SAMPLE_RATE in [samples]; positions are samples from the start of a take. What nobody has
pushed is silence, so a track can be read anywhere.
"""

from __future__ import annotations

from math import gcd
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Geometry, clip_frames
from livetalk.media import clean_audio
from livetalk.models.audio import FIELD, HOP, AudioEncoder, normalised

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000
NOTHING = np.zeros(0, np.float32)
FRAMES_PER_POSITIONS = HOP // gcd(HOP, SAMPLES_PER_FRAME)
"""The fewest frames that are a whole number of the audio encoder's positions."""


def mono(pcm: np.ndarray, rate: int) -> np.ndarray:
    """[n] or [n, channels], float in [-1, 1] or integers -> [n] float32, not resampled.

    Raises ValueError for impossible rates, shapes and values.
    """
    if isinstance(rate, bool) or not isinstance(rate, int) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"rate {rate!r}: give samples a second as a whole number, {LOWEST_RATE} to {HIGHEST_RATE}")
    pcm = np.asarray(pcm)
    return clean_audio(pcm, rate, rate, "pushed sound") if pcm.size else NOTHING


class Resampler:
    """Sound of any rate in pieces -> samples at `target`. However it is cut, the joined result is the same."""

    def __init__(self, target: int = SAMPLE_RATE) -> None:
        self._rate = self._target = target
        self._stream = None
        self._taken = self._given = 0

    @property
    def held(self) -> float:
        """Seconds of what was pushed that the filter holds back."""
        return 0.0 if self._stream is None else self._taken / self._rate - self._given / self._target

    def push(self, sound: np.ndarray, rate: int) -> np.ndarray:
        """[n] from `mono` -> the samples that became available. A new rate ends the sound before it."""
        before = self.flush() if rate != self._rate else NOTHING
        self._rate = rate
        if rate == self._target or not len(sound):
            return np.concatenate([before, sound])
        if self._stream is None:
            import soxr

            self._stream = soxr.ResampleStream(rate, self._target, 1, dtype="float32")
            self._taken = self._given = 0
        resampled = self._stream.resample_chunk(sound)
        self._taken, self._given = self._taken + len(sound), self._given + len(resampled)
        return np.concatenate([before, resampled])

    def flush(self) -> np.ndarray:
        """What the filter still holds back; the next sound begins anew."""
        stream, self._stream = self._stream, None
        return NOTHING if stream is None else stream.resample_chunk(NOTHING, last=True)

    def reset(self) -> None:
        """Forgets what the filter holds back."""
        self._stream = None


class Track:
    """Sound laid on a timeline. `end`: one past the last sample laid; before, between and after it is silence.

    Pieces may lie apart. `forget` keeps memory flat; what it forgets must not be read any more.
    """

    def __init__(self) -> None:
        self.end = 0
        self._pieces: list[tuple[int, np.ndarray]] = []

    def place(self, at: int, sound: np.ndarray) -> None:
        """Lays sound from position `at` on, which is `end` or later."""
        assert at >= self.end
        if len(sound):
            self._pieces.append((at, sound))
            self.end = at + len(sound)

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] samples; start may be negative."""
        out = np.zeros(stop - start, np.float32)
        for at, piece in self._pieces:
            low, high = max(at, start), min(at + len(piece), stop)
            if low < high:
                out[low - start : high - start] = piece[low - at : high - at]
        return out

    def laid(self, start: int, stop: int) -> int:
        """How many samples from `start` to `stop` were laid, silence not counted."""
        return sum(max(0, min(at + len(piece), stop) - max(at, start)) for at, piece in self._pieces)

    def cut(self, at: int) -> None:
        """Takes away what lies at `at` or later."""
        self._pieces = [(start, piece[: at - start]) for start, piece in self._pieces if start < at]
        self.end = min(self.end, max(at, 0))

    def forget(self, before: int) -> None:
        """Lets go of what lies before `before`, in whole pieces."""
        self._pieces = [(at, piece) for at, piece in self._pieces if at + len(piece) > before]


# What a block hears


class Hearing(Protocol):
    """Features of consecutive frames from a bounded stretch of sound around them."""

    def span(self, frames: range) -> tuple[int, int]:
        """The first and one-past-last sample that the features of `frames` come from."""

    def features(self, sound: Tensor, frames: range) -> Tensor:
        """Features [1, n, C] of `frames` from sound [1, S] of exactly their span."""


class WindowHearing:
    """An encoder of kind "window": exactly the features of the whole clip, `lookahead` samples after the last frame."""

    def __init__(self, encoder: AudioEncoder) -> None:
        assert encoder.config.kind == "window"
        self.encoder = encoder

    def span(self, frames: range) -> tuple[int, int]:
        config = self.encoder.config
        before = config.window - config.lookahead
        return frames.start * SAMPLES_PER_FRAME - before, (frames.stop - 1) * SAMPLES_PER_FRAME + config.lookahead

    def features(self, sound: Tensor, frames: range) -> Tensor:
        return self.encoder.windows(sound, len(frames))


class ClipHearing:
    """An encoder of kind "clip", which is made to hear a whole clip, over a sliding clip around the frames.

    past, ahead: frames before and after that it hears; up to 7 more before, so that the encoder's positions are the
    same in every clip, and at the start of a take no more than there are. `ahead` is also what a block must wait for.
    `difference` measures what this changes. Frames are centred on their time (AudioEncoder.centred), while the
    published resampling of a whole clip lays the first half a position too late and the last half a position too early.
    """

    def __init__(self, encoder: AudioEncoder, past: int, ahead: int) -> None:
        assert encoder.config.kind == "clip"
        self.encoder, self.past, self.ahead = encoder, past, ahead

    def span(self, frames: range) -> tuple[int, int]:
        clip, centre = self._clip(frames), FIELD // 2
        return clip.start * SAMPLES_PER_FRAME - centre, (clip.stop - 1) * SAMPLES_PER_FRAME + centre

    def features(self, sound: Tensor, frames: range) -> Tensor:
        clip = self._clip(frames)
        low = frames.start - clip.start
        sound = normalised(sound) if self.encoder.config.normalise else sound
        return self.encoder.centred(sound, len(clip))[:, low : low + len(frames)]

    def _clip(self, frames: range) -> range:
        start = max(0, frames.start - self.past)
        return range(start - start % FRAMES_PER_POSITIONS, frames.stop + self.ahead)


def hearing_of(encoder: AudioEncoder, past_ms: int, ahead_ms: int) -> Hearing:
    """How blocks hear through `encoder`; past_ms and ahead_ms are for kind "clip", rounded up to frames."""
    if encoder.config.kind == "window":
        return WindowHearing(encoder)
    return ClipHearing(encoder, *(-(-milliseconds * FPS // 1000) for milliseconds in (past_ms, ahead_ms)))


def heard_until(hearing: Hearing, frames: range) -> int:
    """The sample up to which the sound must be known before a block of `frames` can be made and shown."""
    return max(hearing.span(frames)[1], frames.stop * SAMPLES_PER_FRAME)


@torch.inference_mode()
def difference(hearing: Hearing, whole: Hearing, pcm: Tensor, geometry: Geometry) -> float:
    """How far hearing sound [1, S] block by block is from hearing the whole of it at once, in one block, with `whole`:
    relative root mean square of the features."""
    given, wanted = _heard_both(hearing, whole, pcm, geometry)
    return _relative(given - wanted, wanted)


@torch.inference_mode()
def difference_by_place(hearing: Hearing, whole: Hearing, pcm: Tensor, geometry: Geometry) -> list[float]:
    """The same for each place in a block, over all blocks but the first, which is shorter and has no past: the last
    frames hear least of what follows them."""
    given, wanted = _heard_both(hearing, whole, pcm, geometry)
    first, size = geometry.block_frames(1).start, len(geometry.block_frames(1))
    parts = [part[:, first:].unflatten(1, (-1, size)) for part in (given - wanted, wanted)]
    return [_relative(parts[0][:, :, place], parts[1][:, :, place]) for place in range(size)]


def _heard_both(hearing: Hearing, whole: Hearing, pcm: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Features of all frames [1, T, C], block by block and at once."""
    blocks = [geometry.block_frames(index) for index in range(geometry.blocks(clip_frames(pcm.shape[1])))]
    track = Track()
    track.place(0, pcm[0].numpy())

    def heard(hearing: Hearing, frames: range) -> Tensor:
        return hearing.features(torch.from_numpy(track.read(*hearing.span(frames)))[None], frames)

    return torch.cat([heard(hearing, frames) for frames in blocks], dim=1), heard(whole, range(0, blocks[-1].stop))


def _relative(difference: Tensor, wanted: Tensor) -> float:
    return (difference.square().mean().sqrt() / wanted.square().mean().sqrt()).item()
