"""The example agent: its models, its session with an avatar, and the worker, offline and without a LiveKit server."""

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import AsyncMock

import numpy as np
import pytest

from livetalk.commands import livekit_agent as command
from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.livekit_agent import Cast, agent_server, join, require_secrets
from livetalk.realtime.livekit_settings import LivekitRun
from livetalk.realtime.thinker import Line
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.session import Session
from tests.realtime.conftest import Counter, ToneVoice
from tests.realtime.livekit_room import Publication
from tests.streaming.conftest import FACE, make, quick  # noqa: F401

KEYS = {"LIVEKIT_API_KEY": "devkey", "LIVEKIT_API_SECRET": "s" * 32}
needs_livekit = pytest.mark.skipif(find_spec("livekit") is None, reason="pip install livetalk[livekit]")


@pytest.mark.parametrize(
    "wrong", [{"url": "http://x"}, {"sessions": 0}, {"port": -1}, {"size": 17}, {"talker": {"kind": "echo"}}]
)
def test_settings_are_checked(wrong):
    from livetalk import config

    words = [f"{key}={value}" for key, value in wrong.items() if key != "talker"]
    words += ["talker.kind=echo"] if "talker" in wrong else []
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config.load(None, words, run="livekit_agent")


def test_secrets_come_from_the_environment():
    require_secrets(KEYS)
    with pytest.raises(ValueError, match="no LIVEKIT_API_SECRET"):
        require_secrets({"LIVEKIT_API_KEY": "devkey"})


def test_a_face_is_a_name_or_a_file():
    assert command.picture_of("lin").size[0] > 100
    with pytest.raises(ValueError, match="face=nobody"):
        command.picture_of("nobody")


@pytest.fixture
def cast(make) -> Cast:  # noqa: F811
    performer = quick(make(StreamConfig(lead_ms=300, reserve_ms=100), timesteps=(1000.0,)))

    def session_of(image, prompt, clock, hold, show):
        return Session(performer, image, prompt, 0, clock, hold, show)

    run = LivekitRun(greeting="", port=0)
    return Cast(run, performer, FACE, "nods", session_of, lambda frame: frame, Counter(1), ToneVoice())


class Context:
    """A job in a made-up room."""

    def __init__(self, room) -> None:
        self.room, self.callbacks = room, []

    async def connect(self) -> None:
        assert self.room.isconnected()

    def add_shutdown_callback(self, callback) -> None:
        self.callbacks.append(callback)


@pytest.fixture
def room(monkeypatch):
    """LiveKit's own stand-in of a room, which its worker uses too, with tracks that are published."""
    from livekit.agents.ipc.mock_room import create_mock_room

    room = create_mock_room()
    monkeypatch.setattr(room.local_participant, "publish_track", AsyncMock(return_value=Publication()))
    return room


@pytest.mark.livekit
@needs_livekit
def test_a_session_answers_through_the_avatar_and_can_be_interrupted(cast, room):
    """What is typed is thought about, spoken and performed; LiveKit is told how far an interrupted answer was heard."""

    async def main():
        context = Context(room)
        session = await join(cast, context)
        ends = []
        session.output.audio.on("playback_finished", lambda event: ends.append(event))
        try:
            handle = session.generate_reply(user_input="first")
            await asyncio.wait_for(handle.wait_for_playout(), 10)
            # "Turn 1 is being spoken." in ToneVoice's letters of 50 ms.
            assert [end.playback_position for end in ends] == [pytest.approx(1.17, abs=0.03)]
            cast.thinker.sentences = 9
            begun = asyncio.Event()
            session.output.audio.on("playback_started", lambda event: begun.set())
            handle = session.generate_reply(user_input="second")
            await asyncio.wait_for(begun.wait(), 10)
            await asyncio.sleep(0.3)
            await asyncio.wait_for(session.interrupt(), 5)
            assert len(ends) == 2 and ends[1].interrupted and 0.2 < ends[1].playback_position < 5
            told = [item.text_content.strip() for item in session.history.items if item.type == "message"]
            assert told[:3] == ["first", "Turn 1 is being spoken.", "second"]
            assert any("synthetic" in call.args[0] for call in room.local_participant.set_attributes.call_args_list)
        finally:
            for callback in context.callbacks:
                await callback()

    asyncio.run(asyncio.wait_for(main(), 40))


@pytest.mark.livekit
@needs_livekit
def test_a_worker_takes_a_job(cast, room, monkeypatch):
    """LiveKit's own worker, unregistered, carries a job in a thread: the greeting is performed to its end."""
    ends = []

    async def joined(cast, context):
        session = await join(cast, context)
        session.output.audio.on("playback_finished", lambda event: ends.append(event.playback_position))
        return session

    monkeypatch.setattr("livetalk.realtime.livekit_agent.join", joined)
    cast = replace(cast, run=replace(cast.run, greeting="Turn 7 is a word."))

    async def main():
        server = agent_server(cast, KEYS)
        started = asyncio.Event()
        server.on("worker_started", started.set)
        running = asyncio.create_task(server.run(unregistered=True))
        async with asyncio.timeout(30):
            await started.wait()
            await server.simulate_job("room", fake_job=True)
            while not ends:
                assert not running.done()
                await asyncio.sleep(0.05)
            assert server._load_fnc(server) == 0.5
        await server.aclose()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert ends == [pytest.approx(0.87, abs=0.03)]


@pytest.mark.livekit
@needs_livekit
def test_models_are_livekits(cast):
    from livekit.agents import llm

    from livetalk.realtime.livekit_models import language_model, lines_of, synthesiser

    async def main():
        context = llm.ChatContext.empty()
        context.add_message(role="system", content="be kind")
        context.add_message(role="user", content=" who  are you ")
        assert lines_of(context) == [Line(True, "who are you")]
        async with language_model(cast.thinker).chat(chat_ctx=context) as answer:
            text = "".join([chunk.delta.content async for chunk in answer if chunk.delta])
        assert text.split() == "Turn 1 is being spoken.".split() and cast.thinker.open == 0
        frame = await synthesiser(cast.voice, 8000).synthesize("Turn 3 a").collect()
        assert frame.sample_rate == 8000 and frame.duration == pytest.approx(0.4, abs=0.01)
        middle = np.frombuffer(frame.data, np.int16)[1600]
        assert middle == pytest.approx(3 / 1024 * 32767, rel=0.02) and SAMPLE_RATE == 16_000

    asyncio.run(asyncio.wait_for(main(), 20))
