"""A server on a port of its own around a performer that costs nothing, with a talker that counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from fastapi import FastAPI

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.offline import OfflineTalker
from livetalk.realtime.server import serving
from livetalk.realtime.server.call import Studio
from livetalk.realtime.server.settings import Limits, ServeRun
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.voices import Said, spread, timed
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from tests.realtime.conftest import Counter
from tests.streaming.conftest import TINY, quick

RUN = ServeRun(port=0, size=64, mark=False, geometry=TINY, sessions=2, limits=Limits(connect_s=10))


class Humming:
    """Each letter takes 50 ms, all at the same pitch: a square wave, which is loud at every moment."""

    def say(self, sentence: str) -> Said:
        count = len(sentence) * SAMPLE_RATE // 20
        pcm = np.where(np.arange(count) // 40 % 2, 0.3, -0.3).astype(np.float32)
        return Said(pcm, SAMPLE_RATE, timed(sentence, spread(sentence, 50 * len(sentence))))


class Counters:
    """Makes talkers that say "Turn n is being spoken." a few times."""

    def __init__(self, sentences: int = 2) -> None:
        self.sentences = sentences

    def talker(self) -> OfflineTalker:
        return OfflineTalker(TalkerConfig(), Counter(self.sentences), Humming())


@pytest.fixture
def performer(tiny_parts) -> Performer:
    parts = [tiny_parts[name] for name in ("generator", "vae", "audio", "text")]
    return quick(Performer(*parts, TINY, (1000.0,), config=StreamConfig()))


@pytest.fixture
def studio(performer) -> Iterator[Studio]:
    with serving.studio_of(RUN, performer, Counters(), "nods") as made:
        yield made


@dataclass
class Running:
    """A server that runs."""

    address: str
    studio: Studio
    loop: asyncio.AbstractEventLoop
    app: FastAPI


@contextmanager
def running(performer: Performer, run: ServeRun = RUN, talkers=None) -> Iterator[Running]:
    """A server in a thread, until the block ends; checks then that it ended and left no thread."""
    before = set(threading.enumerate())
    ready, servers, loops = threading.Event(), [], []
    address: list[str] = []

    async def main(studio: Studio, listener) -> None:
        loops.append(asyncio.get_running_loop())
        await serving.serve(studio, listener, lambda at: (address.append(at), ready.set()), servers.append)

    with serving.listen(run.host, run.port) as listener:
        with serving.studio_of(run, performer, talkers or Counters(), "nods") as studio:
            thread = threading.Thread(target=lambda: asyncio.run(main(studio, listener)))
            thread.start()
            try:
                assert ready.wait(20), "the server did not begin"
                yield Running(address[0], studio, loops[0], servers[0].config.app)
            finally:
                for server in servers:
                    server.should_exit = True
                thread.join(20)
        assert not thread.is_alive(), "the server did not end"
    left = set(threading.enumerate()) - before
    assert not left, f"threads are left: {left}"


@pytest.fixture
def serve(performer) -> Callable:
    """serve(sessions=1, ...): a context manager, see Running; keys of ServeRun or of its limits."""

    def make(talkers=None, **settings):
        own = {key: settings.pop(key) for key in list(settings) if key in Limits.__dataclass_fields__}
        run = replace(RUN, **settings, limits=replace(RUN.limits, **own))
        return running(performer, run, talkers)

    return make
