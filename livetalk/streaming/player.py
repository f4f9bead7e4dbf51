"""What lies between a stream and its viewer: frames that wait to be shown. Its position is the session's clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock

import numpy as np

from livetalk.geometry import FPS, SAMPLES_PER_FRAME
from livetalk.streaming.session import Block


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame uint8 [H, W, 3] of the stream and its sound, float32 [SAMPLES_PER_FRAME]."""

    index: int
    frame: np.ndarray
    sound: np.ndarray


class Player:
    """Feed it with `put` and `pull` a frame every 1 / FPS s; thread-safe.

    player = Player()
    live = performer.live(image, prompt, clock=player.position, hold=player.drop, show=player.put)
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._blocks: deque[Block] = deque()
        self._next = 0

    def position(self) -> float:
        """Seconds of the stream that were pulled."""
        return self._next / FPS

    @property
    def lead(self) -> float:
        """Seconds that wait."""
        with self._lock:
            return (self._blocks[-1].stop - self._next) / FPS if self._blocks else 0.0

    def put(self, block: Block) -> None:
        """Adds frames; they replace those waiting from their first one on."""
        with self._lock:
            # Whoever took it from the stream may have held it while it was taken back.
            if (fresh := block.fresh()) is not None:
                self._cut(fresh.first)
                if fresh.stop > self._next:
                    self._blocks.append(fresh)

    def drop(self, frame: int) -> int:
        """Forgets frames from `frame` of the stream on; returns the first of them that was not pulled yet."""
        with self._lock:
            self._cut(frame)
            return max(frame, self._next)

    def pull(self) -> Shown | None:
        """The next frame; None if there is none, when the position stays and the viewer sees the last one longer."""
        with self._lock:
            if not self._blocks:
                return None
            block, index = self._blocks[0], self._next
            at = index - block.first
            assert at >= 0, f"frame {index} was pulled, and the next block begins with {block.first}"
            self._next = index + 1
            if self._next == block.stop:
                self._blocks.popleft()
            sound = block.sound[at * SAMPLES_PER_FRAME : (at + 1) * SAMPLES_PER_FRAME]
            return Shown(index, block.frames[at], sound)

    def _cut(self, frame: int) -> None:
        kept = (block.until(frame) for block in self._blocks)
        self._blocks = deque(block for block in kept if block is not None and block.stop > self._next)
