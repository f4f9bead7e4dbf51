"""A session in threads of its own: push sound from anywhere, iterate over the blocks, synchronously or not."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from threading import Condition, Thread
from typing import TypeVar

import numpy as np

from livetalk.geometry import SAMPLE_RATE
from livetalk.streaming.performer import Picture
from livetalk.streaming.session import Block, Dropped, Session
from livetalk.streaming.sound import mono
from livetalk.streaming.take import Rendering

T = TypeVar("T")

TICK = 0.01
"""Seconds between two looks at the clock while nothing is due. It runs outside, so nobody tells when it has moved."""
LATELY = 4
"""Blocks whose longest time is what the next may take."""
UNTAKEN = 2
"""Blocks that may wait to be taken from a session without a clock, which would else render all it is given at once."""


class Live:
    """Renders until `close`, or, after `finish`, until all that was pushed is rendered; use it as a context manager.

    Iterate (for, async for) to take blocks. One that begins before the end of the one before replaces it from there on.
    What was taken but not shown may be taken back meanwhile: see Block.fresh and Session's hold, or use a Player.

    overlap: decode in a second thread, beside the denoising of the next block: on a GPU each has a stream of its own,
    and two cores are used better by two threads that do different things.
    """

    def __init__(self, session: Session, overlap: bool = True) -> None:
        self.session = session
        # Guards everything below. The session's lock on its state may be taken inside, its locks on rendering may not.
        self._changed = Condition()
        self._changes = 0
        self._out: deque[Block] = deque()
        self._between: Rendering | None = None
        self._wakers: set[Callable[[], object]] = set()
        self._finishing = self._closed = self._rendered = False
        self._error: BaseException | None = None
        # Seconds that the halves of the latest blocks took, waiting for other streams included.
        self._spent = {half: deque([0.0], maxlen=LATELY) for half in ("denoise", "decode")}
        session.listeners.append(self._drop)
        work = (self._denoise, self._decode) if overlap else (self._render,)
        self._threads = [Thread(target=self._guarded, args=(part,), daemon=True) for part in work]
        for thread in self._threads:
            thread.start()

    # Sound and changes

    def push_audio(self, pcm: np.ndarray, rate: int = SAMPLE_RATE, wait: bool = False) -> float:
        """Session.push_audio; with `wait`, waits for room instead of raising ValueError for a long backlog."""
        if wait:
            self._wait(partial(self._room, len(mono(pcm, rate)) / rate))
        return self._told(partial(self.session.push_audio, pcm, rate))

    async def push(self, pcm: np.ndarray, rate: int = SAMPLE_RATE) -> float:
        """The same without blocking the event loop while it waits for room."""
        await self._awaited(partial(self._room, len(mono(pcm, rate)) / rate))
        return self._told(partial(self.session.push_audio, pcm, rate))

    def flush(self) -> None:
        """Session.flush."""
        self._told(self.session.flush)

    def interrupt(self, played_until: float | None = None) -> Dropped:
        """Session.interrupt: after it returns no stale frame is handed out. Pictures go on for as long as a block took
        to make lately."""
        return self._told(partial(self.session.interrupt, played_until, self._making))

    @property
    def unheard(self) -> float:
        """Session.unheard."""
        return self.session.unheard

    def set_prompt(self, prompt: str) -> float:
        """Session.set_prompt."""
        return self._told(partial(self.session.set_prompt, prompt))

    def restart(
        self, image: Picture, prompt: str | None = None, seed: int | None = None, played_until: float | None = None
    ) -> Dropped:
        """Session.restart."""
        return self._told(partial(self.session.restart, image, prompt, seed, played_until, self._making))

    def finish(self) -> None:
        """No more sound will come: iteration ends once everything is rendered."""
        self._told(self.session.flush)
        with self._changed:
            self._finishing = True
            self._change()

    def close(self) -> None:
        """Stops, at most one block's time from now; iteration ends. Safe to call again and from any thread."""
        with self._changed:
            self._closed = True
            self._out.clear()
            self._change()
        for thread in self._threads:
            thread.join()
        if self._drop in self.session.listeners:
            self.session.listeners.remove(self._drop)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # Blocks

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        block = self._wait(self._taken)
        if block is None:
            raise StopIteration
        return block

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        block = await self._awaited(self._taken)
        if block is None:
            raise StopAsyncIteration
        return block

    def _taken(self) -> tuple[Block | None] | None:
        if self._error is not None:
            raise self._error
        if self._out:
            block = self._out.popleft()
            self._change()
            return (block,)
        return (None,) if self._closed or self._rendered else None

    def _room(self, seconds: float) -> tuple[None] | None:
        """Whether a push of that length is not too much, or never can be."""
        if self._error is not None:
            raise self._error
        most = self.session.performer.config.backlog_s
        return (None,) if self._closed or seconds > most or self.session.backlog + seconds <= most else None

    # Waiting: `ready` is called under the lock until it returns a tuple, which holds the answer.

    def _wait(self, ready: Callable[[], tuple[T] | None]) -> T:
        with self._changed:
            return self._changed.wait_for(ready)[0]

    async def _awaited(self, ready: Callable[[], tuple[T] | None]) -> T:
        loop = asyncio.get_running_loop()
        while True:
            changed = asyncio.Event()
            wake = partial(loop.call_soon_threadsafe, changed.set)
            with self._changed:
                if (answer := ready()) is not None:
                    return answer[0]
                self._wakers.add(wake)
            try:
                await changed.wait()
            finally:
                with self._changed:
                    self._wakers.discard(wake)

    def _change(self) -> None:
        """Tells everyone who waits. The caller has the lock."""
        self._changes += 1
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    def _told(self, act: Callable[[], T]) -> T:
        if self._closed:
            raise ValueError("this stream is closed: make a new one with Performer.live")
        result = act()
        with self._changed:
            self._change()
        return result

    # Rendering

    @property
    def _making(self) -> float:
        """Seconds that the next block may take to be made."""
        return sum(max(times) for times in self._spent.values())

    def _timed(self, half: str, act: Callable[[], T | None]) -> T | None:
        began = time.perf_counter()
        made = act()
        if made is not None:
            self._spent[half].append(time.perf_counter() - began)
        return made

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._error, self._closed = error, True
                self._change()
            raise

    def _render(self) -> None:
        for rendering in self._renderings():
            self._hand_out(self._decoded(rendering))
        self._end()

    def _denoise(self) -> None:
        for rendering in self._renderings():
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._between is None)
                self._between = rendering
                self._change()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._between is None)
        self._end()

    def _decode(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over() or self._between is not None)
                if self._over():
                    return
                rendering = self._between
            block = self._decoded(rendering)
            with self._changed:
                self._between = None
                self._hand_out(block)

    def _decoded(self, rendering: Rendering) -> Block | None:
        """The last of its frames, once those before are handed out."""
        while True:
            block = self._timed("decode", partial(self.session.decode_next, rendering))
            if block is None or rendering.over:
                return block
            self._hand_out(block)

    def _renderings(self) -> Iterator[Rendering]:
        """Denoised blocks, as they fall due, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self.session.live or len(self._out) < UNTAKEN)
                if self._closed:
                    return
                seen = self._changes
            if (rendering := self._timed("denoise", self.session.denoise_next)) is not None:
                with self._changed:
                    self._change()
                yield rendering
            elif not self._rest(seen):
                return

    def _rest(self, seen: int) -> bool:
        """Waits until something may be due; False if nothing ever will."""
        with self._changed:
            if self._finishing and seen == self._changes and not self.session.backlog:
                return False
            timeout = TICK if self.session.live else None
            self._changed.wait_for(lambda: self._closed or seen != self._changes, timeout)
            return True

    def _hand_out(self, block: Block | None) -> None:
        with self._changed:
            # Between the making and here it may have been taken back.
            if not self._closed and block is not None and (block := block.fresh()) is not None:
                self._out.append(block)
            self._change()

    def _drop(self, frame: int) -> None:
        with self._changed:
            kept = (block.until(frame) for block in self._out)
            self._out = deque(block for block in kept if block is not None)
            self._change()

    def _over(self) -> bool:
        return self._closed or self._rendered

    def _end(self) -> None:
        with self._changed:
            self._rendered = True
            self._change()
