import asyncio
import threading
import time

import numpy as np
import pytest

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime import offline
from livetalk.realtime.offline import DEAF, OfflineTalker
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import (
    MOST_LETTERS,
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
from tests.realtime.conftest import Counter, ToneVoice, answer, reading, run, sound, until


def talker(thinker=None, voice=None, **settings) -> OfflineTalker:
    return OfflineTalker(TalkerConfig(**settings), thinker or Counter(), voice or ToneVoice())


def test_an_answer_from_beginning_to_end():
    async def main():
        async with talker() as one, reading(one.signals()) as signals:
            turn = await one.say("  Hello\n you ")
            items = await answer(one)
            await asyncio.sleep(0.01)
            return turn, items, signals, one.lines()

    turn, items, signals, lines = run(main())
    said = "Turn 1 is being spoken. " * 3
    assert turn == 1 and items[0] == SpeechStarted(1) and items[-1] == SpeechEnded(1, True)
    assert "".join(item.text for item in items if isinstance(item, Caption)) == said
    assert len(sound(items)) == 3 * 23 * SAMPLE_RATE // 20 and set(sound(items)) == {np.float32(1 / 1024)}
    assert lines == [Line(True, "Hello you"), Line(False, said.strip())]
    states = [State.THINKING, State.SPEAKING, State.IDLE]
    assert [signal.state for signal in signals if isinstance(signal, StateChanged)] == states
    assert UserCaption(1, "Hello you") in signals


def test_captions_say_when_they_are_spoken():
    """Each comes before its sound, in order, and sentences follow each other without a gap."""

    async def main():
        async with talker() as one:
            await one.say("Hello")
            return await answer(one)

    items = run(main())
    times = [item.at_ms for item in items if isinstance(item, Caption)]
    assert times == sorted(times) and times[5] == pytest.approx(23 * 50)
    given = 0.0
    for item in items:
        if isinstance(item, Speech):
            given += item.seconds * 1000
        elif isinstance(item, Caption):
            assert item.at_ms >= given - 1e-6


def test_the_first_sentence_is_spoken_while_the_rest_is_thought():
    async def main():
        async with talker(Counter(5, piece_s=0.03)) as one:
            begun = time.monotonic()
            await one.say("Hello")
            items = await until(one.speech(), Speech)
            first = time.monotonic() - begun
            await answer(one)
            return items, first, time.monotonic() - begun

    _, first, whole = run(main())
    assert first < 0.3 < 0.55 < whole


def test_only_so_much_is_made_ahead_of_the_reader():
    thinker = Counter(100)

    async def main():
        async with talker(thinker, ahead_s=2.0) as one:
            await one.say("Hello")
            await asyncio.sleep(0.2)
            made = one._past[-1].made_ms
            assert 2000 <= made <= 3500
            items = [await anext(one.speech()) for _ in range(40)]
            await asyncio.sleep(0.1)
            assert one._past[-1].made_ms > made
            return items

    run(main())
    assert thinker.open == 0


def test_cancelled_the_memory_is_cut_to_what_was_heard():
    async def main():
        async with talker() as one:
            await one.say("Hello")
            await answer(one)
            heard = await one.cancel(23 * 50 + 320)
            assert await one.cancel() is None
            return heard, one.lines()

    heard, lines = run(main())
    assert heard.text == "Turn 1 is being spoken. Turn 1" and heard.heard_ms == 1470
    assert lines[-1] == Line(False, heard.text)


def test_cancelled_at_once_nothing_of_it_comes():
    thinker = Counter(50)

    async def main():
        async with talker(thinker) as one:
            await one.say("Hello")
            assert (await one.cancel()).text == ""
            assert one.state == State.IDLE
            await one.say("Hello again")
            return await answer(one), one.lines()

    items, lines = run(main())
    assert {item.turn for item in items} == {2} and set(sound(items)) == {np.float32(2 / 1024)}
    assert [line.text for line in lines[:2]] == ["Hello", "Hello again"] and thinker.open == 0


def test_saying_something_else_cancels():
    async def main():
        async with talker(Counter(50), ahead_s=3.0) as one:
            await one.say("Hello")
            items = await until(one.speech(), Speech)
            await one.say("Stop")
            items += await until(one.speech(), lambda item: item == SpeechEnded(2, True))
            return items, one.lines()

    items, lines = run(main())
    kinds = [item for item in items if isinstance(item, SpeechStarted | SpeechEnded)]
    assert kinds == [SpeechStarted(1), SpeechEnded(1, False), SpeechStarted(2), SpeechEnded(2, True)]
    assert lines[1].text == "Turn 1 is", "half a second was taken"


def test_an_older_turn_can_still_be_cut():
    async def main():
        async with talker() as one:
            for text in ("one", "two"):
                await one.say(text)
                await answer(one)
            first = await one.cancel(310.0, turn=1)
            return first, await one.cancel(turn=7), one.lines()

    first, none, lines = run(main())
    assert first is None and none is None, "say has cut it already, to what was taken: all of it"
    assert lines[1].text.endswith("spoken.")


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused_and_change_nothing(wrong):
    async def main():
        async with talker() as one:
            await one.say("Hello")
            with pytest.raises(ValueError, match="heard_ms"):
                await one.cancel(wrong)
            return await answer(one)

    assert run(main())[-1] == SpeechEnded(1, True)


@pytest.mark.parametrize(("text", "why"), [(" \n", "empty"), ("x" * (MOST_LETTERS + 1), "2001 letters")])
def test_impossible_texts(text, why):
    async def main():
        async with talker() as one:
            with pytest.raises(ValueError, match=why):
                await one.say(text)
            assert one.turn == 0 and one.lines() == []

    run(main())


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def think(self, lines):
        yield "Turn 1 is all right. "
        raise self.error

    def say(self, sentence):
        raise self.error


@pytest.mark.parametrize("part", ["thinker", "voice"])
@pytest.mark.parametrize("error", [ValueError("no such word"), RuntimeError("out of memory")])
def test_a_failure_ends_the_answer_and_not_the_talker(part, error, caplog):
    async def main():
        broken = Broken(error)
        async with talker(**{part: broken}) as one:
            await one.say("Hello")
            failed = (await until(one.signals(), Failed))[-1]
            assert failed == Failed(f"this answer failed: {error}", True) and one.state == State.IDLE
            items = await answer(one) if part == "thinker" else []
            setattr(one, f"_{part}", Counter() if part == "thinker" else ToneVoice())
            await one.say("Again")
            return items, await answer(one)

    items, after = run(main())
    assert after[-1] == SpeechEnded(2, True)
    if part == "thinker":
        assert items[-1] == SpeechEnded(1, False) and len(sound(items))
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)


