"""How a video is divided: stretches without obstacles, from which clips are cut, and what lies between, with why."""

from __future__ import annotations

from dataclasses import dataclass, replace

from livetalk.data.curation.scan import Obstacle
from livetalk.geometry import FPS

# Of several obstacles in one place the first of these is the reason that is given.
GRAVEST = (
    "damaged",
    "no sound",
    "black",
    "white",
    "several faces",
    "no face",
    "cut",
    "frozen",
    "silence",
)


@dataclass(frozen=True)
class Stretch:
    """Frames in which a clip can begin at `start` or up to `room` frames later."""

    start: int
    room: int


def next_stretch(
    obstacles: tuple[Obstacle, ...], total: int, start: int, length: int, slack: int
) -> Stretch | Obstacle:
    """From frame `start` of `total` on: a stretch for a clip of `length` frames with up to `slack` frames of room, or
    the frames that cannot hold one, with the reason."""
    ahead = [found for found in obstacles if found.within(start, min(start + length, total))]
    if ahead:
        worst = min(ahead, key=lambda found: (GRAVEST.index(found.reason), found.start))
        return replace(worst, start=start, stop=min(max(worst.start, worst.stop), total))
    if start + length > total:
        left, wanted = (total - start) / FPS, length / FPS
        return Obstacle("short", f"{left:.2f} s are left, a clip takes {wanted:.2f} s", start, total)
    room = min(slack, total - start - length)
    while any(found.within(start, start + length + room) for found in obstacles):
        room -= 1
    return Stretch(start, room)


def joined(parts: list[Obstacle]) -> list[Obstacle]:
    """Neighbours of one reason as one part, with the detail of the first."""
    out: list[Obstacle] = []
    for part in parts:
        if out and out[-1].reason == part.reason and out[-1].stop == part.start:
            out[-1] = replace(out[-1], stop=part.stop)
        else:
            out.append(part)
    return out
