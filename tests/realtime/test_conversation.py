"""A talker and a stream, joined: on a stream that is arithmetic, and on the shipped student."""

import asyncio
import time

import numpy as np
import pytest

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.conversation import AHEAD_S, Conversation
from livetalk.realtime.offline import OfflineTalker
from livetalk.realtime.settings import RealtimeServer, TalkerConfig
from livetalk.realtime.talker import (
    Caption,
    Failed,
    Heard,
    SpeechEnded,
    SpeechStarted,
    State,
    StateChanged,
    UserCaption,
    UserSpeech,
)
from livetalk.realtime.talkers import make_talker
from livetalk.realtime.thinker import Line
from tests.realtime.conftest import Counter, FakeStage, ToneVoice, reading, run, until
from tests.realtime.protocol_server import Faults, ProtocolServer

ENDED = SpeechEnded(1, True)


def offline(sentences: int = 3, **settings) -> OfflineTalker:
    return OfflineTalker(TalkerConfig(**settings), Counter(sentences), ToneVoice())


def spoken_for_a_second(event) -> bool:
    return isinstance(event, Caption) and event.at_ms > 900


def states(events: list) -> list[State]:
    return [event.state for event in events if isinstance(event, StateChanged)]


def test_an_answer_is_performed_and_told_when_it_is_heard():
    stage = FakeStage(speed=10)

    async def main():
        async with Conversation(offline(), stage) as conversation:
            begun = time.monotonic()
            await conversation.say("Hello")
            events = await until(conversation.events(), lambda event: event == StateChanged(State.IDLE))
            return events, time.monotonic() - begun

    events, seconds = run(main())
    assert states(events) == [State.THINKING, State.SPEAKING, State.IDLE]
    assert [event for event in events if isinstance(event, SpeechStarted | SpeechEnded)] == [SpeechStarted(1), ENDED]
    assert "".join(event.text for event in events if isinstance(event, Caption)) == "Turn 1 is being spoken. " * 3
    assert 0.3 < seconds < 2, "3.45 s of sound at ten times the pace"
    assert {value for _, value in stage.pushed} == {np.float32(1 / 1024)} and stage.flushes == 1


def test_the_stream_is_given_only_so_much_ahead():
    stage = FakeStage(speed=0.0)

    async def main():
        async with Conversation(offline(100, ahead_s=2.0), stage) as conversation:
            await conversation.say("Hello")
            await asyncio.sleep(0.3)
            assert AHEAD_S <= stage.unheard < AHEAD_S + 0.6
            stage.speed = 20.0
            await asyncio.sleep(0.3)
            assert len(stage.pushed) > 15

    run(main())


def test_interrupted_nothing_more_is_performed_and_the_memory_ends_where_the_user_heard_it():
    stage = FakeStage(speed=4, block_s=0.05)
    talker = offline(50)

    async def main():
        async with Conversation(talker, stage) as conversation, reading(conversation.events()) as events:
            await conversation.say("Hello")
            await asyncio.sleep(0.5)
            heard = await conversation.interrupt()
            acknowledged = time.monotonic()
            assert await conversation.interrupt() is None
            await asyncio.sleep(0.2)
            return heard, acknowledged, list(events), talker.lines()

    heard, acknowledged, events, lines = run(main())
    assert all(when < acknowledged for when, _ in stage.pushed) and stage.interruptions == 1
    assert heard.turn == 1 and 1200 < heard.heard_ms < 2200
    assert lines[-1] == Line(False, heard.text) and heard.text.startswith("Turn 1 is being spoken. Turn 1")
    shown = "".join(event.text for event in events if isinstance(event, Caption)).strip()
    assert heard.text.startswith(shown) and len(heard.text) - len(shown) < 40
    assert events[-3:] == [SpeechEnded(1, False), heard, StateChanged(State.IDLE)]


