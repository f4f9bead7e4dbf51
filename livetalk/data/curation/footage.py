"""Videos of any size, rate and codec as upright pictures at FPS and sound at SAMPLE_RATE, on one clock.

Time begins with the first picture. Frame j of a video is the picture nearest to j / FPS seconds, but none is shown more
than EARLY before its time, so that a variable rate, a higher and a lower one all keep their timing. PyAV decodes;
sources are opened for reading only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.geometry import FPS
from livetalk.media import clean_audio

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp")
TICK = Fraction(1, 1000)  # time stamps are rounded, in some containers to milliseconds
EARLY = Fraction(1, 2 * FPS)  # seconds
GAP = 0.05  # seconds: pieces of sound that are nearer than this to each other are one


class DamagedError(Exception):
    """A file that cannot be read, or not to its end; the text says what is wrong."""


@dataclass(frozen=True)
class Video:
    """What a file says of itself. size: (height, width) as shown: upright, of square pixels; turned: degrees, counter-
    clockwise, by which its pictures are turned for that; promised: seconds of picture that it claims to have, 0 where
    it does not say; start: time stamp of its first picture."""

    path: Path
    size: tuple[int, int]
    turned: int
    promised: Fraction
    start: Fraction
    sound: bool


@dataclass(frozen=True)
class Shown:
    """Frame `index` of a video: uint8 [H, W, 3]. fresh: another picture than the frame before."""

    index: int
    picture: np.ndarray
    fresh: bool


def videos_in(folder: Path) -> list[Path]:
    """Every video file below a folder, hidden ones left out, in the order of their names."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def require_av() -> Any:
    """The module av. Raises ValueError, with the remedy, where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ValueError("PyAV, which reads videos, is not installed: pip install av") from error
    return av


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A container of PyAV. Raises DamagedError where the file is no media file."""
    av = require_av()
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise DamagedError(f"cannot be opened ({error.strerror or type(error).__name__})") from error
    with container:
        yield container


def probe(path: Path) -> Video:
    """Looks at the first picture. Raises DamagedError for a file without one."""
    with opened(path) as container:
        if not container.streams.video:
            raise DamagedError("has no picture")
        stream = container.streams.video[0]
        first = next(_decoded(container, stream), None)
        if first is None:
            raise DamagedError("has no picture that can be decoded")
        width, height = round(first.width * (stream.sample_aspect_ratio or 1)), first.height
        size = (width, height) if first.rotation % 180 else (height, width)
        length = stream.duration * stream.time_base if stream.duration else Fraction(0)
        if not length and container.duration:
            length = Fraction(container.duration, require_av().time_base)
        start = _stamp(first, stream) or Fraction(0)
        return Video(path, size, first.rotation % 360, length, start, bool(container.streams.audio))


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream as far as they can be decoded: a broken packet is passed over, a broken file ends early."""
    av = require_av()
    stream.thread_type = "NONE"  # several processes share the work
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError):
            packet = None
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            continue
        yield from decoded


def _stamp(frame: Any, stream: Any) -> Fraction | None:
    ticks = frame.dts if frame.pts is None else frame.pts
    return None if ticks is None else ticks * stream.time_base


def frames(video: Video, start: int = 0, stop: int | None = None, side: int | None = None) -> Iterator[Shown]:
    """Frames start .. stop-1, fewer where the video ends. side: of the shorter side in pixels, None: as it is.

    The last picture is shown for as long as the one before it was.
    """
    with opened(video.path) as container:
        stream = container.streams.video[0]
        decoded = _sought(container, stream, video, start) if start else _decoded(container, stream)
        if decoded is not None:
            yield from _held(_timed(decoded, stream, video), video, start, stop, side)
            return
    # Some files cannot be entered in the middle: from the beginning.
    yield from (shown for shown in frames(video, 0, stop, side) if shown.index >= start)


def _sought(container: Any, stream: Any, video: Video, index: int) -> Iterator[Any] | None:
    """The decoded pictures from one that is shown at or before a frame, None where seeking does not lead there."""
    av = require_av()
    wanted = video.start + Fraction(index, FPS)
    try:
        container.seek(int((wanted - TICK) / stream.time_base), stream=stream, backward=True)
    except (av.error.FFmpegError, OSError):
        return None
    decoded = _decoded(container, stream)
    first = next(decoded, None)
    at = None if first is None else _stamp(first, stream)
    return chain([first], decoded) if at is not None and at <= wanted + TICK else None


def _timed(decoded: Iterator[Any], stream: Any, video: Video) -> Iterator[tuple[Any, Fraction]]:
    """Pictures with the seconds from which on they are taken; after them None, with the end of the last."""
    at, step = None, Fraction(1, FPS)
    for frame in decoded:
        stamp = _stamp(frame, stream)
        now = stamp - video.start if stamp is not None else Fraction(0) if at is None else at + step
        if at is not None:
            if now <= at:
                continue  # out of order, or twice
            step = now - at
        yield frame, now if at is None else now - min(step / 2, EARLY)
        at = now
    if at is not None:
        yield None, at + step


def _held(
    timed: Iterator[tuple[Any, Fraction]], video: Video, start: int, stop: int | None, side: int | None
) -> Iterator[Shown]:
    """Each frame j is the last picture that is taken from j / FPS seconds or earlier on."""
    for (frame, now), (_, then) in pairwise(timed):
        first, last = (ceil((time - TICK) * FPS) for time in (now, then))
        span = range(max(first, start), last if stop is None else min(last, stop))
        picture = _upright(frame, video, side) if span else None
        for index in span:
            yield Shown(index, picture, index == first)
        if stop is not None and last >= stop:
            return


def _upright(frame: Any, video: Video, side: int | None) -> np.ndarray:
    """uint8 [H, W, 3], its shorter side `side` pixels, or as large as it is."""
    height, width = video.size
    scale = side / min(height, width) if side else 1.0
    height, width = max(2, round(height * scale)), max(2, round(width * scale))
    if video.turned % 180:
        height, width = width, height
    picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, video.turned // 90))


def sound_of(video: Video) -> np.ndarray:
    """The whole sound, [samples] float32 mono at SAMPLE_RATE, from the first picture on, channels
    averaged; empty where there is none.

    Gaps between its pieces are silence, so that what follows keeps its time. Raises DamagedError.
    """
    av = require_av()
    pieces: list[np.ndarray] = []
    have, rate, plain = 0, 0, None
    if not video.sound:
        return np.zeros(0, np.float32)
    with opened(video.path) as container:
        stream = container.streams.audio[0]
        for frame in _decoded(container, stream):
            rate = rate or frame.sample_rate
            plain = plain or av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            stamp = _stamp(frame, stream)
            wanted = have if stamp is None else round((stamp - video.start) * rate)
            if not pieces:
                have = min(wanted, 0)
            if wanted - have > GAP * rate or not pieces:
                pieces.append(np.zeros(wanted - have, np.float32))
                have = wanted
            for part in plain.resample(frame):
                pieces.append(part.to_ndarray().mean(axis=0))
                have += len(pieces[-1])
    if not pieces:
        return np.zeros(0, np.float32)
    whole = np.concatenate(pieces)
    whole = whole[len(whole) - have :] if have < len(whole) else whole
    try:
        return clean_audio(whole, rate, name="the sound") if len(whole) else np.zeros(0, np.float32)
    except ValueError as error:
        raise DamagedError(str(error)) from error
