"""A session in threads: the same blocks, nothing stale after an interruption, and nothing left behind."""

import asyncio
import threading
from random import Random
from threading import Condition, Thread

import numpy as np
import pytest

from livetalk.geometry import FPS
from livetalk.streaming.live import UNTAKEN, Live
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.player import Player
from tests.leaks import files, held
from tests.streaming.conftest import DEEP, FACE, OTHER_FACE, Witness, numbered, quick, same, sound_of, speech, take

BOTH = pytest.mark.parametrize("overlap", [False, True])


@pytest.fixture(autouse=True)
def no_thread_and_no_file_is_left():
    before = threading.active_count(), files()
    yield
    assert (threading.active_count(), files()) == before


@pytest.fixture
def alone(performer):
    """What the session renders of five seconds, without threads."""
    session = performer.session(FACE, "nods", 1)
    session.push_audio(speech(80_000))
    session.flush()
    return list(session)


@BOTH
def test_threads_render_what_the_session_does(performer, alone, overlap):
    with Live(performer.session(FACE, "nods", 1), overlap) as live:
        for at in range(0, 80_000, 16_000):
            live.push_audio(speech(80_000)[at : at + 16_000])
        live.finish()
        assert same(list(live), alone)
    assert list(live) == []


@BOTH
def test_asynchronous_iteration(performer, alone, overlap):
    async def talk(live):
        for at in range(0, 80_000, 16_000):
            await live.push(speech(80_000)[at : at + 16_000])
        live.finish()

    async def watch(live):
        return [block async for block in live]

    async def both():
        with Live(performer.session(FACE, "nods", 1), overlap) as live:
            return (await asyncio.gather(watch(live), talk(live)))[0]

    assert same(asyncio.run(both()), alone)


def test_a_cancelled_wait_leaves_nothing(performer):
    async def cancelled():
        with performer.live(FACE, "nods") as live:
            waiting = asyncio.ensure_future(anext(live))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not live._wakers
            live.push_audio(speech(16_000))
            return await anext(live)

    assert asyncio.run(cancelled()).first == 0


def interrupted(performer, overlap: bool, turns: int) -> None:
    """At any moment: what comes next begins where the stream was cut and says what was pushed afterwards, and no more
    is held than before."""
    with Live(performer.session(FACE, "nods"), overlap) as live:
        pushed, cut, memory = 0, 0, []
        for turn in range(turns):
            live.push_audio(numbered(pushed + 1, 60_000))
            blocks = [next(live) for _ in range(turn % 3 + 1)]
            assert blocks[0].first == cut and blocks[0].sound[0] == np.float32((pushed + 1) / 2**23)
            pushed += 60_000
            cut = live.interrupt(max(cut, blocks[-1].stop - turn % 13) / FPS).first
            assert all(block.fresh() is None or block.fresh().stop <= cut for block in blocks)
            memory.append(held(live.session, {id(performer)}))
        half = turns // 2
        # What is held at a turn depends on how far the threads are; what leaked would grow with every turn.
        assert max(memory[half:]) <= 1.1 * max(memory[:half])


@BOTH
def test_after_an_interruption_nothing_stale_comes(make, overlap):
    interrupted(quick(make(DEEP, timesteps=(1000.0,))), overlap, 100)


def interrupted_from_aside(performer, overlap: bool, turns: int, seed: int) -> None:
    """One thread shows whatever comes, another talks and interrupts whenever it likes: what is shown is in order, and
    every sample of sound was shown or said to be unheard."""
    player, witness, dice = Player(), Witness(), Random(seed)
    shown = Condition()
    session = performer.session(FACE, "nods", 0, player.position, player.drop, player.put)

    def watch():
        for block in live:
            player.put(block)
            while (frame := player.pull()) is not None:
                with shown:
                    witness.sees(frame)
                    shown.notify_all()

    with Live(session, overlap) as live:
        watcher = Thread(target=watch)
        watcher.start()
        pushed = unheard = 0
        for _ in range(turns):
            count = dice.choice([500, 5000, 20_000])
            live.push_audio(numbered(pushed + 1, count))
            pushed += count
            with shown:
                until = witness.frames + dice.randint(0, 20)
                assert shown.wait_for(lambda: witness.frames >= until, 20)  # noqa: B023
            if dice.random() < 0.7:
                until = dice.choice([None, player.position(), player.position() + 0.1])
                unheard += round(live.interrupt(until).unheard * 16_000)
        live.finish()
        watcher.join(20)
    assert not watcher.is_alive() and witness.heard + unheard == pushed


