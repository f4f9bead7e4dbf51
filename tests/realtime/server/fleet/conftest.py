"""A router in a thread of its own, in front of servers that run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib import request

import pytest
import uvicorn

from livetalk.realtime.server import serving
from livetalk.realtime.server.access import LOCAL, Policy
from livetalk.realtime.server.call import Studio
from livetalk.realtime.server.fleet.roster import Roster
from livetalk.realtime.server.fleet.router import make_router
from livetalk.streaming.performer import Performer
from tests.realtime.server.conftest import RUN, Counters
from tests.realtime.server.viewer import fetch

ROOT = Path(__file__).resolve().parents[4]
TINY = ["geometry.height=16", "geometry.width=16", "geometry.clip_latents=6", "geometry.window=9", "geometry.anchors=3"]


def bare(address: str) -> str:
    """HOST:PORT of http://HOST:PORT/."""
    return address.removeprefix("http://").rstrip("/")


def until(wanted, seconds: float = 10.0):
    """What `wanted` returns as soon as it is true."""
    limit = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Server:
    """One replica. at: HOST:PORT."""

    address: str
    studio: Studio
    desk: object

    @property
    def at(self) -> str:
        return bare(self.address)

    @property
    def sessions(self) -> int:
        return self.studio.run.sessions - self.desk.free


@contextmanager
def serving_one(performer: Performer, **settings) -> Iterator[Server]:
    """A server in a thread, until the block ends. settings: of ServeRun."""
    run, made, ready = replace(RUN, **settings), [], threading.Event()
    with (
        serving.listen(run.host, run.port) as listener,
        serving.studio_of(run, performer, Counters(), "nods") as studio,
    ):
        started = serving.serve(studio, listener, lambda address: ready.set(), made.append)
        thread = threading.Thread(target=lambda: asyncio.run(started))
        thread.start()
        try:
            assert ready.wait(20)
            yield Server(serving.address_of(run.host, listener), studio, made[0].config.app.state.desk)
        finally:
            made[0].should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@contextmanager
def process(family, *settings: str) -> Iterator[tuple[int, str]]:
    """A server of the smallest model in a process of its own: its pid and address."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), f"model={family}", "device=cpu", "port=0", "size=64"]
    started = subprocess.Popen([*command, *TINY, *settings], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = started.stdout.readline().strip()
        assert address.startswith("http://"), "the server did not begin"
        yield started.pid, address
    finally:
        started.kill()
        started.communicate()


@pytest.fixture
def serve(performer) -> Callable:
    """serve(sessions=1, ...): a context manager, see serving_one."""
    return lambda **settings: serving_one(performer, **settings)


@pytest.fixture
def pair(performer) -> Callable:
    """pair(sessions=1, ...): two of them as a context manager; no thread of either is left."""

    @contextmanager
    def both(**settings) -> Iterator[tuple[Server, Server]]:
        before = set(threading.enumerate())
        with ExitStack() as stack:
            yield tuple(stack.enter_context(serving_one(performer, **settings)) for _ in range(2))
        left = set(threading.enumerate()) - before
        assert not left, f"threads are left: {left}"

    return both


@contextmanager
def routing(replicas: dict[str, str], token: str = "", wait: bool = True) -> Iterator[str]:
    """The address of a router. replicas: may change meanwhile."""

    async def source():
        return dict(replicas)

    app = make_router(Roster(source, token), Policy(token, LOCAL), 8_000_000)
    with serving.listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        address = serving.address_of("127.0.0.1", listener)
        try:
            until(lambda: server.started)
            if wait:
                until(lambda: there(address, token) == len(replicas))
            yield address
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


def there(address: str, token: str = "") -> int:
    """How many replicas the router sees."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    _, _, body = fetch(address, "/metrics", headers=headers)
    return int(body.decode().split('state="there"} ')[1].split()[0])


class Watching:
    """A session's event stream, read in a thread; `lost` holds (when, error) once it said so."""

    def __init__(self, address: str, session: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = request.Request(f"{address}api/sessions/{session}/watch", headers=headers)
        self.lost: list[tuple[float, dict]] = []
        self._stream = request.urlopen(asked, timeout=60)
        assert self._stream.headers["content-type"].startswith("text/event-stream")
        assert self._stream.readline() == b": watching\n"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        lost = False
        for line in self._stream:
            lost = lost or line == b"event: lost\n"
            if lost and line.startswith(b"data: "):
                self.lost.append((time.monotonic(), json.loads(line[6:])))

    def close(self) -> None:
        self._thread.join(10)
        self._stream.close()
        assert not self._thread.is_alive()
