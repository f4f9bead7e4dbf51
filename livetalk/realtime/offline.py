"""Offline: a Thinker writes the answer, a Voice speaks it, sentence by sentence, and nothing leaves this computer.

While a sentence is spoken the next is being thought: each has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial

import numpy as np

from livetalk.realtime.answer import Answer, checked_ms
from livetalk.realtime.ear import Ear
from livetalk.realtime.lanes import Worker
from livetalk.realtime.sentences import Sentences
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import ANSWERS_KEPT, Failed, Heard, State, Talker, UserCaption, UserSpeech
from livetalk.realtime.thinker import Line, Thinker
from livetalk.realtime.voices import Voice

log = logging.getLogger(__name__)

REMEMBERED = 200
"""Lines of the conversation that are kept."""
DEAF = "I notice that you are speaking, but I cannot understand words. Please type to me instead."
STILL_DEAF = "I cannot understand words. Please type to me."
DEAF_AGAIN_S = 15.0
"""It is not said more often than that: somebody may be talking to somebody else."""


class OfflineTalker(Talker):
    """thinker and voice may be shared with other talkers. It has no speech recogniser: a voice interrupts, and is told
    so when it ends."""

    def __init__(self, config: TalkerConfig, thinker: Thinker, voice: Voice) -> None:
        super().__init__(config.ahead_s)
        self._thinker, self._voice = thinker, voice
        self._ear = Ear(config.detector)
        self._mind, self._mouth = Worker("livetalk-think"), Worker("livetalk-speak")
        self._past: deque[Line | Answer] = deque(maxlen=REMEMBERED)
        self._turn = 0
        self._task: asyncio.Task | None = None
        self._changing = asyncio.Lock()
        self._deaf_since: float | None = None

    async def __aexit__(self, *_) -> None:
        self._close()
        try:
            await self._halt()
        finally:
            await asyncio.gather(self._mind.close(), self._mouth.close())

    @property
    def turn(self) -> int:
        return self._turn

    # Input

    async def say(self, text: str) -> int:
        text = self.check(text)
        async with self._changing:
            await self._cancel(None, self._turn)
            self._past.append(Line(True, text))
            turn = self._start(self._think(self.lines()))
            self._signals.put_now(UserCaption(turn, text))
            return turn

    async def hear(self, pcm: np.ndarray, rate: int) -> None:
        for voice in self._ear.push(pcm, rate)[1]:
            await self._notice(voice.started)

    async def release(self) -> None:
        if self._ear.end():
            await self._notice(False)

    async def cancel(self, heard_ms: float | None = None, turn: int | None = None) -> Heard | None:
        checked_ms(heard_ms, 0.0)
        async with self._changing:
            return await self._cancel(heard_ms, self._turn if turn is None else turn)

    def lines(self) -> list[Line]:
        """The conversation so far, as far as it was heard."""
        spoken = [entry if isinstance(entry, Line) else Line(False, entry.text) for entry in self._past]
        return [line for line in spoken if line.text]

    # Turns

    async def _cancel(self, heard_ms: float | None, turn: int) -> Heard | None:
        """The caller has the lock."""
        answers = [entry for entry in self._past if isinstance(entry, Answer)][-ANSWERS_KEPT:]
        answer = next((answer for answer in answers if answer.turn == turn and not answer.stopped), None)
        if answer is None:
            return None
        answer.heard_ms = checked_ms(heard_ms, answer.stop())
        if turn == self._turn:
            await self._halt()
        return Heard(turn, answer.heard_ms, answer.text)

    def _start(self, sentences: AsyncIterator[str]) -> int:
        self._turn += 1
        answer = Answer(self._turn, self._speech)
        self._past.append(answer)
        self._become(State.THINKING)
        self._task = asyncio.create_task(self._give(answer, sentences))
        self._task.add_done_callback(partial(self._given, answer))
        return self._turn

    async def _halt(self) -> None:
        """Ends the task of the turn under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._rest()

    def _given(self, answer: Answer, task: asyncio.Task) -> None:
        error = None if task.cancelled() else task.exception()
        answer.end(complete=error is None)
        if error is not None:
            if not isinstance(error, ValueError):
                log.error("turn %d failed", answer.turn, exc_info=error)
            self._signals.put_now(Failed(f"this answer failed: {error}", retryable=True))
        if self._task is task:
            self._rest()

    def _rest(self) -> None:
        self._become(State.LISTENING if self._ear.detector.speaking else State.IDLE)

    # An answer

    async def _give(self, answer: Answer, sentences: AsyncIterator[str]) -> None:
        coming = asyncio.ensure_future(anext(sentences, None))
        try:
            while (sentence := await coming) is not None:
                coming = asyncio.ensure_future(anext(sentences, None))
                await self._utter(answer, sentence)
        finally:
            coming.cancel()
            await asyncio.wait([coming])
            await sentences.aclose()

    async def _think(self, lines: Sequence[Line]) -> AsyncIterator[str]:
        pieces, whole = self._thinker.think(lines), Sentences()
        try:
            while (piece := await self._mind.run(partial(next, pieces, None))) is not None:
                for sentence in whole.push(piece):
                    yield sentence
            for sentence in whole.flush():
                yield sentence
        finally:
            # In its thread, where a piece may still be in the making.
            self._mind.later(pieces.close)

    async def _utter(self, answer: Answer, sentence: str) -> None:
        said = await self._mouth.run(partial(self._voice.say, sentence))
        begins = answer.made_ms
        for at, (ms, word) in enumerate(said.words, 1):
            await answer.caption(word + " " * (at == len(said.words)), begins + ms)
        if len(said.pcm) and answer.open():
            self._become(State.SPEAKING)
            await answer.speak(said.pcm, said.rate)

    # A voice that is not understood

    async def _notice(self, started: bool) -> None:
        self._signals.put_now(UserSpeech(started))
        if self._state in (State.THINKING, State.SPEAKING):
            return
        self._rest()
        now = asyncio.get_running_loop().time()
        if started or (self._deaf_since is not None and now - self._deaf_since < DEAF_AGAIN_S):
            return
        async with self._changing:
            if self._state == State.IDLE:
                self._start(_one(DEAF if self._deaf_since is None else STILL_DEAF))
                self._deaf_since = now


async def _one(sentence: str) -> AsyncIterator[str]:
    yield sentence
