"""One answer on its way into a talker's speech stream: its sound, its captions, and how it is cut short."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

import numpy as np

from livetalk.realtime.lanes import Lane
from livetalk.realtime.talker import Caption, Speech, SpeechEnded, SpeechItem, SpeechStarted

PIECE_S = 0.5
"""The longest piece of sound handed out at once, so that whoever paces it is never far off."""


@dataclass
class Answer:
    """Turn `turn` in `lane`. made_ms: of sound that was made, taken or not. captions: those made. heard_ms: what it was
    cut to."""

    turn: int
    lane: Lane[SpeechItem]
    made_ms: float = 0.0
    captions: list[Caption] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    stopped: bool = False
    heard_ms: float = inf

    def open(self) -> bool:
        """Whether more may be added."""
        return not (self.ended or self.stopped)

    async def speak(self, pcm: np.ndarray, rate: int) -> bool:
        """Adds sound float32 [n], waiting for room; False if the answer was stopped meanwhile."""
        step = max(1, round(PIECE_S * rate))
        for at in range(0, len(pcm), step):
            self._begin()
            piece = Speech(self.turn, pcm[at : at + step], rate)
            if not await self.lane.put(piece, piece.seconds, self.open):
                return False
            self.made_ms += 1000 * piece.seconds
        return self.open()

    async def caption(self, text: str, at_ms: float) -> bool:
        """Adds the next piece of text, waiting for room; False if the answer was stopped meanwhile."""
        self._begin()
        caption = Caption(self.turn, text, at_ms)
        if not await self.lane.put(caption, 0.0, self.open):
            return False
        self.captions.append(caption)
        return True

    def end(self, complete: bool = True) -> None:
        """Nothing more comes. An answer of nothing at all leaves no trace."""
        if self.open():
            self.ended = True
            if self.begun:
                self.lane.put_now(SpeechEnded(self.turn, complete))

    def stop(self) -> float:
        """Takes back all that waits and lets nothing more in; returns the milliseconds of its sound that were taken."""
        if self.stopped:
            return self.made_ms
        dropped = self.lane.drop(lambda item: item.turn == self.turn)
        self.stopped = True
        left = sum(1000 * item.seconds for item in dropped if isinstance(item, Speech))
        self.made_ms = max(0.0, self.made_ms - left)
        started = self.begun and not any(isinstance(item, SpeechStarted) for item in dropped)
        ended = self.ended and not any(isinstance(item, SpeechEnded) for item in dropped)
        if started and not ended:
            self.lane.put_now(SpeechEnded(self.turn, False))
        return self.made_ms

    @property
    def text(self) -> str:
        """The captions that began to be spoken within the first `heard_ms`."""
        return "".join(caption.text for caption in self.captions if caption.at_ms < self.heard_ms).strip()

    def _begin(self) -> None:
        if not self.begun and self.open():
            self.begun = True
            self.lane.put_now(SpeechStarted(self.turn))


def checked_ms(heard_ms: float | None, taken_ms: float) -> float:
    """What was heard of an answer of which `taken_ms` were taken. Raises ValueError for what is no time."""
    if heard_ms is None:
        return taken_ms
    if not (isfinite(heard_ms) and heard_ms >= 0):
        raise ValueError(f"heard_ms {heard_ms}: give the milliseconds of the answer that were heard, 0 or more")
    return min(float(heard_ms), taken_ms)
