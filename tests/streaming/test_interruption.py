"""Interrupted is as if what was not shown had never been made: afterwards, at once, and in any order of events."""

import random
from threading import Event, Thread

import numpy as np
import pytest

from livetalk.geometry import FPS, SAMPLES_PER_FRAME
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.player import Player
from tests.leaks import nothing_left
from tests.streaming.conftest import (
    DEEP,
    FACE,
    OTHER_FACE,
    Witness,
    frames_of,
    numbered,
    quick,
    same,
    sound_of,
    speech,
    take,
)

FIRST, SECOND = speech(80_000, 1), speech(80_000, 2)


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 10, 15, 20, 21, 30])
def test_what_comes_after_equals_never_having_gone_further(performer, cut):
    """Against a session that was given just the sound that was heard, and never made what was dropped."""
    session, reference = performer.session(FACE, "nods", 7), performer.session(FACE, "nods", 7)
    shown = performer.geometry.block_of(cut)
    for each in (session, reference):
        each.push_audio(FIRST)
        take(each, shown)
    ahead = take(session, 3)
    dropped = session.interrupt(cut / FPS)
    assert dropped.first == cut and dropped.frames == ahead[-1].stop - cut
    assert dropped.unheard == pytest.approx(5 - cut / FPS)
    # Its first blocks heard the same, up to the look-ahead; the rest is forgotten and given again.
    reference.interrupt()
    start = performer.geometry.block_frames(shown).start * SAMPLES_PER_FRAME
    reference.push_audio(FIRST[start : cut * SAMPLES_PER_FRAME])
    for each in (session, reference):
        each.push_audio(SECOND)
    after, wanted = take(session, 4), take(reference, 4)
    assert after[0].first == cut
    shown_already = cut - wanted[0].first
    assert np.array_equal(frames_of(after), frames_of(wanted)[shown_already:])
    assert np.array_equal(sound_of(after), SECOND[: len(sound_of(after))])


def test_an_interruption_at_the_end_of_what_was_heard_is_the_end_of_the_sound(performer):
    """Where no look-ahead reaches over the cut, the reference is simply a session that was given less."""
    session, less = performer.session(FACE, "nods"), performer.session(FACE, "nods")
    session.push_audio(FIRST)
    take(session, 3)
    session.interrupt(16 / FPS)
    less.push_audio(FIRST[:16_000])
    less.flush()
    assert np.array_equal(frames_of(take(session, 3, fill=True)), frames_of(take(less, 4, fill=True))[16:])


def test_speech_may_begin_before_the_end_of_what_an_interruption_kept(make, clock):
    """Cut later than now, so that nothing freezes; what comes then may still replace what is not yet shown."""
    session = make(StreamConfig(lead_ms=3000, reserve_ms=125)).session(FACE, "nods", clock=clock)
    cuts = []
    session.listeners.append(cuts.append)
    session.push_audio(FIRST[:8000])
    session.flush()
    take(session, 3, fill=True)
    clock.seconds = 0.75
    assert session.interrupt(1.125).first == 18
    session.push_audio(SECOND)
    block = session.next_block()
    assert block.first == 14 and cuts == [18, 14] and np.array_equal(block.sound, SECOND[:7000])


def pulled(player: Player, count: int) -> list:
    frames = [player.pull() for _ in range(count)]
    assert None not in frames
    return frames


@pytest.mark.parametrize(("seconds", "cut"), [(0.0, 14), (0.2, 18), (0.3, 19), (9.0, 19)])
def test_pictures_go_on_without_sound_while_others_are_made(make, seconds, cut):
    """As long as a block takes, at most for the reserve: then comes what an interruption without it shows there."""
    config, ends = StreamConfig(lead_ms=3000, reserve_ms=312), []
    for shows_on in (True, False):
        player = Player()
        show = player.put if shows_on else None
        session = make(config).session(FACE, "nods", 3, player.position, player.drop, show)
        session.push_audio(FIRST[:40_000])
        blocks = take(session, 3)
        for block in blocks:
            player.put(block)
        pulled(player, 14)
        dropped = session.interrupt(meanwhile=seconds)
        assert dropped.unheard == pytest.approx(2.5 - 14 / FPS) and session.unheard == 0
        assert dropped.first == (cut if shows_on else 14) and dropped.frames == blocks[-1].stop - dropped.first
        on = pulled(player, dropped.first - 14)
        assert player.pull() is None, "from here on pictures stand still"
        for at, frame in enumerate(on, start=14):
            assert frame.index == at and not frame.sound.any()
            assert np.array_equal(frame.frame, frames_of(blocks)[at])
        player.put(session.next_block())
        ends.append(pulled(player, 21 - dropped.first)[-2:])
        assert player.pull() is None
    for one, other in zip(*ends, strict=True):
        assert one.index == other.index and np.array_equal(one.frame, other.frame) and not one.sound.any()


