"""A small HTTP client for asking replicas: whole requests and answers over a connection that stays open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

MOST_REPLY = 32_000_000
"""Bytes of an answer."""
CHUNK = 65_536


class Unreachable(Exception):
    """A server did not answer: it is gone, or too slow."""


@dataclass(frozen=True)
class Reply:
    """headers: with names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """To one server; one request at a time. `async with await Connection.open(...)` closes it."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import h11

        self._host, self._reader, self._writer = host, reader, writer
        self._state = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, host: str, port: int, within: float) -> Connection:
        """Raises Unreachable."""
        try:
            async with asyncio.timeout(within):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"{host}:{port}: {error!r}") from error
        return cls(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", reader, writer)

    async def ask(self, method: str, target: str, headers: dict[str, str], body: bytes, within: float) -> Reply:
        """Raises Unreachable; then, the connection is of no more use."""
        import h11

        told = [("host", self._host), ("content-length", str(len(body))), *headers.items()]
        state = self._state
        try:
            async with asyncio.timeout(within):
                if state.our_state is h11.DONE:
                    state.start_next_cycle()
                for event in (h11.Request(method=method, target=target, headers=told), h11.Data(body)):
                    self._writer.write(state.send(event) or b"")
                self._writer.write(state.send(h11.EndOfMessage()) or b"")
                await self._writer.drain()
                return await self._reply()
        except (OSError, EOFError, TimeoutError, h11.ProtocolError) as error:
            raise Unreachable(f"{self._host}: {error!r}") from error

    async def rest(self, seconds: float) -> None:
        """Says nothing for so long. Raises Unreachable as soon as the other side closes the connection."""
        try:
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
        except TimeoutError:
            return
        except OSError as error:
            raise Unreachable(f"{self._host}: {error!r}") from error
        raise Unreachable(f"{self._host}: the connection was closed")

    async def _reply(self) -> Reply:
        import h11

        head, parts, size = None, [], 0
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                self._state.receive_data(await self._reader.read(CHUNK))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MOST_REPLY:
                    raise EOFError(f"the answer is over {MOST_REPLY} bytes")
            elif isinstance(event, h11.EndOfMessage):
                found = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return Reply(head.status_code, found, b"".join(parts))
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError("the connection was closed")

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            # It was reset, which is closed.
            return
