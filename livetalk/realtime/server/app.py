"""The routes: the page, faces, sessions, and what operators ask for."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from livetalk.media import SYNTHETIC
from livetalk.realtime.server.access import LOCAL, PAGE, Gate, Policy
from livetalk.realtime.server.call import Studio
from livetalk.realtime.server.desk import Desk
from livetalk.realtime.server.faces import BUNDLED, TYPES, decode
from livetalk.realtime.server.metrics import CONTENT_TYPE
from livetalk.realtime.server.peer import MOST_OFFER
from livetalk.realtime.server.protocol import MOST_NAME, MOST_PROMPT, VERSION, Refused
from livetalk.realtime.server.settings import ServeRun
from livetalk.realtime.talker import MOST_LETTERS

log = logging.getLogger(__name__)

FILES = Path(__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PICTURES = {".png": "image/png", ".jpg": "image/jpeg"}
MOST_REQUEST = MOST_OFFER * 2 + 10_000
"""Bytes of a request for a session: an offer, escaped as JSON, and a little."""
READ_S = 15.0
"""For a request's body to arrive."""
LAG_S = 0.5
DECODERS = 2
"""Pictures that are decoded at the same time."""
PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/api/setup"})
"""Asked every second by whoever watches a server: logged only where they fail."""

PROMPTS = (
    "calm, attentive, small nods while speaking",
    "nods while speaking, smiling",
    "lively, turns the head from side to side, raised brows",
    "serious, keeps the head still",
)


def policy_of(run: ServeRun) -> Policy:
    """Bound to this machine, the server answers to its names only; elsewhere to those given, or with a token to all."""
    if run.loopback:
        return Policy(run.token, LOCAL | {f"[{run.host}]" if ":" in run.host else run.host} | set(run.names))
    return Policy(run.token, frozenset(run.names) | LOCAL if run.names else None)


def make_app(studio: Studio) -> FastAPI:
    """The application, with its Desk as app.state.desk."""
    desk = Desk(studio)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lag = asyncio.create_task(_measure_lag(studio))
        try:
            yield
        finally:
            lag.cancel()
            await desk.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.desk = desk
    app.add_exception_handler(Refused, partial(_refused, studio))
    app.add_exception_handler(HTTPException, _not_routed)
    _operators(app, studio, desk)
    _page(app)
    _sessions(app, studio, desk)
    app.add_middleware(Gate, policy=policy_of(studio.run))
    app.middleware("http")(partial(_counted, studio))
    return app