def test_what_is_shown_on_can_be_interrupted_and_is_the_old_picture_before_another(make):
    player = Player()
    session = make(StreamConfig(lead_ms=3000, reserve_ms=1000)).session(
        FACE, "nods", 3, player.position, player.drop, player.put
    )
    session.push_audio(FIRST)
    blocks = take(session, 3)
    for block in blocks:
        player.put(block)
    pulled(player, 14)
    assert session.interrupt(meanwhile=1.0).first == 30, "over the end of a block"
    pulled(player, 3)
    assert session.interrupt(meanwhile=0.25).first == 21
    assert session.restart(OTHER_FACE, meanwhile=0.125).first == 19
    assert np.array_equal([frame.frame for frame in pulled(player, 2)], frames_of(blocks)[17:19])
    player.put(session.next_block())
    fresh = make().session(OTHER_FACE, "nods", 3)
    assert np.array_equal([frame.frame for frame in pulled(player, 9)], take(fresh, 1, fill=True)[0].frames)


def test_interruptions_can_follow_each_other(performer):
    session, once = performer.session(FACE, "nods"), performer.session(FACE, "nods")
    for each in (session, once):
        each.push_audio(FIRST)
        take(each, 3)
    session.interrupt(25 / FPS)
    take(session, 2, fill=True)
    assert session.interrupt(18 / FPS).first == 18
    assert session.interrupt(14 / FPS).frames == 4
    once.interrupt(14 / FPS)
    assert same(take(session, 2, fill=True), take(once, 2, fill=True))


def test_the_default_is_now(performer, clock):
    session = performer.session(FACE, "nods", clock=clock)
    session.push_audio(FIRST)
    take(session, 3)
    clock.seconds = 1.03
    assert session.interrupt().first == 17
    unpaced = performer.session(FACE, "nods")
    unpaced.push_audio(FIRST)
    assert unpaced.interrupt().first == 0
    take(unpaced, 1, fill=True)
    assert unpaced.interrupt().frames == 0


def test_what_is_unheard_is_what_an_interruption_drops(make, clock):
    session = make(StreamConfig(lead_ms=3000, reserve_ms=125)).session(FACE, "nods", clock=clock)
    session.push_audio(FIRST[:40_000])
    assert session.unheard == 2.5
    session.flush()
    take(session, 2)
    session.push_audio(FIRST[:8000])
    clock.seconds = 1.0
    session.push_audio(FIRST[:2400], rate=24_000)
    assert session.unheard == pytest.approx(2.1) and session.interrupt().unheard == pytest.approx(2.1)
    assert session.unheard == 0


def test_too_long_ago_is_refused_and_changes_nothing(make):
    session, plain = (make(StreamConfig(lead_ms=0, reserve_ms=0)).session(FACE, "nods") for _ in range(2))
    for each in (session, plain):
        each.push_audio(FIRST)
        take(each, 5)
    with pytest.raises(ValueError, match=r"too long ago: no more than 1\.3125 s on"):
        session.interrupt(1.25)
    assert same(take(session, 1), take(plain, 1))


def test_blocks_know_what_is_stale(performer):
    session, heard = performer.session(FACE, "nods"), []
    session.listeners.append(heard.append)
    session.push_audio(FIRST)
    first, second, third = take(session, 3)
    session.interrupt(15 / FPS)
    assert first.fresh() is first and third.fresh() is None and heard == [15]
    assert second.fresh().stop == 15 and len(second.fresh().sound) == 6 * SAMPLES_PER_FRAME
    session.interrupt(12 / FPS)
    assert second.fresh().stop == 12 and heard == [15, 12]


@pytest.mark.parametrize(("before", "cut"), [(0, 0), (2, 16)])
@pytest.mark.parametrize("place", ["denoise", "decode"])
def test_a_block_in_the_making_is_dropped(make, monkeypatch, place, before, cut):
    """Interrupted from another thread: stale at once, gone when the one step under way is done, then as ever. The very
    first block, with nothing before it, too."""
    performer, plain = make(DEEP), make(DEEP).session(FACE, "nods")
    entered, leave, stale = Event(), Event(), Event()
    session = performer.session(FACE, "nods")
    original = getattr(session._take, place)

    def slow(*args):
        if not entered.is_set():
            entered.set()
            assert leave.wait(20)
        return original(*args)

    for each in (session, plain):
        each.push_audio(FIRST)
        take(each, before)
    monkeypatch.setattr(session._take, place, slow)
    session.listeners.append(lambda frame: stale.set())
    made, dropped = [], []
    maker = Thread(target=lambda: made.append(session.next_block()))
    maker.start()
    assert entered.wait(20)
    stopper = Thread(target=lambda: dropped.append(session.interrupt(cut / FPS)))
    stopper.start()
    assert stale.wait(20) and not dropped, "what is stale is known before the step under way is done"
    leave.set()
    for thread in (maker, stopper):
        thread.join(20)
    assert made == [None] and dropped[0].first == cut
    plain.interrupt(cut / FPS)
    assert same(take(session, 2, fill=True), take(plain, 2, fill=True))