def test_a_slow_thinker_does_not_hold_up_a_cancel_or_the_end():
    gate = threading.Event()

    class Slow:
        def think(self, lines):
            gate.wait(5)
            yield "Turn 1 came late. "

    async def main():
        one = talker(Slow())
        await one.__aenter__()
        await one.say("Hello")
        await asyncio.sleep(0.02)
        begun = time.monotonic()
        await one.cancel()
        assert time.monotonic() - begun < 0.1
        asyncio.get_running_loop().call_later(0.05, gate.set)
        await one.__aexit__(None, None, None)

    run(main())


def test_closed_while_speaking():
    async def main():
        async with talker(Counter(50)) as one:
            await one.say("Hello")
            await until(one.speech(), Speech)
        assert [item async for item in one.speech()] == [] and [item async for item in one.signals()] == []

    run(main())


# A voice, which it does not understand


def test_a_voice_is_noticed_and_told_that_it_is_not_understood(voice, monkeypatch):
    class Plain(ToneVoice):
        def say(self, sentence):
            return super().say(f"Turn 1 {sentence}")

    async def main():
        async with talker(voice=Plain()) as one, reading(one.signals()) as signals:
            for at in range(0, len(voice), 480):
                await one.hear(voice[at : at + 480], SAMPLE_RATE)
            items = await answer(one)
            # Not again so soon, and not where there is an answer already.
            await one.hear(voice, SAMPLE_RATE)
            await asyncio.sleep(0.05)
            assert one.turn == 1
            monkeypatch.setattr(offline, "DEAF_AGAIN_S", 0.0)
            await one.hear(voice, SAMPLE_RATE)
            items += await answer(one)
            return items, signals, one.lines()

    items, signals, lines = run(main())
    assert [signal for signal in signals if isinstance(signal, UserSpeech)] == [UserSpeech(True), UserSpeech(False)] * 3
    assert StateChanged(State.LISTENING) in signals
    assert lines[0].text.endswith(DEAF) and len(lines) == 2 and len(sound(items))


def test_a_voice_while_it_speaks_is_a_signal_and_nothing_more(voice):
    async def main():
        async with talker(Counter(50)) as one:
            await one.say("Hello")
            await until(one.speech(), Speech)
            await one.hear(voice, SAMPLE_RATE)
            assert one.turn == 1 and one.state == State.SPEAKING
            return await until(one.signals(), lambda signal: signal == UserSpeech(False))

    assert UserSpeech(True) in run(main())


def test_push_to_talk(voice):
    async def main():
        async with talker() as one, reading(one.signals()) as signals:
            await one.release()
            await one.hear(voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)
            await one.release()
            await asyncio.sleep(0.01)
            return signals

    assert [one for one in run(main()) if isinstance(one, UserSpeech)] == [UserSpeech(True), UserSpeech(False)]


# The real thing


def test_the_default_talker_answers_within_moments():
    pytest.importorskip("espeakng_loader")

    async def main():
        async with make_talker() as one:
            begun = time.monotonic()
            await one.say("Hello!")
            items = await until(one.speech(), Speech)
            first = time.monotonic() - begun
            items += await answer(one)
            return items, first

    items, first = run(main())
    assert first < 0.5 and items[-1] == SpeechEnded(1, True)
    assert np.abs(sound(items)).max() > 0.1 and any(isinstance(item, Caption) for item in items)
