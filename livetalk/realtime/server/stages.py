"""Where the time goes from the end of a typed sentence to the first frame that answers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from livetalk.realtime.conversation import Stage
from livetalk.streaming.session import Dropped

STAGES = ("speak", "perform", "send")
AUDIBLE = 2e-4
"""Of full scale: what is below is silence."""


@dataclass
class Stopwatch:
    """Marks the first time of each of STAGES after `start`, in order; times in seconds of whatever clock is given."""

    began: float | None = None
    marks: dict[str, float] = field(default_factory=dict)

    def start(self, now: float) -> None:
        self.began, self.marks = now, {}

    def mark(self, stage: str, now: float) -> bool:
        """Whether that was news: only the next stage of a measurement under way is."""
        if self.began is None or len(self.marks) == len(STAGES) or stage != STAGES[len(self.marks)]:
            return False
        self.marks[stage] = now
        return True

    @property
    def total(self) -> float | None:
        """Seconds from the start to the last stage; None before."""
        return self.marks[STAGES[-1]] - self.began if len(self.marks) == len(STAGES) else None

    def milliseconds(self) -> dict[str, int]:
        """Of each stage, from the end of the one before; only where all are known."""
        if self.total is None:
            return {}
        times = pairwise([self.began, *self.marks.values()])
        return {stage: round(1000 * (after - before)) for stage, (before, after) in zip(STAGES, times, strict=True)}


class Watched:
    """A conversation's stage that tells when sound is pushed."""

    def __init__(self, stage: Stage, pushed) -> None:
        self._stage, self._pushed = stage, pushed

    def push_audio(self, pcm: np.ndarray, rate: int) -> float:
        backlog = self._stage.push_audio(pcm, rate)
        self._pushed()
        return backlog

    def flush(self) -> None:
        self._stage.flush()

    def interrupt(self) -> Dropped:
        return self._stage.interrupt()

    @property
    def unheard(self) -> float:
        return self._stage.unheard


def audible(sound: np.ndarray) -> bool:
    """Whether there is something to hear."""
    return bool(len(sound)) and float(np.abs(sound).max()) > AUDIBLE
