"""The router: one address for viewers, whose sessions live on replicas.

Media and control messages go between a viewer and its replica directly, over WebRTC; here pass the requests around
them: the page, uploaded faces, the offer and answer of a session, and its end. A session stays where it began. Requests
that must reach the same replica do so by the session's or face's name, or by a cookie. The router keeps nothing else:
when it is started anew sessions go on.

GET /api/sessions/NAME/watch is an event stream that says nothing while the replica of a session lives, and `lost` with
an error of code server_lost when it does not: the viewer's own connection would take long to notice.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from livetalk.realtime.server.access import PAGE, Gate, Policy
from livetalk.realtime.server.app import MOST_REQUEST, body_of
from livetalk.realtime.server.fleet.client import Reply, Unreachable
from livetalk.realtime.server.fleet.roster import Replica, Roster
from livetalk.realtime.server.protocol import Refused

COOKIE = "livetalk_replica"
KEPT = 10_000
"""Names of sessions and of faces that are remembered; the oldest go."""
STILL_S = 5.0
"""Between two signs of life on a stream that says nothing else."""
ASKED = ("content-type", "authorization", "accept")
ANSWERED = ("content-type", "cache-control", "www-authenticate")
LOST = {"error": "server_lost", "message": "the server of this session is gone: begin a new one"}


class Owners:
    """Which replica has the session or face of a name."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, Replica] = OrderedDict()

    def keep(self, name: str, replica: Replica) -> None:
        self._owners[name] = replica
        while len(self._owners) > KEPT:
            self._owners.popitem(last=False)

    def find(self, name: str) -> Replica | None:
        return self._owners.get(name)

    def forget(self, name: str) -> None:
        self._owners.pop(name, None)


class Router:
    """What the routes do. upload_bytes: the most that a picture may have."""

    def __init__(self, roster: Roster, upload_bytes: int) -> None:
        self.roster, self._upload_bytes = roster, upload_bytes
        self._sessions, self._faces = Owners(), Owners()

    def setup(self) -> dict[str, Any]:
        """What the page needs to know, of all replicas together; watch: that sessions can be watched."""
        there = [replica.setup for replica in self.roster.order()]
        if not there:
            raise nobody()
        free, most = (sum(setup[key] for setup in there) for key in ("free", "sessions"))
        return there[0] | {"free": free, "sessions": most, "watch": True}

    async def forward(self, request: Request) -> Response:
        """A request for what all replicas have."""
        reply = await self._first(request, b"", self.roster.order(), request.url.path)
        return answered(reply[0])

    async def upload(self, request: Request) -> Response:
        """A picture goes where the viewer's session is, or will be."""
        body = await body_of(request, self._upload_bytes)
        reply, replica = await self._first(request, body, self.roster.order(self._cookie(request)), "/api/faces")
        return self._taken(reply, replica, self._faces, "face")

    async def begin(self, request: Request) -> Response:
        """A session begins where its face was uploaded, else where there is room. Where one replica is full the next
        is asked; a viewer is refused when all are."""
        body = await body_of(request, MOST_REQUEST)
        owner = self._faces.find(face_of(body))
        if owner is None:
            order = self.roster.order(self._cookie(request))
        elif owner.lost.is_set():
            raise Refused("unknown_face", "the server that had this face is gone: upload it again", 404)
        else:
            order = [owner]
        reply, replica = await self._first(request, body, order, "/api/sessions")
        # Until it says so itself.
        replica.free -= reply.status == 201
        return self._taken(reply, replica, self._sessions, "session")

    async def leave(self, request: Request, name: str) -> Response:
        """Ends a session wherever it is; who does not know asks all."""
        owner = self._sessions.find(name)
        if owner is not None and owner.lost.is_set():
            raise Refused(LOST["error"], LOST["message"], 410)
        target, headers = f"/api/sessions/{quote(name, safe='')}", passed(request)
        for replica in self.roster.there if owner is None else [owner]:
            try:
                reply = await replica.ask("DELETE", target, headers)
            except Unreachable as error:
                if owner is not None:
                    raise Refused(LOST["error"], LOST["message"], 410) from error
                continue
            if reply.status != 404 or owner is not None:
                self._sessions.forget(name)
                return answered(reply)
        raise Refused("unknown_session", "there is no such session any more", 404)

    def watch(self, name: str) -> Response:
        """See the module."""
        owner = self._sessions.find(name)
        if owner is None:
            raise Refused("unknown_session", "there is no such session any more", 404)
        return StreamingResponse(watched(owner), media_type="text/event-stream")

    def _cookie(self, request: Request) -> Replica | None:
        name = request.cookies.get(COOKIE)
        return next((replica for replica in self.roster.there if replica.name == name), None)

    async def _first(self, request: Request, body: bytes, order: list[Replica], target: str) -> tuple[Reply, Replica]:
        """The answer of the first replica that has one, and is not full. Raises Refused where none answers."""
        found = None
        for replica in order:
            replica.taking += 1
            try:
                reply = await replica.ask(request.method, target, passed(request), body)
            except Unreachable:
                continue
            finally:
                replica.taking -= 1
            found = reply, replica
            if reply.status != 503:
                return found
        if found is None:
            raise nobody()
        return found

    def _taken(self, reply: Reply, replica: Replica, owners: Owners, key: str) -> Response:
        response = answered(reply)
        if reply.status == 201:
            owners.keep(json.loads(reply.body)[key], replica)
            response.set_cookie(COOKIE, replica.name, httponly=True, samesite="strict")
        return response


