"""One pass over a video: what stands in the way of clips, and where its one face is.

N frames at FPS; obstacles are stretches that no clip may touch, each with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import numpy as np
from PIL import Image

from livetalk.data.curation.footage import DamagedError, Video, frames, sound_of
from livetalk.data.curation.limits import Limits
from livetalk.faces import Finder
from livetalk.geometry import FPS, SAMPLES_PER_FRAME

SIDE = 480  # pixels of the shorter side at which faces are looked for
THUMBNAIL = (32, 18)
NEIGHBOURS = 4  # frames on each side that a cut is held against
SHORT = 0.3  # seconds by which a whole file may be shorter than it says
EVERY = 2  # frames from one search for faces to the next
LEAP = 0.5  # of a face's height: no head goes as far between two searches

Voice = Callable[[np.ndarray, int], np.ndarray]
"""Sound [samples] at SAMPLE_RATE and N -> bool [N], whether somebody speaks during each frame."""


@dataclass(frozen=True)
class Obstacle:
    """Frames start .. stop-1 that no clip may hold; a cut has start = stop and lies before that frame."""

    reason: str
    detail: str
    start: int
    stop: int

    def within(self, start: int, stop: int) -> bool:
        """Whether it is in the way of a clip of frames start .. stop-1."""
        if self.start == self.stop:
            return start < self.start < stop
        return self.start < stop and start < self.stop


@dataclass(frozen=True)
class Scan:
    """boxes: float [N, 4] of the largest face in pixels of the source, nan where none is; fresh: bool [N]; pcm: [N *
    1000]; speech: bool [N]."""

    video: Video
    boxes: np.ndarray
    fresh: np.ndarray
    pcm: np.ndarray
    speech: np.ndarray
    obstacles: tuple[Obstacle, ...]

    def __len__(self) -> int:
        return len(self.fresh)


@dataclass(frozen=True)
class Seen:
    """What was noted of N' decoded frames: mean brightness, thumbnails [N', ...] from 0 to 1, number of faces that
    count, boxes [N', 4], and whether each is a picture of its own."""

    light: np.ndarray
    thumbnails: np.ndarray
    faces: np.ndarray
    boxes: np.ndarray
    fresh: np.ndarray


def scan(video: Video, finder: Finder, voice: Voice, limits: Limits) -> Scan:
    """Looks at every frame and hears the whole sound. Raises DamagedError if there is nothing to see."""
    seen = look(video, finder, limits)
    count = len(seen.fresh)
    if not count:
        raise DamagedError("has no picture that can be decoded")
    pcm = sound_of(video)
    heard = len(pcm)
    promised = max(count, ceil(float(video.promised) * FPS))
    broken = (promised - count) / FPS > SHORT
    total = promised if broken else count
    pcm = np.pad(pcm[: total * SAMPLES_PER_FRAME], (0, max(0, total * SAMPLES_PER_FRAME - heard)))
    speech = voice(pcm, total) if heard else np.zeros(total, bool)
    found = [*black(seen, limits), *cuts(seen, limits), *still(seen, limits), *crowds(seen, limits)]
    found += silence(speech, limits) if heard else [Obstacle("no sound", "the file has no sound", 0, total)]
    if broken:
        ends = f"ends at {count / FPS:.2f} s of {promised / FPS:.2f} s"
        found.insert(0, Obstacle("damaged", ends, count, total))
    more = total - count
    boxes = np.pad(seen.boxes, ((0, more), (0, 0)), constant_values=np.nan)
    return Scan(video, boxes, np.pad(seen.fresh, (0, more)), pcm, speech, tuple(found))


def look(video: Video, finder: Finder, limits: Limits) -> Seen:
    """Decodes every picture once; one that stands for several frames is looked at once."""
    scale, found = min(video.size) / SIDE, np.zeros((0, 4))
    light, thumbnails, faces, boxes, fresh = [], [], [], [], []
    for shown in frames(video, side=SIDE):
        fresh.append(shown.fresh)
        if shown.fresh or not light:
            small = np.asarray(Image.fromarray(shown.picture).resize(THUMBNAIL, Image.Resampling.BOX)) / 255.0
            found = found if shown.index % EVERY else finder.find(shown.picture)
            heights = found[:, 3] - found[:, 1]
            largest = found[heights.argmax()] * scale if len(found) else np.full(4, np.nan)
            noted = (small.mean(), small, int((heights >= limits.second_face * heights.max(initial=0)).sum()), largest)
        for notes, value in zip((light, thumbnails, faces, boxes), noted, strict=True):
            notes.append(value)
    shape = (-1, *THUMBNAIL[::-1], 3)
    return Seen(
        np.asarray(light),
        np.asarray(thumbnails).reshape(shape),
        np.asarray(faces, int),
        np.asarray(boxes, float).reshape(-1, 4),
        np.asarray(fresh, bool),
    )


def runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of every run of true values."""
    at = 0
    for value, group in groupby(mask.tolist()):
        length = len(list(group))
        if value:
            yield at, at + length
        at += length


def black(seen: Seen, limits: Limits) -> Iterator[Obstacle]:
    """Pictures that show nothing, however few."""
    for reason, mask in (("black", seen.light < limits.black), ("white", seen.light > limits.white)):
        for start, stop in runs(mask):
            light = seen.light[start:stop].mean()
            yield Obstacle(reason, f"brightness {light:.2f} for {(stop - start) / FPS:.2f} s", start, stop)


def cuts(seen: Seen, limits: Limits) -> Iterator[Obstacle]:
    """Where the picture becomes another one at once: a change that stands out, or a face that leaps."""
    change = np.abs(np.diff(seen.thumbnails, axis=0)).mean(axis=(1, 2, 3))
    centre = (seen.boxes[:, :2] + seen.boxes[:, 2:]) / 2
    height = np.fmin(seen.boxes[1:, 3] - seen.boxes[1:, 1], seen.boxes[:-1, 3] - seen.boxes[:-1, 1])
    leaps = np.linalg.norm(np.diff(centre, axis=0), axis=1) > LEAP * height
    for i, size in enumerate(change):
        around = np.r_[change[max(0, i - NEIGHBOURS) : i], change[i + 1 : i + 1 + NEIGHBOURS]]
        stands_out = size > limits.cut and size > limits.cut_ratio * around.max(initial=0)
        if stands_out or leaps[i]:
            what = "the face leaps" if leaps[i] and not stands_out else "the picture changes"
            yield Obstacle("cut", f"{what} at {(i + 1) / FPS:.2f} s", i + 1, i + 1)


def still(seen: Seen, limits: Limits) -> Iterator[Obstacle]:
    """One picture for longer than pictures stand."""
    for start, stop in runs(~seen.fresh):
        if (stop - start + 1) / FPS > limits.frozen:
            yield Obstacle("frozen", f"one picture for {(stop - start + 1) / FPS:.2f} s", start, stop)


def crowds(seen: Seen, limits: Limits) -> Iterator[Obstacle]:
    """No face, or more than one, for longer than a finder errs."""
    shown = seen.light >= limits.black
    for reason, mask in (("no face", (seen.faces == 0) & shown), ("several faces", seen.faces > 1)):
        for start, stop in runs(mask):
            if (stop - start) / FPS > limits.faces_gap:
                most = seen.faces[start:stop].max()
                what = f"{most} faces" if most else "no face"
                yield Obstacle(reason, f"{what} for {(stop - start) / FPS:.2f} s", start, stop)


def silence(speech: np.ndarray, limits: Limits) -> Iterator[Obstacle]:
    """Where nobody speaks for longer than in a pause."""
    for start, stop in runs(~speech):
        if (stop - start) / FPS > limits.pause:
            yield Obstacle("silence", f"no speech for {(stop - start) / FPS:.2f} s", start, stop)
