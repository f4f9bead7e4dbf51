"""The Talker: what the user types or says comes in, the avatar's speech comes out. One talker is one conversation.

    async with make_talker(TalkerConfig()) as talker:      # livetalk.realtime.talkers
        await talker.say("Good morning!")
        async for item in talker.speech():                 # SpeechStarted, Caption, Speech, ..., SpeechEnded
            ...
        async for signal in talker.signals():              # StateChanged, UserSpeech, UserCaption, Failed
            ...

There are two streams, each for one reader, because they must not wait for each other. `speech()` is the answer itself
in the order of its sound; its reader sets the pace: a talker makes no more than a stated number of seconds that nobody
has taken. `signals()` are small and never wait, so that the user's voice is noticed while speech waits to be played.

Most programs want neither, but `livetalk.realtime.conversation.Conversation`, which joins a talker and a live stream.

A turn is a number from 1 on, one for each answer. For each turn come, in `speech()`, exactly one SpeechStarted, then
captions and speech, then exactly one SpeechEnded; turns do not overlap. A turn that is cancelled before anything of it
was taken leaves nothing there at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from livetalk.realtime.lanes import Lane

MOST_SIGNALS = 256
MOST_LETTERS = 2000
"""Of a sentence that the user types."""
ANSWERS_KEPT = 4


class State(StrEnum):
    """What a talker does. SPEAKING ends when all sound is made: a Conversation knows when it was heard."""

    IDLE = "idle"
    LISTENING = "listening"  # the user's voice is there
    THINKING = "thinking"  # an answer is on its way, none of its sound is there yet
    SPEAKING = "speaking"


# What comes out of speech()


@dataclass(frozen=True)
class SpeechStarted:
    """The answer `turn` begins."""

    turn: int


@dataclass(frozen=True, eq=False)
class Speech:
    """The next piece of an answer's sound: float32 [n] mono in [-1, 1], n > 0, `rate` samples a second."""

    turn: int
    pcm: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.pcm) / self.rate


@dataclass(frozen=True)
class Caption:
    """The next piece of an answer's text; joined as they are, the pieces are the transcript. It is spoken from `at_ms`
    of the answer's sound on: exactly where talkers know (offline), else roughly."""

    turn: int
    text: str
    at_ms: float


@dataclass(frozen=True)
class SpeechEnded:
    """Nothing more comes of `turn`. complete: False if it was cancelled or failed."""

    turn: int
    complete: bool


# What comes out of signals()


@dataclass(frozen=True)
class StateChanged:
    """The talker is in another state."""

    state: State


@dataclass(frozen=True)
class UserSpeech:
    """The user's voice began or ended. Where it begins while the avatar speaks, the user wants to be heard: stop."""

    started: bool


@dataclass(frozen=True)
class UserCaption:
    """All of what the user typed, or said where the talker can tell. `turn` is the answer to it."""

    turn: int
    text: str


@dataclass(frozen=True)
class Failed:
    """Something went wrong, in one line for the user that says what helps. retryable: the talker goes on (it is
    connecting again, or the next sentence may succeed); otherwise no answer will come any more: make a new talker."""

    message: str
    retryable: bool


SpeechItem = SpeechStarted | Speech | Caption | SpeechEnded
Signal = StateChanged | UserSpeech | UserCaption | Failed


@dataclass(frozen=True)
class Heard:
    """What an interrupted answer comes down to: its first `heard_ms` and the text in them, which is all the talker
    remembers of it."""

    turn: int
    heard_ms: float
    text: str


class Talker(ABC):
    """See the module. Use it as an async context manager, in one event loop; all its state is its own.

    `say`, `hear`, `release` and `cancel` may be called from any task of that loop. Entering raises ValueError if the
    talker cannot work at all (a package or a voice is missing); what goes wrong later is a Failed.
    """

    def __init__(self, ahead_s: float) -> None:
        """ahead_s: seconds of speech that may wait to be taken; making more waits for the reader."""
        self._speech: Lane[SpeechItem] = Lane(ahead_s)
        self._signals: Lane[Signal] = Lane(ahead_s, MOST_SIGNALS)
        self._state = State.IDLE

    async def __aenter__(self) -> Talker:
        return self

    @abstractmethod
    async def __aexit__(self, *_) -> None:
        """Ends both streams and leaves nothing behind: no task, thread, connection or file."""

    # Input

    @abstractmethod
    async def say(self, text: str) -> int:
        """The user typed `text`; returns the turn that answers it. An answer that is under way is cancelled first, as
        by `cancel()`: whoever knows what was heard of it calls `cancel(heard_ms)` before. Raises ValueError for text
        that is empty or too long."""

    @abstractmethod
    async def hear(self, pcm: np.ndarray, rate: int) -> None:
        """The user's voice as it comes: [n] or [n, channels], any n, float in [-1, 1] or integers, any rate from 4000
        to 384000. Returns quickly, or waits where the talker cannot take more. Cutting the sound otherwise changes
        nothing. Raises ValueError for what is no sound."""

    async def release(self) -> None:  # noqa: B027
        """The user let go of the push-to-talk button: what was heard so far is all. With an open microphone it is never
        called, and the talker finds the end of a sentence itself."""

    @abstractmethod
    async def cancel(self, heard_ms: float | None = None, turn: int | None = None) -> Heard | None:
        """Stops an answer, at once; it may be under way or given already. `turn` is the latest by default.

        When it returns, no more speech of that turn comes out of `speech()`, and the talker's memory of the answer is
        cut to what was heard. heard_ms: milliseconds of the turn's sound that the user heard; None stands for all that
        was taken from `speech()`. Returns None if there is nothing to cut: no such answer, or it is cut already.
        Safe to call at any time and again; an older turn is remembered for ANSWERS_KEPT turns.
        """

    # Output

    def speech(self) -> AsyncIterator[SpeechItem]:
        """Answers as they are made, for one reader; ends when the talker is closed."""
        return self._speech

    def signals(self) -> AsyncIterator[Signal]:
        """Everything else, for one reader; ends when the talker is closed. MOST_SIGNALS wait at most: the oldest go."""
        return self._signals

    @property
    def state(self) -> State:
        return self._state

    @property
    @abstractmethod
    def turn(self) -> int:
        """The latest turn, which may still be thought about; 0 before the first."""

    @staticmethod
    def check(text: str) -> str:
        """The text for `say`, in one line of single spaces. Raises ValueError if it is empty or too long."""
        text = " ".join(text.split())
        if not text:
            raise ValueError("the text is empty: type a sentence")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"the text has {len(text)} letters: type no more than {MOST_LETTERS} at a time")
        return text

    # For implementations

    def _close(self) -> None:
        """Ends both streams."""
        self._speech.close()
        self._signals.close()

    def _become(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._signals.put_now(StateChanged(state))
