"""Which of a conversation's answers was heard how far: bookkeeping without clocks or tasks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from livetalk.realtime.talker import Caption, SpeechEnded, SpeechStarted

AUDIBLE_S = 0.001
"""Less than that is rounding: sound is counted in samples of several rates."""


@dataclass
class Playing:
    """An answer that was pushed but not yet heard to its end; sound in seconds."""

    turn: int
    pushed: float = 0.0
    heard: float = 0.0
    captions: deque[Caption] = field(default_factory=deque)
    shown: bool = False
    end: SpeechEnded | None = None


class Playback:
    """Answers one after the other; `unheard` is the one thing told from outside: seconds of all sound that was pushed
    and not heard yet, which is the end of it."""

    def __init__(self) -> None:
        self.turns: deque[Playing] = deque()

    @property
    def audible(self) -> bool:
        """Whether one of them began to be heard."""
        return any(playing.shown for playing in self.turns)

    def begin(self, turn: int) -> None:
        self.turns.append(Playing(turn))

    def caption(self, caption: Caption) -> None:
        self.turns[-1].captions.append(caption)

    def push(self, seconds: float) -> None:
        self.turns[-1].pushed += seconds

    def end(self, item: SpeechEnded) -> None:
        for playing in self.turns:
            if playing.turn == item.turn:
                playing.end = item

    def heard_ms(self, unheard: float) -> dict[int, float]:
        """Of each answer."""
        self._hear(unheard)
        return {playing.turn: 1000 * playing.heard for playing in self.turns}

    def advance(self, unheard: float) -> list[SpeechStarted | Caption | SpeechEnded]:
        """What came to be heard since the last call, in order; answers heard to their end are forgotten."""
        self._hear(unheard)
        happened: list[SpeechStarted | Caption | SpeechEnded] = []
        while self.turns:
            playing = self.turns[0]
            over = playing.end is not None and playing.heard >= playing.pushed
            if not playing.shown:
                if playing.heard < AUDIBLE_S and not over:
                    return happened
                playing.shown = True
                happened.append(SpeechStarted(playing.turn))
            while playing.captions and (over or playing.captions[0].at_ms < 1000 * playing.heard):
                happened.append(playing.captions.popleft())
            if not over:
                return happened
            happened.append(playing.end)
            self.turns.popleft()
        return happened

    def stop(self, last: int) -> list[SpeechEnded]:
        """Forgets answers up to turn `last`; returns an end for those that began to be heard."""
        ends = [SpeechEnded(playing.turn, False) for playing in self.turns if playing.turn <= last and playing.shown]
        self.turns = deque(playing for playing in self.turns if playing.turn > last)
        return ends

    def _hear(self, unheard: float) -> None:
        for playing in reversed(self.turns):
            left = min(unheard, playing.pushed)
            playing.heard = max(playing.heard, playing.pushed - left)
            unheard -= left