@BOTH
def test_interruptions_from_another_thread(make, overlap):
    pace = StreamConfig(lead_ms=900, reserve_ms=300)
    interrupted_from_aside(quick(make(pace, timesteps=(1000.0,))), overlap, 60, 0)


@pytest.mark.slow
@BOTH
def test_a_thousand_interruptions(make, overlap):
    interrupted(quick(make(DEEP, timesteps=(1000.0,))), overlap, 1000)
    interrupted_from_aside(quick(make(StreamConfig(), timesteps=(1000.0,))), overlap, 1000, 1)


@BOTH
def test_at_the_pace_of_a_player(make, overlap):
    """Silence, an answer, an interruption and another picture, shown frame by frame as they come."""
    player = Player()
    session = make(StreamConfig(lead_ms=900, reserve_ms=400)).session(
        FACE, "nods", clock=player.position, hold=player.drop, show=player.put
    )
    with Live(session, overlap) as live:
        shown = []

        def watch(frames: int) -> None:
            while len(shown) < frames:
                if (frame := player.pull()) is None:
                    player.put(next(live))
                else:
                    shown.append(frame)

        watch(40)
        live.push_audio(numbered(1, 40_000))
        live.flush()
        watch(60)
        dropped = live.interrupt()
        watch(80)
        live.set_prompt("smiles")
        live.restart(OTHER_FACE)
        watch(100)
    assert [frame.index for frame in shown] == list(range(100))
    sound = np.concatenate([frame.sound for frame in shown])
    heard = np.flatnonzero(sound)
    assert 40_000 <= heard[0] <= 60_000 and np.array_equal(sound[heard], numbered(1, len(heard)))
    assert len(heard) / 16_000 + dropped.unheard == pytest.approx(2.5)


@BOTH
def test_only_so_much_is_rendered_ahead_of_who_takes(performer, overlap):
    with Live(performer.session(FACE, "nods"), overlap) as live:
        live.push_audio(speech(30 * 16_000))
        for taken in range(1, 8):
            assert next(live).silent is False
            # Those waiting, one in each thread, and one between them.
            assert live.session.backlog >= 30 - (12 * (taken + UNTAKEN + 3)) / FPS


def test_a_push_can_wait_for_room(make):
    with make(StreamConfig(backlog_s=2)).live(FACE, "nods") as live:
        talker = Thread(target=lambda: [live.push_audio(numbered(1 + n * 8000, 8000), wait=True) for n in range(12)])
        talker.start()
        blocks = [next(live) for _ in range(8)]
        talker.join(20)
        assert not talker.is_alive() and np.array_equal(sound_of(blocks), numbered(1, len(sound_of(blocks))))
        with pytest.raises(ValueError, match="backlog of"):
            live.push_audio(speech(40_000), wait=True)


def test_closing_ends_the_iteration_of_others(performer):
    live = performer.live(FACE, "nods")
    watcher = Thread(target=lambda: list(live))
    watcher.start()
    live.close()
    watcher.join(20)
    assert not watcher.is_alive()
    live.close()
    for act in (lambda: live.push_audio(speech(9)), live.interrupt, live.flush):
        with pytest.raises(ValueError, match="closed"):
            act()


def test_finishing_without_sound_ends_at_once(performer):
    with performer.live(FACE, "nods") as live:
        live.finish()
        assert list(live) == []


@BOTH
@pytest.mark.parametrize("half", ["denoise", "decode"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_reaches_whoever_waits(make, monkeypatch, overlap, half):
    session = make(DEEP).session(FACE, "nods")

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(session._take, half, fail)
    with Live(session, overlap) as live:
        live.push_audio(speech(16_000))
        with pytest.raises(RuntimeError, match="out of memory"):
            next(live)


def test_two_streams_in_threads_are_as_without(performer, alone):
    other = performer.session(OTHER_FACE, "nods", 2)
    other.push_audio(speech(40_000, 5))
    wanted = take(other, 3)
    with performer.live(FACE, "nods", 1) as first, performer.live(OTHER_FACE, "nods", 2) as second:
        first.push_audio(speech(80_000))
        second.push_audio(speech(40_000, 5))
        blocks = [(next(first), next(second)) for _ in range(3)]
    assert same([one for one, _ in blocks], alone[:3]) and same([two for _, two in blocks], wanted)