def _operators(app: FastAPI, studio: Studio, desk: Desk) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        return JSONResponse({"healthy": True})

    @app.get("/readyz")
    async def ready() -> Response:
        return JSONResponse({"ready": not desk.closing}, 503 if desk.closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(studio.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _page(app: FastAPI) -> None:
    """The page's files are read once; a request names one of them and never a path."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in FILES.iterdir() if path.suffix in KINDS}
    faces = {face.name: (face.file.read_bytes(), PICTURES[face.file.suffix]) for face in BUNDLED}

    @app.get("/")
    async def index() -> Response:
        return _file(files, "index.html")

    @app.get(PAGE + "{name}")
    async def file(name: str) -> Response:
        return _file(files, name)

    @app.get(PAGE + "faces/{name}")
    async def face(name: str) -> Response:
        return _file(faces, name)


def _file(files: dict[str, tuple[bytes, str]], name: str) -> Response:
    if name not in files:
        raise Refused("not_found", "there is no such file", 404)
    content, kind = files[name]
    return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})


def _sessions(app: FastAPI, studio: Studio, desk: Desk) -> None:
    decoding = asyncio.Semaphore(DECODERS)

    @app.get("/api/setup")
    async def setup() -> Response:
        return JSONResponse(setup_of(studio, desk.free))

    @app.post("/api/faces")
    async def upload(request: Request) -> Response:
        limits = studio.run.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TYPES:
            raise Refused("bad_type", "a face is a JPEG, PNG or WebP picture", 415)
        data = await body_of(request, limits.upload_bytes)
        async with decoding:
            job = partial(decode, data, kind, limits.upload_pixels)
            picture = await asyncio.get_running_loop().run_in_executor(studio.pool, job)
        return JSONResponse({"face": studio.faces.add(picture), "width": picture.width, "height": picture.height}, 201)

    @app.post("/api/sessions")
    async def begin(request: Request) -> Response:
        wanted = read_wish(await body_of(request, MOST_REQUEST), studio.prompt)
        name, answer = await desk.open(*wanted)
        told = {"session": name, "type": "answer", "sdp": answer, "protocol": VERSION}
        return JSONResponse(told | {"synthetic": True, "notice": SYNTHETIC}, 201)

    @app.delete("/api/sessions/{name}")
    async def leave(name: str) -> Response:
        desk.end(name)
        return Response(status_code=204)


def setup_of(studio: Studio, free: int) -> dict:
    """What the page needs to know before it begins."""
    run = studio.run
    servers = [{"urls": run.network.stun}] if run.network.stun else []
    if run.network.turn:
        user, password = run.network.turn_user, run.network.turn_password
        servers.append({"urls": run.network.turn, "username": user, "credential": password})
    return {
        "protocol": VERSION,
        "faces": [{"face": face.name, "label": face.label, "picture": f"page/faces/{face.name}"} for face in BUNDLED],
        "prompts": list(dict.fromkeys([studio.prompt, *PROMPTS])),
        "free": free,
        "sessions": run.sessions,
        "talker": run.talker.kind,
        "ice_servers": servers,
        "upload": {"types": list(TYPES), "bytes": run.limits.upload_bytes, "pixels": run.limits.upload_pixels},
        "most_letters": MOST_LETTERS,
        "most_prompt": MOST_PROMPT,
        "idle_s": run.limits.idle_s,
        "synthetic": True,
        "notice": SYNTHETIC,
    }


def read_wish(data: bytes, prompt: str) -> tuple[str, str, str]:
    """Offer, face and prompt from {"sdp": ..., "face": ..., "prompt": ...}; the prompt may be missing or empty. Raises
    Refused."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused("not_json", "the request is not JSON") from error
    if not isinstance(found, dict) or not {"sdp", "face"} <= found.keys() <= {"sdp", "face", "prompt"}:
        raise Refused("bad_fields", "a session is asked for with sdp, face and prompt")
    for name, most in (("sdp", MOST_OFFER), ("face", MOST_NAME), ("prompt", MOST_PROMPT)):
        value = found.setdefault(name, "")
        if not isinstance(value, str) or len(value) > most:
            raise Refused("bad_value", f"{name} is not a text of at most {most} letters")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
            raise Refused("bad_value", f"{name} holds letters that are none")
    return found["sdp"], found["face"], found["prompt"].strip() or prompt


async def body_of(request: Request, most: int) -> bytes:
    """A request's body, of at most `most` bytes. Raises Refused as soon as it is longer, or slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(READ_S):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise Refused("too_long", f"the request is over {most} bytes", 413)
                parts.append(part)
    except TimeoutError as error:
        raise Refused("too_slow", f"the request took over {READ_S:g} s to arrive", 408) from error
    except ClientDisconnect as error:
        raise Refused("gone", "the request did not arrive whole") from error
    return b"".join(parts)


async def _refused(studio: Studio, request: Request, refused: Refused) -> Response:
    studio.metrics.refused.labels(refused.code).inc()
    return JSONResponse({"error": refused.code, "message": str(refused)}, refused.status)


async def _not_routed(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": "not_routed", "message": str(error.detail)}, error.status_code, error.headers)


async def _counted(studio: Studio, request: Request, follow) -> Response:
    """Counts and logs by route, which names no session."""
    began = time.perf_counter()
    response = await follow(request)
    route = request.scope["route"].path if "route" in request.scope else "none"
    studio.metrics.requests.labels(request.method, route, response.status_code).inc()
    told = {"method": request.method, "route": route, "status": response.status_code}
    quiet = route in PROBES and response.status_code < 400
    log.log(
        logging.DEBUG if quiet else logging.INFO,
        "request",
        extra=told | {"ms": round(1000 * (time.perf_counter() - began), 1)},
    )
    return response


async def _measure_lag(studio: Studio) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_S
        await asyncio.sleep(LAG_S)
        studio.metrics.lag.set(max(0.0, loop.time() - due))
