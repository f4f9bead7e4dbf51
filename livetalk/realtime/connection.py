"""A WebSocket that connects again when it is lost: waits grow, with jitter, and end after a stated number."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from random import Random
from urllib.parse import urlsplit

from livetalk.realtime.lanes import Lane
from livetalk.realtime.settings import RealtimeServer
from livetalk.realtime.wire import Garbage, Message, address, parse

log = logging.getLogger(__name__)

MOST_GARBAGE = 20
"""Messages in a row that are not of the protocol, after which another connection is tried."""
MOST_BYTES = 16 * 2**20
LONGEST_WAIT_S = 30.0
MOST_WAITING = 50
"""Streamed messages that wait to be sent: two seconds of sound."""
REFUSED = {
    401: "it does not accept the key: set the environment variable {key}",
    403: "it does not allow this: check the key in {key} and the model",
    404: "there is nothing at this address: check url and model",
}


class Connection:
    """Runs in a task (`run`) until it is cancelled or gives up.

    up: what is sent first on each new connection. receive: awaited with each message in turn; the next is not read
    before, which makes a fast server wait. down: told, in one line, why there is no connection, and whether another
    will be tried.
    """

    def __init__(
        self,
        server: RealtimeServer,
        up: Callable[[], list[Message]],
        receive: Callable[[Message], Awaitable[None]],
        down: Callable[[str, bool], None],
    ) -> None:
        try:
            import websockets.asyncio.client  # noqa: F401
        except ImportError as error:
            raise ValueError('talking to a server needs websockets: pip install -e ".[realtime]"') from error
        self._server, self._up, self._receive, self._down = server, up, receive, down
        self._sending: Lane[Message] | None = None
        self._dice = Random()
        self._garbage, self._greeted = 0, False

    @property
    def connected(self) -> bool:
        return self._sending is not None

    def post(self, *messages: Message) -> bool:
        """Sends them in order, without waiting; False where there is no connection."""
        if self._sending is None:
            return False
        for message in messages:
            self._sending.put_now(message)
        return True

    async def stream(self, message: Message) -> bool:
        """The same for what comes all the time: waits where much of it was not sent yet."""
        sending = self._sending
        return sending is not None and await sending.put(message, 1.0, lambda: True)

    async def run(self) -> None:
        attempt = 0
        while True:
            self._greeted = False
            reason, again = await self._once()
            attempt = 1 if self._greeted else attempt + 1
            again = again and attempt <= self._server.retries
            host = urlsplit(self._server.url).netloc.rpartition("@")[2]
            log.warning("%s: %s", host, reason)
            self._down(f"{host}: {reason}", again)
            if not again:
                return
            wait = min(LONGEST_WAIT_S, self._server.backoff_s * 2 ** (attempt - 1))
            await asyncio.sleep(wait * self._dice.uniform(0.5, 1.0))

    async def _once(self) -> tuple[str, bool]:
        """One connection from beginning to end; returns why it ended, and whether to try again."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

        key = os.environ.get(self._server.key_variable, "") if self._server.key_variable else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            connecting = connect(
                address(self._server),
                additional_headers=headers,
                open_timeout=self._server.connect_s,
                close_timeout=1,
                max_size=MOST_BYTES,
                logger=_quiet(),
            )
            async with connecting as socket:
                return await self._talk(socket)
        except InvalidStatus as error:
            status = error.response.status_code
            refusal = REFUSED.get(status, f"it refused the connection with HTTP {status}")
            return refusal.format(key=self._server.key_variable or "of the key"), status not in REFUSED
        except ConnectionClosed as error:
            return f"the connection was lost (code {error.rcvd.code if error.rcvd else 1006})", True
        except (OSError, TimeoutError, InvalidHandshake) as error:
            return f"no connection ({type(error).__name__}): is the server running?", True

    async def _talk(self, socket) -> tuple[str, bool]:
        sending: Lane[Message] = Lane(MOST_WAITING)
        # In one step, so that nothing is sent twice or not at all.
        self._sending, self._garbage = sending, 0
        self.post(*self._up())
        writer = asyncio.create_task(self._write(socket, sending))
        try:
            async for message in socket:
                if not await self._take(message):
                    return "it sends what is not the Realtime protocol: check url", True
        finally:
            self._sending = None
            sending.close()
            writer.cancel()
            await asyncio.wait([writer])
        return "the server ended the connection", True

    @staticmethod
    async def _write(socket, sending: Lane[Message]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for message in sending:
                await socket.send(json.dumps(message))
        except ConnectionClosed:
            # Whoever reads learns it, too, and says why.
            log.debug("lost while sending")

    async def _take(self, message: str | bytes) -> bool:
        """False if there was too much garbage."""
        try:
            event = parse(message)
            await self._receive(event)
        except Garbage as error:
            self._garbage += 1
            log.warning("the server sent %s", error)
            return self._garbage < MOST_GARBAGE
        self._garbage, self._greeted = 0, True
        return True


def _quiet() -> logging.Logger:
    """websockets logs headers, with the key in them, at DEBUG; this logger drops that whatever the others do."""
    quiet = logging.Logger("livetalk.realtime.websocket", logging.WARNING)
    quiet.parent = log
    return quiet
