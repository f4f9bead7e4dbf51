"""What a stream hands out, and what an interruption takes back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from livetalk.geometry import FPS, SAMPLES_PER_FRAME
from livetalk.streaming.take import Ticket


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive frames uint8 [n, H, W, 3] from frame `first` of the stream on, and their sound, float32
    [n * SAMPLES_PER_FRAME]. silent: none of that sound was pushed."""

    frames: np.ndarray
    sound: np.ndarray
    first: int
    silent: bool
    ticket: Ticket

    @property
    def stop(self) -> int:
        """One past its last frame."""
        return self.first + len(self.frames)

    @property
    def start(self) -> float:
        """When its first frame is shown, in seconds of the stream."""
        return self.first / FPS

    def until(self, frame: int) -> Block | None:
        """What of it comes before `frame`; None if nothing does."""
        if frame >= self.stop:
            return self
        count = max(0, frame - self.first)
        shorter = replace(self, frames=self.frames[:count], sound=self.sound[: count * SAMPLES_PER_FRAME])
        return shorter if count else None

    def fresh(self) -> Block | None:
        """What of it is still valid: the stream may have taken frames back since it was made."""
        stale = self.ticket.stale_from
        return self if stale is None else self.until(stale)


def joined(blocks: list[Block]) -> Block:
    """Parts of one block, which follow each other, as one."""
    if len(blocks) == 1:
        return blocks[0]
    frames = np.concatenate([block.frames for block in blocks])
    sound = np.concatenate([block.sound for block in blocks])
    return replace(blocks[0], frames=frames, sound=sound, silent=all(block.silent for block in blocks))


@dataclass(frozen=True)
class Dropped:
    """What an interruption took back: `frames` rendered ones from `first` on, which is where the stream goes on, and
    `unheard` seconds of pushed sound that was not shown. Frames that are shown on without sound come before `first`."""

    first: int
    frames: int
    unheard: float
