"""A room and an agent's side for tests of LiveKit's AvatarRunner: no server, but the real runner, queues and clocks.

Recorder stands where the runner's tracks end: it notes what leaves them, and when a viewer would see and hear it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np


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
