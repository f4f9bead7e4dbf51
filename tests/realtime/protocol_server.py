"""A server of the OpenAI Realtime protocol for tests: the documented events, and faults on request.

It answers "response.create" and the end of a voice with sound of which each sample tells the number of the response,
counted over all connections: n / 1024. It complains as the real one does: about a second response, an empty commit,
a truncation past the end, a cancel of nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field

import numpy as np

RATE = 24_000
PIECE_MS = 100
WORDS = ("One ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight ", "nine ", "ten ")
GARBAGE = (
    b"\x00\x01binary",
    "{not json",
    "[1, 2]",
    '"text"',
    "{}",
    '{"type": 7}',
    '{"type": "response.output_audio.delta"}',
    '{"type": "response.output_audio.delta", "delta": "AAA"}',
    '{"type": "response.output_audio.delta", "delta": "****"}',
    '{"type": "response.output_audio.delta", "delta": null, "response_id": {}}',
    '{"type": "response.created", "response": []}',
    '{"type": "response.output_audio.delta", "delta": "", "content_index": -1}',
    '{"type": "something.new", "delta": "AAAA"}',
    "[" * 5000,
)


@dataclass
class Faults:
    """refuse: HTTP status of the handshake. lose_after: pieces of a response after which the connection is lost, once.
    piece_s: seconds between pieces. error: instead of the response. garbage: between the pieces. no_created: leaves out
    response.created. odd: sound cut in the middle of samples. status: of response.done. silent: never answers."""

    refuse: int = 0
    lose_after: int = 0
    piece_s: float = 0.0
    error: dict | None = None
    garbage: tuple = ()
    no_created: bool = False
    odd: bool = False
    status: str = "completed"
    silent: bool = False


@dataclass
class ProtocolServer:
    """An async context manager; `url` is there inside. received: all events of clients, in order."""

    generation: str = "ga"
    pieces: int = 10
    faults: Faults = field(default_factory=Faults)
    received: list[dict] = field(default_factory=list)
    headers: list = field(default_factory=list)
    paths: list = field(default_factory=list)
    connections: int = 0
    open: int = 0
    responses: int = 0

    async def __aenter__(self) -> ProtocolServer:
        from websockets.asyncio.server import serve

        self._server = await serve(self._serve, "127.0.0.1", 0, process_request=self._request)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/realtime"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        await self._server.wait_closed()

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.received]

    def sent(self, kind: str) -> list[dict]:
        return [event for event in self.received if event["type"] == kind]

    def _request(self, connection, request):
        self.headers.append(request.headers)
        self.paths.append(request.path)
        return connection.respond(self.faults.refuse, "no\n") if self.faults.refuse else None

    async def _serve(self, socket) -> None:
        from websockets.exceptions import ConnectionClosed

        self.connections += 1
        self.open += 1
        session = _Session(self, socket)
        try:
            await session.send("session.created", session={"id": f"sess_{self.connections}"})
            async for message in socket:
                event = json.loads(message)
                self.received.append(event)
                await session.take(event)
        except ConnectionClosed:
            pass
        finally:
            self.open -= 1
            await session.close()


class _Session:
    def __init__(self, server: ProtocolServer, socket) -> None:
        self.server, self.socket = server, socket
        self.audio = np.zeros(0, np.int16)
        self.detection = True
        self.speaking, self.quiet = False, 0
        self.task: asyncio.Task | None = None
        self.current: dict | None = None
        self.lengths: dict[str, float] = {}

    async def send(self, kind: str, **rest) -> None:
        await self.socket.send(json.dumps({"type": kind, "event_id": "event", **rest}))

    async def error(self, code: str, message: str, event: dict) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message}
        await self.send("error", error=error | {"event_id": event.get("event_id")})

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def take(self, event: dict) -> None:
        kind = event["type"]
        if kind == "session.update":
            self._update(event["session"])
            await self.send("session.updated", session=event["session"])
        elif kind == "conversation.item.create":
            await self.send("conversation.item.added", item=event["item"])
        elif kind == "response.create":
            await self.respond(event)
        elif kind == "response.cancel":
            await self.cancel(event)
        elif kind == "conversation.item.truncate":
            await self.truncate(event)
        elif kind == "input_audio_buffer.append":
            await self.append(event)
        elif kind == "input_audio_buffer.commit":
            await self.commit(event)
        else:
            await self.error("unknown_event", f"unknown event {kind}", event)

    def _update(self, session: dict) -> None:
        if self.server.generation == "ga":
            assert session["type"] == "realtime" and session["output_modalities"] == ["audio"]
            assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": RATE}
            self.detection = session["audio"]["input"]["turn_detection"] is not None
        else:
            assert session["input_audio_format"] == session["output_audio_format"] == "pcm16"
            self.detection = session["turn_detection"] is not None

    # Responses

    async def respond(self, event: dict) -> None:
        if self.server.faults.silent:
            return
        if self.server.faults.error is not None:
            await self.send("error", error=self.server.faults.error)
        elif self.current is not None:
            await self.error("conversation_already_has_active_response", "there is an active response", event)
        else:
            self.server.responses += 1
            number = self.server.responses
            self.current = {"id": f"resp_{number}", "status": "in_progress"}
            self.task = asyncio.create_task(self.answer(number, self.current))

    async def answer(self, number: int, response: dict) -> None:
        faults, item = self.server.faults, f"item_{number}"
        name = {"ga": "response.output_audio", "beta": "response.audio"}[self.server.generation]
        ids = {"response_id": response["id"], "item_id": item, "output_index": 0, "content_index": 0}
        if not faults.no_created:
            await self.send("response.created", response=response)
        data = np.full(RATE * PIECE_MS // 1000 * self.server.pieces, number * 32, "<i2").tobytes()
        step = len(data) // self.server.pieces
        for piece in range(self.server.pieces):
            for garbage in faults.garbage:
                await self.socket.send(garbage)
            last = piece + 1 == self.server.pieces
            start, stop = step * piece - faults.odd * (piece > 0), step * (piece + 1) - faults.odd * (not last)
            self.lengths[item] = PIECE_MS * (piece + 1)
            await self.send(f"{name}_transcript.delta", delta=WORDS[piece % 10], **ids)
            await self.send(f"{name}.delta", delta=base64.b64encode(data[start:stop]).decode(), **ids)
            await asyncio.sleep(faults.piece_s)
            if faults.lose_after == piece + 1:
                faults.lose_after = 0
                self.socket.transport.abort()
                return
        await self.send(f"{name}.done", **ids)
        await self.done(faults.status)

    async def done(self, status: str) -> None:
        response, self.current = self.current, None
        if response is not None:
            details = {"error": {"message": "the model fell over"}} if status == "failed" else {}
            await self.send("response.done", response=response | {"status": status, "status_details": details})

    async def stop(self) -> None:
        if self.current is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            await self.done("cancelled")

    async def cancel(self, event: dict) -> None:
        if self.current is None or event.get("response_id") not in (None, self.current["id"]):
            await self.error("response_cancel_not_active", "no active response found", event)
        else:
            await self.stop()

    async def truncate(self, event: dict) -> None:
        length = self.lengths.get(event["item_id"])
        if length is None or event["audio_end_ms"] > length or not isinstance(event["audio_end_ms"], int):
            await self.error("invalid_value", f"audio of {length} ms", event)
        else:
            await self.send("conversation.item.truncated", **{key: event[key] for key in ("item_id", "audio_end_ms")})

    # The user's sound

    async def append(self, event: dict) -> None:
        sound = np.frombuffer(base64.b64decode(event["audio"], validate=True), "<i2")
        self.audio = np.concatenate([self.audio, sound])
        if not self.detection:
            return
        loud = len(sound) > 0 and np.abs(sound).max() > 1000
        if loud and not self.speaking:
            self.speaking = True
            await self.send("input_audio_buffer.speech_started", audio_start_ms=0, item_id="item_user")
            await self.stop()
        self.quiet = 0 if loud else self.quiet + len(sound)
        if self.speaking and self.quiet > RATE // 2:
            self.speaking = False
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=0, item_id="item_user")
            await self.take_turn(event)
            await self.respond(event)

    async def commit(self, event: dict) -> None:
        if not len(self.audio):
            await self.error("input_audio_buffer_commit_empty", "buffer too small", event)
        else:
            await self.take_turn(event)

    async def take_turn(self, event: dict) -> None:
        self.audio = self.audio[:0]
        await self.send("input_audio_buffer.committed", item_id="item_user")
        kind = "conversation.item.input_audio_transcription.completed"
        await self.send(kind, item_id="item_user", content_index=0, transcript="what I said")