def test_an_interruption_whose_caller_gives_up():
    """The next answer comes as if nothing had been, and nothing of the one before."""
    stage = FakeStage(speed=20, block_s=0.1)

    async def main():
        async with Conversation(offline(), stage) as conversation:
            await conversation.say("Sentence 1")
            before = await until(conversation.events(), lambda event: event == SpeechStarted(1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(conversation.interrupt(), 0.02)
            assert await conversation.say("Sentence 2") == 2
            return before + await until(conversation.events(), lambda event: event == SpeechEnded(2, True))

    events = run(main())
    assert states(events)[-2:] == [State.THINKING, State.SPEAKING] and SpeechEnded(1, False) in events
    assert stage.pushed[-1][1] == np.float32(2 / 1024) and SpeechEnded(1, True) not in events


def test_the_next_sentence_interrupts_too():
    stage = FakeStage(speed=2, block_s=0.02)

    async def main():
        async with Conversation(offline(20), stage) as conversation, reading(conversation.events()) as events:
            await conversation.say("Hello")
            await asyncio.sleep(0.2)
            assert await conversation.say("Stop") == 2
            said = time.monotonic()
            await asyncio.sleep(0.3)
            return said, list(events)

    said, events = run(main())
    assert {value * 1024 for when, value in stage.pushed if when > said} == {2}
    order = [event for event in events if isinstance(event, SpeechStarted | SpeechEnded | Heard | UserCaption)]
    kinds = [type(event).__name__ for event in order]
    assert kinds == ["UserCaption", "SpeechStarted", "SpeechEnded", "Heard", "UserCaption", "SpeechStarted"]


def test_a_text_that_is_refused_stops_nothing():
    stage = FakeStage()

    async def main():
        async with Conversation(offline(5), stage) as conversation:
            await conversation.say("Hello")
            with pytest.raises(ValueError, match="empty"):
                await conversation.say(" ")
            await asyncio.sleep(0.1)
            assert stage.interruptions == 0 and stage.unheard > 1

    run(main())


@pytest.mark.parametrize("barge_in", [True, False])
def test_the_users_voice_interrupts(voice, barge_in):
    stage = FakeStage()

    async def main():
        conversation = Conversation(offline(50), stage, barge_in)
        async with conversation, reading(conversation.events()) as events:
            await conversation.say("Hello")
            await asyncio.sleep(0.2)
            await conversation.hear(voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)
            await asyncio.sleep(0.1)
            return list(events), conversation.state

    events, state = run(main())
    assert UserSpeech(True) in events and stage.interruptions == barge_in
    assert any(isinstance(event, Heard) for event in events) == barge_in
    assert state == (State.LISTENING if barge_in else State.SPEAKING)


def test_an_echo_is_not_interrupted_by_itself(voice):
    stage = FakeStage(speed=4)

    async def main():
        talker = make_talker(TalkerConfig(kind="echo"))
        async with Conversation(talker, stage) as conversation:
            await conversation.hear(voice, SAMPLE_RATE)
            return await until(conversation.events(), lambda event: event == ENDED)

    events = run(main())
    assert stage.interruptions == 0 and stage.flushes == 1 and states(events)[-1] == State.SPEAKING


def test_a_server_drives_the_stream_the_same_way(voice):
    """Typed, interrupted by the voice that the server notices, answered, the server told how much was heard."""
    stage = FakeStage(block_s=0.02)

    async def main():
        async with ProtocolServer(pieces=30, faults=Faults(piece_s=0.001)) as server:
            settings = RealtimeServer(url=server.url)
            talker = make_talker(TalkerConfig(kind="openai-realtime", server=settings))
            async with Conversation(talker, stage) as conversation, reading(conversation.events()) as events:
                await conversation.say("Hello")
                await asyncio.sleep(0.5)
                await conversation.hear(voice, SAMPLE_RATE)
                async with asyncio.timeout(5):
                    while SpeechStarted(2) not in events:
                        await asyncio.sleep(0.01)
                return server, list(events)

    server, events = run(main())
    heard = next(event for event in events if isinstance(event, Heard))
    assert heard.turn == 1 and 200 < heard.heard_ms < 900
    assert [event["audio_end_ms"] for event in server.sent("conversation.item.truncate")] == [int(heard.heard_ms)]
    assert [value * 1024 for _, value in stage.pushed] == sorted(value * 1024 for _, value in stage.pushed)
    assert not [event for event in events if isinstance(event, Failed)]


def test_a_stream_that_fails_ends_the_events_with_its_error():
    class Closed(FakeStage):
        def push_audio(self, pcm, rate):
            raise ValueError("this stream is closed")

    async def main():
        async with Conversation(offline(), Closed()) as conversation:
            await conversation.say("Hello")
            with pytest.raises(ValueError, match="this stream is closed"):
                await until(conversation.events(), lambda event: event == ENDED)

    run(main())


def test_a_talker_that_cannot_work_leaves_nothing():
    class Broken(OfflineTalker):
        async def __aenter__(self):
            raise ValueError("no voice")

    async def main():
        with pytest.raises(ValueError, match="no voice"):
            async with Conversation(Broken(TalkerConfig(), Counter(), ToneVoice()), FakeStage()):
                raise AssertionError("never")

    run(main())


def test_left_in_the_middle_of_everything(voice):
    async def main():
        async with Conversation(offline(50), FakeStage()) as conversation:
            await conversation.say("Hello")
            asyncio.get_running_loop().call_soon(lambda: None)
            await conversation.hear(voice, SAMPLE_RATE)
        with pytest.raises(StopAsyncIteration):
            await anext(conversation.events())

    run(main())


@pytest.fixture(scope="module")
def performer():
    pytest.importorskip("espeakng_loader")
    from livetalk import LiveTalkPipeline

    return LiveTalkPipeline.from_pretrained("nano", device="cpu").performer()


def test_the_student_speaks_and_is_interrupted(performer):
    """Frames are taken at their pace from a player; a real answer is heard, stopped, and the picture goes on."""
    from livetalk.geometry import FPS
    from livetalk.pipeline import EXAMPLE_IMAGE, example_prompt
    from livetalk.streaming.player import Player

    player, shown = Player(), []

    async def show(live) -> None:
        """As a viewer does it: a frame every 1 / FPS s."""
        loop = asyncio.get_running_loop()
        taking = asyncio.create_task(take(live))
        try:
            while True:
                due = loop.time() + 1 / FPS
                if (frame := player.pull()) is not None:
                    shown.append(frame)
                await asyncio.sleep(due - loop.time())
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def take(live) -> None:
        async for block in live:
            player.put(block)

    async def main():
        with performer.live(EXAMPLE_IMAGE, example_prompt(), clock=player.position, hold=player.drop) as live:
            showing = asyncio.create_task(show(live))
            async with Conversation(make_talker(), live) as conversation:
                await conversation.say("Tell me a story")
                events = await until(conversation.events(), spoken_for_a_second)
                heard = await conversation.interrupt()
                at = len(shown)
                while len(shown) < at + 8:
                    await asyncio.sleep(0.05)
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
        return events, heard, at

    events, heard, at = run(main(), 60)
    assert [frame.index for frame in shown] == list(range(len(shown)))
    spoken = np.concatenate([frame.sound for frame in shown[:at]])
    assert heard.heard_ms == pytest.approx(1000 * np.count_nonzero(np.abs(spoken) > 1e-6) / SAMPLE_RATE, abs=400)
    assert 800 < heard.heard_ms < 3000 and states(events)[:2] == [State.THINKING, State.SPEAKING]
    assert not any(np.abs(frame.sound).max() > 1e-3 for frame in shown[at:])
