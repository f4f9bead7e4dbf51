"""A viewer in Python: what a browser does, with every frame and sample at hand, and when each came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from urllib import error, request

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from livetalk.realtime.server.peer import offer_addresses
from livetalk.realtime.server.protocol import CHANNEL


def fetch(
    address: str, path: str, method: str = "GET", body: bytes | None = None, headers: dict | None = None, timeout=20
) -> tuple[int, dict, bytes]:
    """Status, headers and body of a request, whatever the status."""
    asked = request.Request(address.rstrip("/") + path, body, headers or {}, method=method)
    try:
        with request.urlopen(asked, timeout=timeout) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except error.HTTPError as answer:
        return answer.code, dict(answer.headers), answer.read()


class Viewer:
    """One session of a server. events: messages from it; frames: (time, pts in seconds, pixels) and sounds: (time, pts,
    int16 samples) as they arrive, or, where on_frame and on_sound are given, handed to those instead."""

    def __init__(
        self,
        address: str,
        token: str = "",
        voice: MediaStreamTrack | None = None,
        on_frame: Callable | None = None,
        on_sound: Callable | None = None,
    ) -> None:
        self.address = address
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.events: list[dict] = []
        self.frames: list[tuple[float, float, np.ndarray]] = []
        self.sounds: list[tuple[float, float, np.ndarray]] = []
        self._on_frame = on_frame or (lambda *frame: self.frames.append(frame))
        self._on_sound = on_sound or (lambda *sound: self.sounds.append(sound))
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connection.addTransceiver("video", "recvonly")
        self.connection.addTransceiver(voice or "audio", "sendrecv")
        self.channel = self.connection.createDataChannel(CHANNEL)
        self.channel.on("message", self._told)
        self.connection.on("track", self._tracked)
        self.session = ""

    async def open(self, face: str = "robin", prompt: str = "") -> tuple[int, dict]:
        """Status and answer; media and messages follow where the status is 201."""
        wish = {"sdp": await self.offer(), "face": face, "prompt": prompt}
        ask = (self.address, "/api/sessions", "POST", json.dumps(wish).encode(), self.headers)
        status, _, body = await asyncio.to_thread(fetch, *ask)
        answer = json.loads(body)
        if status == 201:
            self.session = answer["session"]
            await self.connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        return status, answer

    async def offer(self) -> str:
        """SDP, also on a machine without a network."""
        offer_addresses(self.connection)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    def send(self, type: str, **fields) -> None:
        self.channel.send(json.dumps({"type": type, **fields}))

    async def event(self, wanted: Callable[[dict], bool], timeout: float = 20.0, after: int = 0) -> dict:
        """The first event, from number `after` on, that is wanted."""
        async with asyncio.timeout(timeout):
            while True:
                for event in self.events[after:]:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Viewer:
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    def _told(self, text: str) -> None:
        self.events.append(json.loads(text) | {"at": time.monotonic()})
        self._news.set()

    def _tracked(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.create_task(self._watch(track)))

    async def _watch(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                now, pts = time.monotonic(), float(frame.pts * frame.time_base)
                if track.kind == "video":
                    self._on_frame(now, pts, frame.to_ndarray(format="rgb24"))
                else:
                    self._on_sound(now, pts, frame.to_ndarray().reshape(-1, len(frame.layout.channels))[:, 0])
        except MediaStreamError:
            return
