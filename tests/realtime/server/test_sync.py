"""Picture and sound stay together through the whole server: stream, player, encoders, network, decoders.

The talker clicks; the frame in whose sound a click begins is grey, all others are black. The viewer maps the times of
both to the sender's clock, as a browser does, by the sender's reports (RTCP), and compares.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from livetalk.pipeline import LiveTalkPipeline
from livetalk.realtime.offline import OfflineTalker
from livetalk.realtime.server import call as calls
from livetalk.realtime.server.settings import ServeRun
from livetalk.realtime.server.turns import SharedSession
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.voices import Said
from tests.realtime.server.conftest import running
from tests.realtime.server.viewer import Viewer

NTP_1970 = 2_208_988_800
NEAR_S = 30
DARKEST = 95
QUIET_S = 0.3
"""Between two clicks at least."""


class Endless:
    """A thinker that never ends."""

    def think(self, lines):
        while True:
            yield "On. "


class Clicks:
    """Ten seconds a sentence, with a click of 10 ms at every other half second, off the grid of frames."""

    def __init__(self) -> None:
        self._dice = np.random.default_rng(0)

    def say(self, sentence: str) -> Said:
        pcm = np.zeros(10 * SAMPLE_RATE, np.float32)
        wave = 0.9 * np.sin(2 * np.pi * 1000 * np.arange(160) / SAMPLE_RATE)
        for second in range(10):
            at = int((second + 0.2 + 0.4 * self._dice.random()) * SAMPLE_RATE)
            pcm[at : at + len(wave)] += wave.astype(np.float32)
        return Said(pcm, SAMPLE_RATE, ((0.0, sentence),))


class Clicking:
    def talker(self) -> OfflineTalker:
        return OfflineTalker(TalkerConfig(), Endless(), Clicks())


class Marked(SharedSession):
    """Paints what is heard: a frame in which a click begins is grey, and the later in it, the lighter."""

    def decode_next(self, rendering):
        block = super().decode_next(rendering)
        if block is None:
            return None
        sound = np.abs(block.sound.reshape(-1, SAMPLES_PER_FRAME))
        onsets = (sound > 0.2).argmax(axis=1)
        frames = np.zeros_like(block.frames)
        for frame in np.flatnonzero((sound > 0.2).any(axis=1)):
            # A click that began in the frame before has made that one grey.
            if onsets[frame] or not (frame and sound[frame - 1, -1] > 0.01):
                frames[frame] = round(DARKEST + (255 - DARKEST) * onsets[frame] / SAMPLES_PER_FRAME)
        return replace(block, frames=frames)


class Listener:
    """Onsets in a stream of a viewer, on the sender's clock."""

    def __init__(self, receiver, clock_rate: int) -> None:
        self.receiver, self.rate = receiver, clock_rate
        self.onsets: list[float] = []
        self.reports: list[tuple[float, float]] = []
        handle = receiver._handle_rtcp_packet

        async def watched(packet):
            if hasattr(packet, "sender_info"):
                info = packet.sender_info
                if info.rtp_timestamp:
                    self.reports.append((info.ntp_timestamp / 2**32 - NTP_1970, info.rtp_timestamp))
            await handle(packet)

        receiver._handle_rtcp_packet = watched

    def times(self) -> np.ndarray:
        """Of the onsets, in seconds of the sender's clock: by the earliest tenth of the reports within NEAR_S. A report
        says when a frame was sent, which on a busy machine is later than it should be, and never earlier."""
        origin = self.receiver._RTCRtpReceiver__timestamp_mapper._origin
        seen = [(((rtp - origin) % 2**32) / self.rate, ntp) for ntp, rtp in self.reports]
        seen = sorted((pts - 2**32 / self.rate * (pts > 2**31 / self.rate), ntp) for pts, ntp in seen)
        at = [pts for pts, _ in seen]
        out = []
        for onset in self.onsets:
            low, high = bisect.bisect(at, onset - NEAR_S), bisect.bisect(at, onset + NEAR_S)
            out.append(onset + np.quantile([ntp - pts for pts, ntp in seen[low:high] or seen], 0.1))
        return np.array(out)


