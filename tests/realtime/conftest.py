"""A stream that is only arithmetic, a thinker and a voice whose sound tells its turn, a look at what is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import numpy as np
import pytest

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.talker import Speech, SpeechEnded, Talker
from livetalk.realtime.voices import Said, spread, timed
from livetalk.streaming.session import Dropped
from tests.leaks import files


def run(main: Coroutine, within: float = 20.0):
    """Runs it in an event loop of its own and checks that no task, thread or file is left."""

    async def watched():
        result = await asyncio.wait_for(main, within)
        # A connection that was closed is let go of in the next rounds of the loop.
        for _ in range(20):
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0.01)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, f"tasks are left: {left}"
        return result

    before = threading.active_count(), files()
    result = asyncio.run(watched())
    if (threading.active_count(), files()) != before:
        gc.collect()
    assert (threading.active_count(), files()) == before, "threads or files are left"
    return result


class FakeStage:
    """Plays what is pushed, `speed` times as fast as real. pushed: (when the push came, value of its samples). block_s:
    how long an interruption takes."""

    def __init__(self, speed: float = 1.0, block_s: float = 0.0) -> None:
        self.speed, self.block_s = speed, block_s
        self.pushed: list[tuple[float, float]] = []
        self.flushes = self.interruptions = 0
        self._lock = threading.Lock()
        self._left, self._seen = 0.0, time.monotonic()

    def push_audio(self, pcm: np.ndarray, rate: int) -> float:
        assert pcm.dtype == np.float32 and len(pcm)
        with self._lock:
            self._play()
            self._left += len(pcm) / rate
            self.pushed.append((time.monotonic(), float(pcm[0])))
            return self._left

    def flush(self) -> None:
        self.flushes += 1

    def interrupt(self) -> Dropped:
        assert threading.current_thread() is not threading.main_thread(), "an interruption may block: not in the loop"
        with self._lock:
            self._play()
            unheard, self._left = self._left, 0.0
            self.interruptions += 1
        time.sleep(self.block_s)
        return Dropped(0, 0, unheard)

    @property
    def unheard(self) -> float:
        with self._lock:
            self._play()
            return self._left

    def _play(self) -> None:
        now = time.monotonic()
        self._left = max(0.0, self._left - self.speed * (now - self._seen))
        self._seen = now


class Counter:
    """A thinker that says `sentences` times "Turn n ..."; n is the last word of what the user said, if that is a
    number, else how often the user has said something."""

    def __init__(self, sentences: int = 3, piece_s: float = 0.0) -> None:
        self.sentences, self.piece_s = sentences, piece_s
        self.open = 0

    def think(self, lines):
        word = lines[-1].text.split()[-1]
        number = int(word) if word.isdigit() else sum(line.user for line in lines)
        self.open += 1
        try:
            for _ in range(self.sentences):
                for word in (f"Turn {number} ", "is ", "being ", "spoken. "):
                    time.sleep(self.piece_s)
                    yield word
        finally:
            self.open -= 1


class ToneVoice:
    """Each letter takes 50 ms; samples of "Turn n ..." are n / 1024."""

    def say(self, sentence: str) -> Said:
        number = int(sentence.split()[1])
        pcm = np.full(len(sentence) * SAMPLE_RATE // 20, number / 1024, np.float32)
        return Said(pcm, SAMPLE_RATE, timed(sentence, spread(sentence, 50 * len(sentence))))


async def answer(talker: Talker) -> list:
    """Everything of the next answer."""
    items = []
    async for item in talker.speech():
        items.append(item)
        if isinstance(item, SpeechEnded):
            return items
    return items


def sound(items: list) -> np.ndarray:
    return np.concatenate([item.pcm for item in items if isinstance(item, Speech)] or [np.zeros(0, np.float32)])


async def until(stream: AsyncIterator, wanted) -> list:
    """Items up to the first that is `wanted`: a type, or a function of the item."""
    items = []
    test = (lambda item: isinstance(item, wanted)) if isinstance(wanted, type) else wanted
    async for item in stream:
        items.append(item)
        if test(item):
            return items
    raise AssertionError(f"the stream ended before {wanted}: {items}")


@asynccontextmanager
async def reading(stream: AsyncIterator) -> AsyncIterator[list]:
    """A list to which everything is added as it comes."""
    items: list = []

    async def read() -> None:
        async for item in stream:
            items.append(item)

    task = asyncio.create_task(read())
    try:
        yield items
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def voice() -> np.ndarray:
    """Two seconds of speech between seconds of silence, at SAMPLE_RATE."""
    pytest.importorskip("espeakng_loader")
    import soxr

    from livetalk.espeak import speak

    spoken = speak("Hello, can you hear me? I would like to talk.", "en-us+m3", 165)
    pcm = soxr.resample(spoken.pcm, spoken.rate, SAMPLE_RATE)
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    return np.concatenate([quiet, pcm, quiet])
