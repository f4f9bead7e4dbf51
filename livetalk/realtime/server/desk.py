"""Admission: a stated number of sessions at a time; the next one is refused at once, with the reason."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from livetalk.realtime.server.call import Call, Studio
from livetalk.realtime.server.protocol import Refused

log = logging.getLogger(__name__)

CLOSING_S = 10.0
"""What sessions may take to end when the server stops."""


class Desk:
    """Opens sessions and sees them out. All in one event loop."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.closing = False
        self._calls: dict[str, Call] = {}
        self._tasks: dict[str, asyncio.Task] = {}
        studio.metrics.most_sessions.set(studio.run.sessions)

    @property
    def free(self) -> int:
        """How many more may be opened now."""
        return self.studio.run.sessions - len(self._calls)

    async def open(self, offer: str, face: str, prompt: str) -> tuple[str, str]:
        """A new session's name and its answer to an SDP offer. Raises Refused."""
        if self.closing:
            raise Refused("closing", "the server is being shut down: try again later", 503)
        if self.free < 1:
            most = self.studio.run.sessions
            places = "its only place is" if most == 1 else f"all {most} places are"
            raise Refused("full", f"{places} taken just now: try again in a few minutes", 503)
        call = Call(secrets.token_urlsafe(12), self.studio)
        # Its place is taken before anything is awaited, so that two who come at once do not get the same one.
        self._calls[call.name] = call
        self.studio.metrics.sessions.set(len(self._calls))
        try:
            answer = await call.open(offer, face, prompt)
        except BaseException as error:
            await self._see_out(call)
            if isinstance(error, ValueError) and not isinstance(error, Refused):
                raise Refused("refused", str(error), 422) from error
            raise
        self.studio.metrics.opened.inc()
        self.studio.metrics.opening.observe(time.monotonic() - call.began)
        log.info("session opened", extra={"session": call.name})
        self._tasks[call.name] = asyncio.create_task(self._carry(call))
        return call.name, answer

    def end(self, name: str, reason: str = "left") -> None:
        """Ends a session. Raises Refused if there is none of that name."""
        if name not in self._calls:
            raise Refused("unknown_session", "there is no such session any more", 404)
        self._calls[name].end(reason)

    async def close(self) -> None:
        """Ends all and admits no more."""
        self.closing = True
        for call in self._calls.values():
            call.end("closing")
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=CLOSING_S)

    async def _carry(self, call: Call) -> None:
        try:
            reason = await call.run()
        finally:
            await self._see_out(call)
            self._tasks.pop(call.name)
        self.studio.metrics.ended.labels(reason).inc()
        seconds = round(time.monotonic() - call.began, 1)
        log.info("session ended", extra={"session": call.name, "reason": reason, "seconds": seconds} | call.told())

    async def _see_out(self, call: Call) -> None:
        """Its place is free again only when all it held is."""
        try:
            await call.close()
        finally:
            del self._calls[call.name]
            self.studio.metrics.sessions.set(len(self._calls))
