"""From settings to a server that listens: the socket, the models' warm-up, uvicorn, and the address that is printed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import uvicorn

from livetalk.realtime.server.app import make_app
from livetalk.realtime.server.call import MakesTalkers, Studio
from livetalk.realtime.server.faces import BUNDLED, Faces
from livetalk.realtime.server.metrics import Metrics
from livetalk.realtime.server.settings import ServeRun, resolved
from livetalk.realtime.server.turns import Turns
from livetalk.streaming.performer import Performer

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256
MOST_HEAD = 16_384
"""Bytes of a request's head."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Where this machine finds a server that listens everywhere."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError where that cannot be."""
    family, kind, protocol, _, address = resolved(host, port)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ValueError(f"{host}:{port} cannot be used ({error.strerror}): choose another host= or port=") from error
    return listener


def address_of(host: str, listener: socket.socket) -> str:
    """Where the page is, for a browser on this machine."""
    name = ANYWHERE.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listener.getsockname()[1]}/"


@contextmanager
def studio_of(run: ServeRun, performer: Performer, talkers: MakesTalkers, prompt: str) -> Iterator[Studio]:
    """What sessions share, for as long as the block lasts."""
    # Opening, interrupting and leaving may each take a block's time, for every session at once.
    with ThreadPoolExecutor(2 * run.sessions + 2, thread_name_prefix="livetalk-aside") as pool:
        yield Studio(run, performer, talkers, Faces(run.limits.pictures), Metrics(), Turns(), pool, prompt)


def warm(studio: Studio) -> None:
    """Renders a block and drops it, so that the first viewer does not wait for what happens once."""
    session = studio.performer.session(BUNDLED[0].file, studio.prompt)
    for _ in range(2):
        session.next_block(fill=True)


async def serve(
    studio: Studio,
    listener: socket.socket,
    ready: Callable[[str], None],
    made: Callable[[uvicorn.Server], None] = lambda server: None,
) -> None:
    """Serves until it is told to stop, by a signal or by `should_exit` of the server that `made` is given. ready:
    called with the address once requests are answered."""
    config = uvicorn.Config(
        make_app(studio),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http="h11",
        ws="none",
        lifespan="on",
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    made(server)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready(address_of(studio.run.host, listener))
    await serving
