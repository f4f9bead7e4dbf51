"""A talker and a live stream, joined: the talker's speech is performed, and the user can cut in at any time.

    player = Player()
    # Feed the player from the stream.
    live = performer.live(image, prompt, clock=player.position, hold=player.drop, show=player.put)
    async with Conversation(make_talker(config), live) as conversation:
        await conversation.say("Hello!")           # typed
        await conversation.hear(pcm, 48_000)       # spoken, any chunk
        async for event in conversation.events():  # what to show, when it is heard
            ...

All talkers drive the stream in the same way. The stream stays the caller's: close it after the conversation, and
call `interrupt` before restarting it with another picture.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np

from livetalk.realtime.lanes import Lane, Worker
from livetalk.realtime.playback import Playback
from livetalk.realtime.talker import (
    MOST_SIGNALS,
    Caption,
    Heard,
    Signal,
    Speech,
    SpeechEnded,
    SpeechStarted,
    State,
    StateChanged,
    Talker,
    UserSpeech,
)
from livetalk.streaming.session import Dropped

log = logging.getLogger(__name__)

AHEAD_S = 3.0
"""Seconds of speech that are given to the stream ahead of what is heard: more than it renders ahead."""
TICK_S = 0.03
"""Seconds between two looks at what was heard."""

Event = Signal | SpeechStarted | Caption | SpeechEnded | Heard


class Stage(Protocol):
    """What a conversation needs of a stream: livetalk.streaming.live.Live, made with a clock, has it."""

    def push_audio(self, pcm: np.ndarray, rate: int) -> float: ...

    def flush(self) -> None: ...

    def interrupt(self) -> Dropped: ...

    @property
    def unheard(self) -> float: ...


class Conversation:
    """See the module. Use it as an async context manager, in one event loop; it enters and leaves the talker.

    barge_in: the user's voice, where the talker notices it, stops an answer.
    """

    def __init__(self, talker: Talker, stage: Stage, barge_in: bool = True) -> None:
        self._talker, self._stage, self._barge_in = talker, stage, barge_in
        self._events: Lane[Event] = Lane(1.0, MOST_SIGNALS)
        self._playback = Playback()
        self._worker = Worker("livetalk-interrupt")
        self._changing = asyncio.Lock()
        self._tick = asyncio.Event()
        self._busy = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._error: BaseException | None = None
        self._state, self._voice = State.IDLE, False
        # Answers up to _cut are over, whatever of them is still on its way. The latest that began to come out of the
        # talker. Whether one is being stopped.
        self._cut, self._begun, self._stopping = 0, 0, False

    async def __aenter__(self) -> Conversation:
        await self._talker.__aenter__()
        for part in (self._perform, self._watch, self._follow):
            task = asyncio.create_task(part())
            task.add_done_callback(self._fell)
            self._tasks.append(task)
        return self

    async def __aexit__(self, *error) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._talker.__aexit__(*error)
        finally:
            self._events.close()
            await self._worker.close()

    # Input

    async def say(self, text: str) -> int:
        """The user typed `text`: an answer that is under way stops, and the turn of the new one is returned. Raises
        ValueError for text that is empty or too long, then without stopping anything."""
        self._talker.check(text)
        async with self._changing:
            await self._stop()
            return await self._talker.say(text)

    async def hear(self, pcm: np.ndarray, rate: int) -> None:
        """The user's voice: Talker.hear."""
        await self._talker.hear(pcm, rate)

    async def release(self) -> None:
        """The push-to-talk button was let go: Talker.release."""
        await self._talker.release()

    async def interrupt(self) -> Heard | None:
        """Stops the answer: when this returns, none of its sound is performed any more, and neither the stream nor the
        talker remembers what was not heard. Takes up to a block's time; None if there was nothing to stop."""
        async with self._changing:
            return await self._stop()

    # Output

    async def events(self) -> AsyncIterator[Event]:
        """What happens, for one reader, captions and the beginning and end of answers when they are heard:
        StateChanged, UserSpeech, UserCaption, SpeechStarted, Caption, SpeechEnded, Heard after an interruption (the
        text that stays), Failed. MOST_SIGNALS wait at most, the oldest go. Ends with the conversation; raises what
        made it fail."""
        async for event in self._events:
            yield event
        if self._error is not None:
            raise self._error

    @property
    def state(self) -> State:
        """As the user sees it: speaking until the last sound was heard."""
        return self._state

    # Tasks

    async def _perform(self) -> None:
        async for item in self._talker.speech():
            if item.turn <= self._cut:
                continue
            if isinstance(item, SpeechStarted):
                self._begun = item.turn
                self._playback.begin(item.turn)
                self._busy.set()
            elif isinstance(item, Caption):
                self._playback.caption(item)
            elif isinstance(item, Speech):
                await self._push(item)
            else:
                self._stage.flush()
                self._playback.end(item)

    async def _push(self, speech: Speech) -> None:
        while self._stopping or (speech.turn > self._cut and self._stage.unheard > AHEAD_S):
            await self._tick.wait()
        # Nothing is awaited from here on, so that no interruption comes between.
        if speech.turn > self._cut:
            self._stage.push_audio(speech.pcm, speech.rate)
            self._playback.push(speech.seconds)

    async def _watch(self) -> None:
        async for signal in self._talker.signals():
            if isinstance(signal, UserSpeech):
                self._voice = signal.started
                if signal.started and self._barge_in:
                    await self.interrupt()
            if not isinstance(signal, StateChanged):
                self._events.put_now(signal)
            self._look()

    async def _follow(self) -> None:
        while True:
            await self._busy.wait()
            await asyncio.sleep(TICK_S)
            if not self._stopping:
                for event in self._playback.advance(self._stage.unheard):
                    if isinstance(event, SpeechStarted):
                        # Also where it was heard to its end since the last look.
                        self._become(State.SPEAKING)
                    self._events.put_now(event)
            self._look()
            self._wake()
            if not self._playback.turns:
                self._busy.clear()

    # Stopping

    async def _stop(self) -> Heard | None:
        """The caller has the lock."""
        turns = {playing.turn for playing in self._playback.turns}
        if self._talker.turn > self._begun or self._talker.state in (State.THINKING, State.SPEAKING):
            turns.add(self._talker.turn)
        if not turns:
            return None
        self._stopping, self._cut = True, max(turns)
        self._begun = max(self._begun, self._cut)
        try:
            dropped = await self._worker.run(self._stage.interrupt)
            heard_ms = self._playback.heard_ms(dropped.unheard)
            cut = [await self._talker.cancel(heard_ms.get(turn, 0.0), turn) for turn in sorted(turns)]
        finally:
            # Also where whoever asked for it was cancelled meanwhile.
            for end in self._playback.stop(self._cut):
                self._events.put_now(end)
            self._stopping = False
            self._wake()
        for heard in cut:
            if heard is not None:
                self._events.put_now(heard)
        self._look()
        return cut[-1]

    def _look(self) -> None:
        """Says so if the state is another than before."""
        state = self._talker.state
        if self._playback.audible:
            state = State.SPEAKING
        elif self._playback.turns or state in (State.THINKING, State.SPEAKING):
            state = State.THINKING
        else:
            state = State.LISTENING if self._voice else State.IDLE
        self._become(state)

    def _become(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._events.put_now(StateChanged(state))

    def _wake(self) -> None:
        self._tick.set()
        self._tick = asyncio.Event()

    def _fell(self, task: asyncio.Task) -> None:
        """A part that ends by an exception ends the events with it."""
        if not task.cancelled() and task.exception() is not None and self._error is None:
            self._error = task.exception()
            log.error("the conversation stopped: %s", self._error)
            self._events.close()
