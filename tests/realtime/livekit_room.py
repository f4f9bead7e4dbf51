"""A room and an agent's side for tests of LiveKit's AvatarRunner: no server, but the real runner, queues and clocks.

Recorder stands where the runner's tracks end: it notes what leaves them, and when a viewer would see and hear it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

ACTIVE = 2
"""livekit.rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE."""
DELAY_S = 0.01
"""Of whatever one participant of a call sends the other."""


@dataclass
class Publication:
    """Of a track; somebody has subscribed to it."""

    async def wait_for_subscription(self) -> None:
        await asyncio.sleep(0)


class Participant:
    def __init__(self) -> None:
        self.tracks = []

    async def publish_track(self, track, options) -> Publication:
        self.tracks.append((track, options))
        return Publication()


class Room:
    """What AvatarRunner asks of a connected room."""

    def __init__(self) -> None:
        self.local_participant = Participant()
        self.listeners = {}

    def isconnected(self) -> bool:
        return True

    def on(self, event, callback) -> None:
        self.listeners[event] = callback

    def off(self, event, callback) -> None:
        assert self.listeners.pop(event) == callback


@dataclass
class Recorder:
    """frames: (when, grey level of a pixel); sound: (when it begins to be heard, int16 samples)."""

    frames: list[tuple[float, int]] = field(default_factory=list)
    sound: list[tuple[float, np.ndarray]] = field(default_factory=list)

    def watch(self, runner, monkeypatch) -> None:
        video, audio = runner._video_source, runner._audio_source
        shows, plays = video.capture_frame, audio.capture_frame

        def show(frame, **options):
            self.frames.append((time.monotonic(), int(frame.data[0])))
            shows(frame, **options)

        async def play(frame):
            at = time.monotonic() + audio.queued_duration
            self.sound.append((at, np.frombuffer(frame.data, np.int16).copy()))
            await plays(frame)

        monkeypatch.setattr(video, "capture_frame", show)
        monkeypatch.setattr(audio, "capture_frame", play)

    @property
    def heard(self) -> np.ndarray:
        """All sound, joined."""
        return np.concatenate([pcm for _, pcm in self.sound] or [np.zeros(0, np.int16)])


class End(Participant):
    """One of two participants of a call without a server: byte streams and remote calls reach the other's room, a
    moment later and in order."""

    def __init__(self, identity: str, kind: int) -> None:
        super().__init__()
        self.identity, self.kind, self.attributes, self.state = identity, kind, {}, ACTIVE
        self._rpc_handlers = {}
        self.calls: list[tuple[str, str]] = []
        self.other: Wired | None = None

    def register_rpc_method(self, name, handler) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity, method, payload) -> str:
        from livekit.rtc import RpcInvocationData

        await asyncio.sleep(DELAY_S)
        self.calls.append((method, payload))
        data = RpcInvocationData("1", self.identity, payload, 10.0)
        return self.other.local_participant._rpc_handlers[method](data)

    async def stream_bytes(self, *, name, topic, destination_identities, attributes) -> Stream:
        stream = Stream(name, attributes)
        asyncio.get_running_loop().call_later(DELAY_S, self.other.streams[topic], stream, self.identity)
        return stream


class Stream:
    """A byte stream, both its ends."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(attributes=attributes, stream_id=name)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self._pieces.put_nowait(data)

    async def aclose(self) -> None:
        self._pieces.put_nowait(None)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if (piece := await self._pieces.get()) is None:
            raise StopAsyncIteration
        return piece


class Wired(Room):
    """A room as one of its two participants has it."""

    def __init__(self, own: End) -> None:
        super().__init__()
        self.local_participant, self.streams, self.remote_participants = own, {}, {}

    def on(self, event, callback) -> None:
        self.listeners[event, callback] = callback

    def off(self, event, callback) -> None:
        del self.listeners[event, callback]

    def register_byte_stream_handler(self, topic, handler) -> None:
        self.streams[topic] = handler


def call() -> tuple[Wired, Wired]:
    """The rooms of an agent and of its avatar."""
    from livekit import rtc

    agent, avatar = (Wired(End(name, rtc.ParticipantKind.PARTICIPANT_KIND_AGENT)) for name in ("agent", "avatar"))
    for room, other in ((agent, avatar), (avatar, agent)):
        room.local_participant.other = other
        room.remote_participants = {other.local_participant.identity: other.local_participant}
    return agent, avatar
