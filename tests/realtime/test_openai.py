"""The client of the Realtime protocol, against a server that speaks it, also badly."""

import asyncio
import base64
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime import wire
from livetalk.realtime.openai import OpenAITalker
from livetalk.realtime.settings import RealtimeServer, TalkerConfig
from livetalk.realtime.talker import (
    Caption,
    Failed,
    Speech,
    SpeechEnded,
    SpeechStarted,
    State,
    StateChanged,
    UserCaption,
    UserSpeech,
)
from livetalk.realtime.talkers import make_talker
from livetalk.realtime.thinker import Line
from tests.realtime.conftest import answer, reading, run, sound, until
from tests.realtime.protocol_server import GARBAGE, PIECE_MS, RATE, WORDS, Faults, ProtocolServer

WHOLE = "".join(WORDS)


def talker(server: ProtocolServer, **changes) -> OpenAITalker:
    wanted = {"backoff_s": 0.01, "dialect": server.generation, "answer_s": 5.0} | changes
    return make_talker(TalkerConfig(kind="openai-realtime", server=RealtimeServer(url=server.url, **wanted)))


async def soon(condition, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def connected(one: OpenAITalker) -> None:
    await soon(lambda: one._connection.connected)


def text_of(items: list) -> str:
    return "".join(item.text for item in items if isinstance(item, Caption))


@pytest.mark.parametrize("generation", ["ga", "beta"])
def test_a_typed_sentence_is_answered(generation):
    async def main():
        async with ProtocolServer(generation) as server, talker(server, model="omni") as one:
            async with reading(one.signals()) as signals:
                assert await one.say("Hello") == 1
                items = await answer(one)
                await soon(lambda: one.state == State.IDLE)
                await asyncio.sleep(0.01)
                return server, items, signals, one.lines()

    server, items, signals, lines = run(main())
    assert items[0] == SpeechStarted(1) and items[-1] == SpeechEnded(1, True) and text_of(items) == WHOLE
    heard = sound(items)
    assert len(heard) == RATE and set(heard) == {np.float32(1 / 1024)}
    assert {item.rate for item in items if isinstance(item, Speech)} == {RATE}
    assert server.kinds() == ["session.update", "conversation.item.create", "response.create"]
    assert server.paths == ["/v1/realtime?model=omni"]
    assert lines == [Line(True, "Hello"), Line(False, WHOLE.strip())]
    states = [State.THINKING, State.SPEAKING, State.IDLE]
    assert [signal.state for signal in signals if isinstance(signal, StateChanged)] == states
    assert UserCaption(1, "Hello") in signals


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("chunk_ms", [10, 37, 5000])
def test_the_users_voice_is_sent_and_answered(voice, rate, chunk_ms):
    """Resampled, however it is cut; the server notices it, and the answer is the next turn."""
    import soxr

    pcm = soxr.resample(voice, SAMPLE_RATE, rate)
    step = rate * chunk_ms // 1000

    async def main():
        async with ProtocolServer(pieces=2) as server, talker(server) as one, reading(one.signals()) as signals:
            await connected(one)
            for at in range(0, len(pcm), step):
                await one.hear(pcm[at : at + step], rate)
            items = await answer(one)
            await soon(lambda: UserCaption(1, "what I said") in signals)
            return server, items, signals, one.lines()

    server, items, signals, lines = run(main())
    assert [signal for signal in signals if isinstance(signal, UserSpeech)] == [UserSpeech(True), UserSpeech(False)]
    assert items[-1] == SpeechEnded(1, True)
    assert lines == [Line(True, "what I said"), Line(False, "One two")]
    sent = b"".join(base64.b64decode(event["audio"]) for event in server.sent("input_audio_buffer.append"))
    got = np.frombuffer(sent, "<i2") / 32767
    wanted = soxr.resample(pcm, rate, RATE)[: len(got)]
    assert len(got) > 0.9 * len(voice) * RATE / SAMPLE_RATE and np.abs(got - wanted).max() < 0.01


def test_push_to_talk_without_detection(voice):
    async def main():
        async with ProtocolServer(pieces=1) as server, talker(server, turn_detection="none") as one:
            await connected(one)
            await one.release()
            async with reading(one.signals()) as signals:
                await one.hear(voice, SAMPLE_RATE)
                await one.release()
                return server, await answer(one), list(signals)

    server, items, signals = run(main())
    assert server.kinds()[-2:] == ["input_audio_buffer.commit", "response.create"] and server.responses == 1
    assert server.received[0]["session"]["audio"]["input"]["turn_detection"] is None
    assert [signal for signal in signals if isinstance(signal, UserSpeech)] == [UserSpeech(True), UserSpeech(False)]
    assert items[-1] == SpeechEnded(1, True)


def test_push_to_talk_with_detection_ends_the_sentence(voice):
    async def main():
        async with ProtocolServer(pieces=1) as server, talker(server) as one:
            await connected(one)
            await one.hear(voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)
            await one.release()
            return await answer(one)

    assert run(main())[-1] == SpeechEnded(1, True)


def test_a_voice_that_interrupts(voice):
    """The server stops by itself; what it is told is how far the user heard."""

    async def main():
        async with ProtocolServer(pieces=50, faults=Faults(piece_s=0.01)) as server, talker(server) as one:
            await one.say("Hello")
            items = await until(one.speech(), lambda item: isinstance(item, Caption) and item.at_ms >= 900)
            await one.hear(voice, SAMPLE_RATE)
            await until(one.signals(), lambda signal: signal == UserSpeech(True))
            heard = await one.cancel(333.4)
            after = await until(one.speech(), lambda item: item == SpeechEnded(2, True))
            await soon(lambda: server.sent("conversation.item.truncate"))
            return server, items, heard, after, one.lines()

    server, items, heard, after, lines = run(main(), 30)
    assert heard.turn == 1 and heard.text == "One two three four"
    assert server.sent("conversation.item.truncate")[0]["audio_end_ms"] == 333
    assert after[0] == SpeechEnded(1, False) and after[1] == SpeechStarted(2)
    assert set(sound(after)) == {np.float32(2 / 1024)}
    assert [line.text for line in lines][:2] == ["Hello", "One two three four"]


def test_cancel_stops_the_server_and_what_waits():
    async def main():
        async with ProtocolServer(pieces=50, faults=Faults(piece_s=0.01)) as server, talker(server) as one:
            async with reading(one.signals()) as signals:
                await one.say("Hello")
                items = await until(one.speech(), Speech)
                await asyncio.sleep(0.1)
                heard = await one.cancel()
                assert await one.cancel() is None and one.state == State.IDLE
                await one.say("Again")
                items += await until(one.speech(), lambda item: item == SpeechEnded(2, True))
                return server, items, heard, list(signals)

    server, items, heard, signals = run(main())
    assert heard.heard_ms == PIECE_MS, "what was taken"
    cancelled = server.sent("response.cancel")
    assert [event["response_id"] for event in cancelled] == ["resp_1"]
    assert server.sent("conversation.item.truncate")[0]["audio_end_ms"] == PIECE_MS
    assert [item for item in items if isinstance(item, SpeechEnded)] == [SpeechEnded(1, False), SpeechEnded(2, True)]
    assert not [signal for signal in signals if isinstance(signal, Failed)]


def test_cancelled_before_the_server_has_begun():
    async def main():
        async with ProtocolServer(pieces=3, faults=Faults(piece_s=0.01)) as server, talker(server) as one:
            await connected(one)
            async with reading(one.signals()) as signals:
                await one.say("Hello")
                assert (await one.cancel()).text == ""
                await one.say("Again")
                items = await answer(one)
                return server, items, list(signals)

    server, items, signals = run(main())
    assert items[0] == SpeechStarted(2) and set(sound(items)) == {np.float32(2 / 1024)}
    assert server.responses == 2 and not [signal for signal in signals if isinstance(signal, Failed)]


def test_a_complete_answer_that_was_half_heard_is_cut_on_the_server():
    async def main():
        async with ProtocolServer() as server, talker(server) as one:
            await one.say("Hello")
            await answer(one)
            await soon(lambda: one.state == State.IDLE)
            heard = await one.cancel(520.0)
            await soon(lambda: server.sent("conversation.item.truncate"))
            return server, heard, one.lines()

    server, heard, lines = run(main())
    assert heard.text == "One two three four five six" == lines[-1].text
    assert not server.sent("response.cancel")
    assert server.sent("conversation.item.truncate")[0]["audio_end_ms"] == 520


# Faults


def test_slow_pieces_come_as_they_come():
    async def main():
        async with ProtocolServer(pieces=4, faults=Faults(piece_s=0.1)) as server, talker(server) as one:
            await one.say("Hello")
            loop, times = asyncio.get_running_loop(), []
            async for item in one.speech():
                if isinstance(item, Speech):
                    times.append(loop.time())
                if isinstance(item, SpeechEnded):
                    return times, item

    times, end = run(main())
    assert (np.diff(times) > 0.05).all() and end == SpeechEnded(1, True)


def test_an_answer_that_stalls_is_given_up(monkeypatch):
    monkeypatch.setattr("livetalk.realtime.openai.PATIENCE_S", 0.02)

    async def main():
        async with ProtocolServer(faults=Faults(silent=True)) as server, talker(server, answer_s=0.1) as one:
            await one.say("Hello")
            failed = (await until(one.signals(), Failed))[-1]
            assert one.state == State.IDLE
            server.faults = Faults(piece_s=0.3)
            await one.say("Again")
            items = await answer(one)
            return failed, items

    failed, items = run(main())
    assert failed.retryable and "0.1 s" in failed.message
    assert items[-1] == SpeechEnded(items[0].turn, False)


def test_a_connection_lost_in_mid_sentence():
    """The answer ends, the connection comes back, and the new session is told what was said."""

    async def main():
        faults = Faults(piece_s=0.01, lose_after=3)
        async with ProtocolServer(faults=faults) as server, talker(server) as one:
            await one.say("Hello")
            items = await answer(one)
            failed = (await until(one.signals(), Failed))[-1]
            await one.say("Are you there?")
            items += await answer(one)
            return server, items, failed

    server, items, failed = run(main())
    ends = [item for item in items if isinstance(item, SpeechEnded)]
    assert ends == [SpeechEnded(1, False), SpeechEnded(2, True)] and server.connections == 2
    assert failed.retryable and "trying again" in failed.message
    said = [event["item"]["content"][0]["text"] for event in server.sent("conversation.item.create")]
    assert said == ["Hello", "Hello", "One two three", "Are you there?"]


def test_a_sentence_typed_without_a_connection_is_answered_when_there_is_one():
    async def main():
        server = ProtocolServer(faults=Faults(refuse=503))
        async with server, talker(server) as one:
            await one.say("Hello")
            failed = (await until(one.signals(), Failed))[-1]
            server.faults = Faults()
            return server, failed, await answer(one)

    server, failed, items = run(main())
    assert failed.retryable and "503" in failed.message and items[-1] == SpeechEnded(1, True)
    assert server.kinds().count("response.create") == 1


@pytest.mark.parametrize(("status", "part"), [(401, "set the environment variable SOME_KEY"), (404, "check url")])
def test_a_refusal_is_final(status, part):
    async def main():
        faults = Faults(refuse=status)
        async with ProtocolServer(faults=faults) as server, talker(server, key_variable="SOME_KEY") as one:
            failed = (await until(one.signals(), Failed))[-1]
            await one.say("Hello")
            again = (await until(one.signals(), Failed))[-1]
            assert one.state == State.IDLE
            return server, failed, again

    server, failed, again = run(main())
    assert not failed.retryable and part in failed.message and again == failed and len(server.headers) == 1


def test_a_server_that_never_ends_a_cancelled_response(monkeypatch):
    """The next is asked for after some patience."""
    monkeypatch.setattr("livetalk.realtime.openai.PATIENCE_S", 0.05)

    async def main():
        async with ProtocolServer(faults=Faults(silent=True)) as server, talker(server) as one:
            await one.say("Hello")
            await soon(lambda: server.sent("response.create"))
            await one.cancel()
            server.faults = Faults()
            await one.say("Again")
            return await answer(one)

    assert run(main())[-1] == SpeechEnded(2, True)


def test_attempts_are_bounded_and_wait_longer_each_time():
    async def main():
        one = make_talker(
            TalkerConfig(
                kind="openai-realtime", server=RealtimeServer(url="ws://127.0.0.1:9/", retries=3, backoff_s=0.02)
            )
        )
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        async with one:
            async for signal in one.signals():
                times.append(loop.time())
                if not signal.retryable:
                    return np.diff(times), signal

    waits, last = run(main())
    assert len(waits) == 4 and waits[3] > 0.03 and "is the server running?" in last.message


@pytest.mark.parametrize("generation", ["ga", "beta"])
def test_garbage_between_the_pieces_is_passed_over(generation, caplog):
    async def main():
        faults = Faults(garbage=GARBAGE, odd=True)
        async with ProtocolServer(generation, faults=faults) as server, talker(server) as one:
            await one.say("Hello")
            items = await until(one.speech(), lambda item: isinstance(item, SpeechEnded) and item.turn == 1)
            return server, items

    server, items = run(main())
    assert text_of(items) == WHOLE and server.connections == 1
    assert len(sound(items)) == RATE and set(sound(items)) == {np.float32(1 / 1024)}
    assert "no JSON" in caplog.text and "no base64" in caplog.text


def test_nothing_but_garbage_ends_the_connection():
    async def main():
        faults = Faults(garbage=GARBAGE[:6] * 10)
        async with ProtocolServer(faults=faults) as server, talker(server) as one:
            await one.say("Hello")
            return (await until(one.signals(), Failed))[-1]

    failed = run(main())
    assert failed.retryable and "not the Realtime protocol" in failed.message


def test_a_server_that_does_not_say_response_created():
    async def main():
        async with ProtocolServer(faults=Faults(no_created=True)) as server, talker(server) as one:
            await one.say("Hello")
            return await answer(one)

    items = run(main())
    assert items[-1] == SpeechEnded(1, True) and len(sound(items)) == RATE


@pytest.mark.parametrize("status", ["failed", "incomplete"])
def test_an_answer_that_the_server_does_not_finish(status):
    async def main():
        async with ProtocolServer(faults=Faults(status=status)) as server, talker(server) as one:
            await one.say("Hello")
            return await answer(one), (await until(one.signals(), Failed))[-1]

    items, failed = run(main())
    assert items[-1] == SpeechEnded(1, False) and failed.retryable
    assert ("fell over" in failed.message) == (status == "failed")


@pytest.mark.parametrize(("code", "retryable"), [("rate_limit", True), ("invalid_api_key", False), (None, True)])
def test_an_error_instead_of_an_answer(code, retryable):
    async def main():
        error = {"type": "server_error", "code": code, "message": "sorry,\nnot now"}
        async with ProtocolServer(faults=Faults(error=error)) as server, talker(server) as one:
            await one.say("Hello")
            failed = (await until(one.signals(), Failed))[-1]
            await soon(lambda: one.state == State.IDLE)
            server.faults = Faults()
            await one.say("Again")
            return failed, await answer(one)

    failed, items = run(main())
    assert failed == Failed("the server says: sorry, not now", retryable) and items[-1] == SpeechEnded(2, True)


def test_only_so_much_is_taken_from_a_server_that_nobody_listens_to(monkeypatch):
    monkeypatch.setattr("livetalk.realtime.openai.AHEAD_S", 1.0)

    async def main():
        async with ProtocolServer(pieces=100) as server, talker(server) as one:
            await one.say("Hello")
            await asyncio.sleep(0.2)
            assert 1.0 <= one._speech.waiting < 1.6
            return await answer(one)

    assert len(sound(run(main()))) == 10 * RATE


def test_the_key_is_sent_and_never_logged(monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    logging.getLogger("websockets").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)

    async def main():
        async with ProtocolServer(faults=Faults(refuse=500)) as server:
            async with talker(server, key_variable="SOME_KEY", retries=3) as one:
                await until(one.signals(), Failed)
                server.faults = Faults()
                await one.say("Hello")
                await answer(one)
            return server, one

    server, one = run(main())
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    ours = [record for record in caplog.records if record.name != "websockets.server"]
    assert ours and not any("sk-very-secret" in record.getMessage() for record in ours)
    assert "secret" not in repr(one._config)


def test_without_the_variable_no_key_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def main():
        async with ProtocolServer() as server, talker(server) as one:
            await connected(one)
            return server

    assert "Authorization" not in run(main()).headers[0]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["resp_1", "AAAA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "message"]), inner, max_size=3),
    max_leaves=6,
)
KINDS = [*sorted(wire.AUDIO | wire.TRANSCRIPT), "response.created", "response.done", "error", "session.created"]
KINDS += [f"input_audio_buffer.{name}" for name in ("speech_started", "speech_stopped", "committed")]
KINDS += ["conversation.item.input_audio_transcription.completed"]
FIELDS = ["response", "response_id", "item_id", "delta", "content_index", "transcript", "error", "status"]
EVENTS = st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6))


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_any_values_in_known_events_are_garbage_at_worst(events):
    async def main():
        one = make_talker(TalkerConfig(kind="openai-realtime"))
        for kind, fields in events:
            try:
                await asyncio.wait_for(one._receive({"type": kind} | fields), 1)
            except wire.Garbage:
                pass
            await one.cancel()
        one._watch(None)
        one._close()

    run(main())


def test_a_hundred_talkers_leave_nothing():
    async def main():
        async with ProtocolServer(pieces=2) as server:
            for round in range(25):
                async with talker(server) as one:
                    if round % 2:
                        await one.say("Hello")
                        await until(one.speech(), Speech)
                    await one.hear(np.zeros(999, np.int16), 48_000)
            await soon(lambda: server.open == 0)

    run(main())