# Any order of events

PACES = (
    StreamConfig(lead_ms=400, reserve_ms=0),
    StreamConfig(lead_ms=900, reserve_ms=250),
    StreamConfig(lead_ms=1500, reserve_ms=500, prebuffer_ms=600),
)


class Play:
    """A session at random, with what must hold whatever happens: frames follow each other without gap or repetition,
    each is the one of its take that it should be, pushed sound comes in order and whole except where an interruption
    dropped it, and nothing stale is handed out."""

    def __init__(self, make, seed: int) -> None:
        self.random = random.Random(seed)
        self.player = Player()
        performer = quick(make(PACES[seed % 3], timesteps=(1000.0,)))
        player = self.player
        self.session = performer.session(FACE, "nods", seed, player.position, player.drop, player.put)
        self.pushed = self.unheard = self.interruptions = 0
        self.witness = Witness()
        self.waiting = None
        self.bases = [0]

    def push(self) -> None:
        count = self.random.choice([160, 592, 3000, 12_000])
        self.session.push_audio(numbered(self.pushed + 1, count))
        self.pushed += count

    def flush(self) -> None:
        self.session.flush()

    def denoise(self) -> None:
        if self.waiting is None:
            self.waiting = self.session.denoise_next()

    def decode(self) -> None:
        if self.waiting is not None:
            block = self.session.decode_next(self.waiting)
            self.waiting = None
            if block is not None:
                assert block.fresh() is block
                self.player.put(block)

    def pull(self) -> None:
        for _ in range(self.random.randint(1, 8)):
            if (shown := self.player.pull()) is None:
                break
            base = max(base for base in self.bases if base <= shown.index)
            assert shown.frame[0, 0, 0] == (shown.index - base) % 200
            self.witness.sees(shown)
            assert self.witness.missed <= self.unheard

    def interrupt(self) -> None:
        later = self.random.choice([None, 0, 1, 3, 100])
        until = None if later is None else self.player.position() + later / FPS
        dropped = self.session.interrupt(until, self.random.choice([0, 0.1, 0.3, 9]))
        self.interruptions += 1
        self.unheard += round(dropped.unheard * 16_000)
        assert self.player.position() + self.player.lead <= dropped.first / FPS

    def prompt(self) -> None:
        self.session.set_prompt(self.random.choice(["nods", "smiles", "looks left"]))

    def restart(self) -> None:
        dropped = self.session.restart(OTHER_FACE, meanwhile=self.random.choice([0, 0.2]))
        self.interruptions += 1
        self.unheard += round(dropped.unheard * 16_000)
        self.bases = [base for base in self.bases if base < dropped.first] + [dropped.first]

    def run(self, steps: int) -> None:
        often = [self.push] * 4 + [self.denoise] * 3 + [self.decode] * 3 + [self.pull] * 4
        rare = [self.flush, self.interrupt, self.prompt] + [self.restart] * self.random.randint(0, 1)
        for act in self.random.choices(often + rare, k=steps):
            act()
        for _ in range(100):
            self.flush()
            self.denoise()
            self.decode()
            self.pull()
            if not self.session.backlog and self.waiting is None and not self.player.lead:
                break
        assert self.witness.heard + self.unheard == self.pushed, "all sound was shown or said to be unheard"


def played(make, seeds: range, steps: int) -> int:
    """How often they were interrupted. Once they are over nothing of them is left."""

    def play(seed: int) -> int:
        one = Play(make, seed)
        one.run(steps)
        return one.interruptions

    # What is made once and kept, whoever plays first, is no leak.
    count = play(seeds[0])
    with nothing_left():
        count += sum(play(seed) for seed in seeds[1:])
    return count


@pytest.mark.parametrize("seed", [0, 100])
def test_any_order_of_events(make, seed):
    """More than 600 interruptions in all, a third of them new pictures."""
    assert played(make, range(seed, seed + 100), 40) >= 250


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2000, 100))
def test_any_order_of_more_events(make, seed):
    """More than 10,000 in all."""
    assert played(make, range(seed, seed + 100), 120) >= 300