def make_router(roster: Roster, policy: Policy, upload_bytes: int) -> FastAPI:
    """The application. policy: as the page's server has it; replicas check the token once more."""
    router = Router(roster, upload_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(roster.run())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    _operators(app, roster)
    app.get("/")(router.forward)
    app.get(PAGE + "{name:path}")(router.forward)
    app.post("/api/faces")(router.upload)
    app.post("/api/sessions")(router.begin)
    app.delete("/api/sessions/{name}")(router.leave)
    app.get("/api/sessions/{name}/watch")(router.watch)

    @app.get("/api/setup")
    async def setup() -> Response:
        return JSONResponse(router.setup())

    app.add_middleware(Gate, policy=policy)
    return app


def _operators(app: FastAPI, roster: Roster) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        return JSONResponse({"healthy": True})

    @app.get("/readyz")
    async def ready() -> Response:
        some = bool(roster.order())
        return JSONResponse({"ready": some}, 200 if some else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        figures = {"known": roster.known, "there": len(roster.there), "ready": len(roster.order())}
        lines = [f'livetalk_replicas{{state="{state}"}} {count}' for state, count in figures.items()]
        return Response("# TYPE livetalk_replicas gauge\n" + "\n".join(lines) + "\n", media_type="text/plain")


async def watched(replica: Replica) -> AsyncIterator[str]:
    """Events until the replica is gone."""
    yield ": watching\n\n"
    while not replica.lost.is_set():
        try:
            async with asyncio.timeout(STILL_S):
                await replica.lost.wait()
        except TimeoutError:
            yield ": still there\n\n"
    yield f"event: lost\ndata: {json.dumps(LOST)}\n\n"


def face_of(body: bytes) -> str:
    """The face that a request for a session names; whatever else it is, the replica refuses."""
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    face = wish.get("face") if isinstance(wish, dict) else None
    return face if isinstance(face, str) else ""


def passed(request: Request) -> dict[str, str]:
    """Of a request's headers, what replicas get to see. Host and origin were checked here."""
    return {name: request.headers[name] for name in ASKED if name in request.headers}


def answered(reply: Reply) -> Response:
    headers = {name: reply.headers[name] for name in ANSWERED if name in reply.headers}
    return Response(reply.body, reply.status, headers)


def nobody() -> Refused:
    return Refused("no_server", "no server is there just now: try again in a minute", 503)


def _refused(request: Request, refused: Refused) -> Response:
    return JSONResponse({"error": refused.code, "message": str(refused)}, refused.status)


def _not_routed(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": "not_routed", "message": str(error.detail)}, error.status_code, error.headers)