async def measured(address: str, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and flashes on the sender's clock."""
    dark, quiet = [True], [-1.0]

    def frame(_, pts: float, pixels: np.ndarray) -> None:
        light = pixels.mean()
        if light > DARKEST / 2 and dark[0]:
            into = max(0.0, (light - DARKEST) / (255 - DARKEST)) / FPS
            listeners["video"].onsets.append(pts + into)
        dark[0] = light < DARKEST / 2

    def sound(_, pts: float, samples: np.ndarray) -> None:
        loud = np.flatnonzero(np.abs(samples.astype(int)) > 6000)
        if len(loud):
            at = pts + loud[0] / 48_000
            if at - quiet[0] > QUIET_S:
                listeners["audio"].onsets.append(at)
            quiet[0] = pts + loud[-1] / 48_000

    async with Viewer(address, on_frame=frame, on_sound=sound) as viewer:
        receivers = {found.kind: found.receiver for found in viewer.connection.getTransceivers()}
        listeners = {kind: Listener(receivers[kind], rate) for kind, rate in (("video", 90_000), ("audio", 48_000))}
        await viewer.open()
        await viewer.event(lambda event: event["type"] == "hello")
        viewer.send("say", text="Click.")
        await asyncio.sleep(seconds)
        return listeners["audio"].times(), listeners["video"].times()


def skews(clicks: np.ndarray, flashes: np.ndarray) -> np.ndarray:
    """[n, 2]: the clicks' times from the first, and by how much each is later than its flash says, in seconds."""
    return np.array([(click - clicks[0], click - flashes[np.abs(flashes - click).argmin()]) for click in clicks])


def measure(serving, monkeypatch, seconds: float) -> dict[str, float]:
    """serving: a server whose talker clicks, not yet begun."""
    monkeypatch.setattr(calls, "SharedSession", Marked)
    with serving as server:
        clicks, flashes = asyncio.run(measured(server.address, seconds))
        metrics = server.studio.metrics.text().decode()
    assert len(clicks) > 0.6 * seconds and abs(len(clicks) - len(flashes)) <= 1
    found = skews(clicks[1:-1], flashes)
    ms = 1000 * found[:, 1]
    slope = np.polyfit(found[:, 0] / 60, ms, 1)[0]
    name = "livetalk_frames_repeated_total "
    repeated = next(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))
    return {
        "seconds": seconds,
        "clicks": len(ms),
        "mean_ms": float(ms.mean()),
        "least_ms": float(ms.min()),
        "most_ms": float(ms.max()),
        "slope_ms_a_minute": float(slope),
        "repeated": repeated,
    }


def test_a_click_and_its_flash_come_together(serve, monkeypatch):
    found = measure(serve(Clicking(), sessions=1), monkeypatch, 6)
    assert -1000 / FPS / 2 < found["least_ms"] and found["most_ms"] < 1000 / FPS / 2, found
    assert abs(found["mean_ms"]) < 10, found


@pytest.mark.slow
def test_they_stay_together_for_half_an_hour(monkeypatch):
    """With the shipped student at work, whose frames are made and then painted over. LIVETALK_SYNC_SECONDS: another
    time; LIVETALK_SYNC_LOG: a file to which the figures are written."""
    performer = LiveTalkPipeline.from_pretrained("nano", device="cpu").performer()
    serving = running(performer, ServeRun(port=0, sessions=1), Clicking())
    found = measure(serving, monkeypatch, float(os.environ.get("LIVETALK_SYNC_SECONDS", "1800")))
    if "LIVETALK_SYNC_LOG" in os.environ:
        Path(os.environ["LIVETALK_SYNC_LOG"]).write_text(json.dumps(found, indent=1) + "\n")
    assert max(abs(found["least_ms"]), abs(found["most_ms"])) < 1000 / FPS, found
    assert abs(found["slope_ms_a_minute"]) < 1, found
    assert threading.active_count() < 20
