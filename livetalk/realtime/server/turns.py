"""Fair shares of one machine: sessions denoise in turn, block by block, and decode in turn beside it.

Each half has a turnstile. Whoever comes first goes first, and comes again behind all who wait by then: a session waits
for at most one block of each other one, however much sound it or they have. Blocks of different sessions would
otherwise run at the same time, all of them late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any

from torch import Tensor

from livetalk.streaming.performer import Performer, Picture
from livetalk.streaming.session import Block, Hold, Session, Show
from livetalk.streaming.take import Rendering


class Turnstile:
    """Lets one in at a time, in the order in which they came: a lock that is fair, as a context manager."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._taken = False
        self._waiting: deque[Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = Lock()
            mine.acquire()
            self._waiting.append(mine)
        # Whoever leaves hands over, without anybody else coming between.
        mine.acquire()

    def __exit__(self, *_) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Turns:
    """The turnstiles of one machine, for all sessions on it."""

    def __init__(self) -> None:
        self.denoising, self.decoding = Turnstile(), Turnstile()


class SharedSession(Session):
    """A session that takes turns with others. Its locks are taken inside a turn and never the other way round; who
    holds one while waiting for a turn (nobody) could stop all."""

    def __init__(
        self,
        performer: Performer,
        image: Picture,
        prompt: str,
        seed: int,
        clock: Callable[[], float],
        hold: Hold,
        show: Show,
        turns: Turns,
    ) -> None:
        self._turns = turns
        super().__init__(performer, image, prompt, seed, clock, hold, show)

    def denoise_next(self, fill: bool = False) -> Rendering | None:
        with self._turns.denoising:
            return super().denoise_next(fill)

    def _opening(self, reference: Tensor) -> Any:
        with self._turns.decoding:
            return super()._opening(reference)

    def decode_next(self, rendering: Rendering) -> Block | None:
        with self._turns.decoding:
            return super().decode_next(rendering)
