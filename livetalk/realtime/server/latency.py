"""How long a typed sentence waits for its answer, stage by stage, through the server and a connection to a viewer.

think: until the first sentence of the answer is written. speak: until the first of its sound is there. perform: until
the first frame that speaks is rendered. send: until it is its turn to be sent, after what was shown before it. arrive:
until a viewer on the same machine has received and decoded the sound that belongs to it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from livetalk.realtime.server.call import Call, Studio
from livetalk.realtime.server.desk import Desk
from livetalk.realtime.server.faces import BUNDLED
from livetalk.realtime.server.peer import offer_addresses
from livetalk.realtime.server.protocol import CHANNEL
from livetalk.realtime.server.stages import AUDIBLE
from livetalk.realtime.server.stages import STAGES as PERFORMED
from livetalk.realtime.talker import Talker
from livetalk.realtime.talkers import Talkers
from livetalk.realtime.voices import Said, Voice

STAGES = ("think", *PERFORMED, "arrive")
REST_S = 1.5
"""Between two sentences, for the avatar to rest as it does in a conversation."""
WAIT_S = 30.0
SENTENCES = (
    "Hello! Who are you?",
    "What can you do?",
    "How are you today?",
    "Tell me something about the sea.",
    "Thank you, goodbye.",
)


@dataclass
class Marks:
    """When things happened after the latest sentence, in seconds of the monotonic clock."""

    asked: float = 0.0
    thought: float | None = None
    arrived: float | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class TimedVoice:
    """A voice that tells when it was first asked, which is when the first sentence was thought."""

    def __init__(self, voice: Voice, marks: Marks) -> None:
        self._voice, self._marks = voice, marks

    def say(self, sentence: str) -> Said:
        if self._marks.thought is None:
            self._marks.thought = time.monotonic()
        return self._voice.say(sentence)


class TimedTalkers:
    """Makes offline talkers whose voice is timed."""

    def __init__(self, talkers: Talkers, marks: Marks) -> None:
        assert talkers.config.kind == "offline"
        self._talkers, self._marks = talkers, marks

    def talker(self) -> Talker:
        talker = self._talkers.talker()
        talker._voice = TimedVoice(talker._voice, self._marks)
        return talker


async def measure(studio: Studio, talkers: Talkers, sentences: Sequence[str] = SENTENCES) -> list[dict[str, float]]:
    """Seconds of each of STAGES, one after the other, for each sentence."""
    marks = Marks()
    desk = Desk(replace(studio, talkers=TimedTalkers(talkers, marks)))
    viewer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    watching: list[asyncio.Task] = []
    viewer.on("track", lambda track: watching.append(asyncio.create_task(_watch(track, marks))))
    viewer.addTransceiver("video", "recvonly")
    viewer.addTransceiver("audio", "sendrecv")
    channel, there = viewer.createDataChannel(CHANNEL), asyncio.Event()
    channel.on("open", there.set)
    try:
        offer_addresses(viewer)
        await viewer.setLocalDescription(await viewer.createOffer())
        name, answer = await desk.open(viewer.localDescription.sdp, BUNDLED[0].name, studio.prompt)
        await viewer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await asyncio.wait_for(there.wait(), WAIT_S)
        call = desk._calls[name]
        return [await _asked(call, channel, sentence, marks) for sentence in sentences]
    finally:
        await viewer.close()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await desk.close()


async def _asked(call: Call, channel, sentence: str, marks: Marks) -> dict[str, float]:
    await asyncio.sleep(REST_S)
    marks.thought = marks.arrived = None
    marks.news.clear()
    marks.asked = time.monotonic()
    channel.send(json.dumps({"type": "say", "text": sentence}))
    await asyncio.wait_for(marks.news.wait(), WAIT_S)
    watch = call._watch
    times = [marks.asked, marks.thought, *(watch.marks[stage] for stage in PERFORMED), marks.arrived]
    channel.send(json.dumps({"type": "interrupt"}))
    return {stage: after - before for stage, before, after in zip(STAGES, times[:-1], times[1:], strict=True)}


async def _watch(track: MediaStreamTrack, marks: Marks) -> None:
    try:
        while True:
            frame = await track.recv()
            if track.kind != "audio" or marks.arrived is not None or marks.thought is None:
                continue
            if np.abs(frame.to_ndarray().astype(int)).max() > 32_768 * AUDIBLE:
                marks.arrived = time.monotonic()
                marks.news.set()
    except MediaStreamError:
        return


def table(found: Sequence[dict[str, float]]) -> str:
    """Median and worst of each stage and of the whole, milliseconds."""
    totals = [sum(stages.values()) for stages in found]
    rows = {stage: [stages[stage] for stages in found] for stage in STAGES} | {"in all": totals}
    lines = [f"{'stage':<10}{'median ms':>12}{'worst ms':>12}"]
    lines += [f"{name:<10}{1000 * np.median(own):>12.0f}{1000 * max(own):>12.0f}" for name, own in rows.items()]
    return "\n".join(lines)
