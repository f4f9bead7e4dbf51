"""Which replicas there are, and which of them are there: each is asked every second over a connection that stays open,
so that a process that is killed is missed as soon as its connection breaks, also if it comes back at once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from livetalk.realtime.server.fleet.client import Connection, Reply, Unreachable

log = logging.getLogger(__name__)

Source = Callable[[], Awaitable[Mapping[str, str]]]
"""Says where replicas are now: HOST:PORT by name."""

EVERY_S = 1.0
AGAIN_S = 0.25
PATIENCE_S = 4.0
"""A replica that says nothing for so long is given up with its sessions, though its connection holds: it hangs, or its
machine is cut off. It is more than any stall of one that is only busy."""
SOURCE_S = 1.0


@dataclass(eq=False)
class Replica:
    """One life of a server: when it comes back it is another, with none of its sessions. free: places that it said it
    has; taking: requests for sessions that are under way. lost: set when it is gone."""

    name: str
    host: str
    port: int
    ready: bool = False
    free: int = 0
    taking: int = 0
    setup: dict = field(default_factory=dict)
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b"", within: float = 30.0
    ) -> Reply:
        """Raises Unreachable, at once when the replica is missed meanwhile."""
        asking = asyncio.ensure_future(self._ask(method, target, headers, body, within))
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait([asking, losing], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Unreachable(f"{self.name} is gone")
            return await asking
        finally:
            for task in (asking, losing):
                task.cancel()
            await asyncio.gather(asking, losing, return_exceptions=True)

    async def _ask(self, method: str, target: str, headers: dict[str, str], body: bytes, within: float) -> Reply:
        async with await Connection.open(self.host, self.port, PATIENCE_S) as connection:
            return await connection.ask(method, target, headers, body, within)


class Roster:
    """Follows the replicas that `source` names, from `run` on. token: what they ask for."""

    def __init__(self, source: Source, token: str = "") -> None:
        self._source = source
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._tasks: dict[tuple[str, str], asyncio.Task] = {}
        self._there: list[Replica] = []
        self._turn = itertools.count()

    @property
    def there(self) -> list[Replica]:
        """Those that answer."""
        return list(self._there)

    @property
    def known(self) -> int:
        """How many the source names."""
        return len(self._tasks)

    def order(self, first: Replica | None = None) -> list[Replica]:
        """Those that may take somebody, the one to try first at the front: `first` if it is there, then those with the
        most free places, in turn."""
        ready = [replica for replica in self._there if replica.ready]
        turn = next(self._turn) % max(1, len(ready))
        ready = ready[turn:] + ready[:turn]
        return sorted(ready, key=lambda replica: (replica is not first, replica.taking - replica.free))

    async def run(self) -> None:
        """For ever; cancel it to end."""
        try:
            while True:
                wanted = set((await self._source()).items())
                for entry in self._tasks.keys() - wanted:
                    self._tasks.pop(entry).cancel()
                for entry in wanted - self._tasks.keys():
                    self._tasks[entry] = asyncio.create_task(self._follow(*entry))
                await asyncio.sleep(SOURCE_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _follow(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        while True:
            try:
                async with await Connection.open(host.strip("[]"), int(port), PATIENCE_S) as connection:
                    await self._live(Replica(name, host.strip("[]"), int(port)), connection)
            except Unreachable as error:
                log.debug("%s", error)
            await asyncio.sleep(AGAIN_S)

    async def _live(self, replica: Replica, connection: Connection) -> None:
        async with AsyncExitStack() as stack:
            while True:
                reply = await connection.ask("GET", "/readyz", {}, b"", PATIENCE_S)
                replica.ready = reply.status == 200
                setup = await connection.ask("GET", "/api/setup", self._headers, b"", PATIENCE_S)
                if setup.status != 200:
                    log.error("replica %s does not take the token: it gets no sessions", replica.name)
                    raise Unreachable(f"{replica.name} says {setup.status}")
                try:
                    replica.setup = json.loads(setup.body)
                    replica.free = int(replica.setup["free"])
                except (ValueError, KeyError, TypeError) as error:
                    raise Unreachable(f"{replica.name} is no server of ours") from error
                if replica not in self._there:
                    log.info("replica %s is there", replica.name)
                    self._there.append(replica)
                    stack.callback(self._lose, replica)
                await connection.rest(EVERY_S)

    def _lose(self, replica: Replica) -> None:
        log.warning("replica %s is gone, with its sessions", replica.name)
        self._there.remove(replica)
        replica.lost.set()
