"""A stream is a function of its sound: however it comes, over silence or not, with other sessions beside it or not."""

import numpy as np
import pytest
import soxr
import torch

from livetalk.config import CausalSampling
from livetalk.families import CausalSampler, performer_of
from livetalk.geometry import FPS, SAMPLES_PER_FRAME
from livetalk.pipeline import LiveTalkPipeline
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from livetalk.streaming.player import Player
from livetalk.streaming.session import Session
from tests.streaming.conftest import DEEP, FACE, OTHER_FACE, TINY, frames_of, numbered, same, sound_of, speech, take

SECONDS = 16_000


def streamed(session: Session, pcm: np.ndarray, size: int, rate: int = 16_000):
    """Blocks of sound pushed in pieces, each taken as soon as it is there, and their latents."""
    blocks, latents = [], []

    def take_all():
        while (rendering := session.denoise_next()) is not None:
            latents.append(rendering.latents)
            blocks.append(session.decode_next(rendering))

    for at in range(0, len(pcm), size):
        session.push_audio(pcm[at : at + size], rate)
        take_all()
    session.flush()
    take_all()
    return blocks, torch.cat(latents, dim=2)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_pieces_of_any_size_and_rate_give_the_same_bit_for_bit(performer, rate):
    pcm = speech(2 * rate + 77)
    whole, latents = streamed(performer.session(FACE, "nods"), pcm, len(pcm), rate)
    for size in (rate // 100, 37 * rate // 1000, rate):
        blocks, again = streamed(performer.session(FACE, "nods"), pcm, size, rate)
        assert same(blocks, whole) and torch.equal(again, latents)
    wanted = pcm if rate == 16_000 else soxr.resample(pcm, rate, 16_000)
    sound = sound_of(whole)
    assert np.array_equal(sound[: len(wanted)], wanted) and not sound[len(wanted) :].any()


def test_a_stream_is_what_the_offline_pipeline_renders(tiny_parts):
    parts = tiny_parts
    sampler = CausalSampler(parts["generator"], TINY, CausalSampling(timesteps=(1000.0, 937.5, 625.0)))
    pipe = LiveTalkPipeline(parts["vae"], parts["audio"], parts["text"], sampler, TINY)
    pcm = speech(40_100)
    video = pipe(FACE, pcm, "nods  while speaking", seed=5)
    blocks, _ = streamed(performer_of(pipe).session(FACE, "nods while speaking", seed=5), pcm, 3000)
    frames, sound = frames_of(blocks), sound_of(blocks)
    assert len(video.frames) <= len(frames) < len(video.frames) + 12
    assert np.abs(frames[: len(video.frames)].astype(int) - video.frames).max() <= 1
    assert np.array_equal(sound[: len(video.audio)], video.audio)


def test_a_teacher_cannot_perform(tiny_parts):
    pipe = LiveTalkPipeline(tiny_parts["vae"], tiny_parts["audio"], tiny_parts["text"], None, TINY)
    with pytest.raises(ValueError, match="sampler=causal"):
        pipe.performer()


def test_blocks_tell_the_time(performer):
    session = performer.session(FACE, "nods")
    session.push_audio(numbered(1, 36_000))
    blocks = list(session)
    assert [block.first for block in blocks] == [0, 9, 21] and [block.stop for block in blocks] == [9, 21, 33]
    assert blocks[1].start == 9 / FPS and not blocks[0].silent
    assert np.array_equal(sound_of(blocks), numbered(1, 33 * SAMPLES_PER_FRAME))
    assert blocks[0].frames.dtype == np.uint8 and blocks[0].frames.shape == (9, 16, 16, 3)


def test_later_sound_does_not_change_earlier_blocks(performer):
    first, second = performer.session(FACE, "nods"), performer.session(FACE, "nods")
    first.push_audio(speech(2 * SECONDS))
    second.push_audio(speech(2 * SECONDS))
    second.push_audio(speech(2 * SECONDS, seed=1))
    before, after = list(first), list(second)
    assert len(before) == 2 < len(after) and same(before, after[:2])


def test_sessions_beside_each_other_are_sessions_alone(performer):
    def begun(seed, image):
        session = performer.session(image, "nods", seed)
        session.push_audio(speech(4 * SECONDS, seed))
        return session

    alone = [take(begun(1, FACE), 4), take(begun(2, OTHER_FACE), 4)]
    sessions = [begun(1, FACE), begun(2, OTHER_FACE)]
    together = [[], []]
    for which in (0, 1, 1, 0, 0, 0, 1, 1):
        together[which] += take(sessions[which], 1)
    assert all(same(*pair) for pair in zip(alone, together, strict=True)) and not same(*alone)


# Silence


def test_without_sound_there_is_silence_that_moves(make, clock):
    """At the playback rate: a block when the reserve is reached, none before."""
    session = make(StreamConfig(lead_ms=400, reserve_ms=200)).session(FACE, "nods", clock=clock)
    blocks, times = [], []
    for tick in range(64):
        clock.seconds = tick / FPS
        while (block := session.next_block()) is not None:
            blocks.append(block)
            times.append(tick)
        assert blocks[-1].stop > tick, "the player ran dry"
    assert all(block.silent and not block.sound.any() for block in blocks)
    assert times == [0, 6, 18, 30, 42, 54]
    frames = frames_of(blocks)
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()


def test_silence_that_was_pushed_and_silence_that_was_filled_look_the_same(performer, clock):
    filled = take(performer.session(FACE, "nods", clock=clock), 4, fill=True)
    pushed = performer.session(FACE, "nods")
    pushed.push_audio(np.zeros(4 * SECONDS, np.float32))
    assert np.array_equal(frames_of(filled), frames_of(take(pushed, 4)))
    assert not pushed.next_block().silent


def test_speech_takes_back_the_silence_that_was_not_shown(make, clock):
    """An answer begins where the reserve ends, in mid-block, and shows what it would if silence had been pushed."""
    player = Player()
    session = make(StreamConfig(lead_ms=3000, reserve_ms=250)).session(FACE, "nods", clock=clock, hold=player.drop)
    for block in take(session, 3, fill=True):
        player.put(block)
    shown = [player.pull() for _ in range(12)]
    clock.seconds = player.position()
    session.push_audio(numbered(1, 2 * SECONDS))
    block = session.next_block()
    assert block.first == 16 and player.lead == 4 / FPS, "frames 12 .. 15 are shown before anything else can be there"
    player.put(block)
    player.put(session.next_block())
    while (frame := player.pull()) is not None:
        shown.append(frame)
    assert [frame.index for frame in shown] == list(range(33))
    sound = np.concatenate([frame.sound for frame in shown])
    assert not sound[:16_000].any() and np.array_equal(sound[16_000:], numbered(1, 17_000))

    reference = make(DEEP).session(FACE, "nods")
    reference.push_audio(np.concatenate([np.zeros(16_000, np.float32), numbered(1, 2 * SECONDS)]))
    frames = frames_of(take(reference, 3))
    assert np.array_equal(np.stack([frame.frame for frame in shown[16:]]), frames[16:])


def test_a_talker_that_is_too_slow_is_filled_up_and_repaired(make, clock):
    """Silence after the sound so far is shown if it must be; what is not yet shown is rendered again in one piece."""
    session = make(StreamConfig(lead_ms=1500, reserve_ms=500)).session(FACE, "nods", clock=clock)
    session.push_audio(numbered(1, 12_000))
    assert session.next_block().stop == 9 and session.next_block() is None
    clock.seconds = 1 / FPS
    assert session.next_block().stop == 21, "the reserve is reached, so the rest is silence"
    session.push_audio(numbered(12_001, 10_000))
    assert session.next_block() is None, "less than the block needs is there: what is rendered stays"
    session.push_audio(numbered(22_001, 2000))
    again = session.next_block()
    assert again.first == 9 and np.array_equal(again.sound, numbered(9001, 12_000))


def test_speech_that_never_fills_a_block_begins_after_a_while(make, clock):
    session = make(StreamConfig(lead_ms=600, reserve_ms=300)).session(FACE, "nods", clock=clock)
    take(session, 1)
    session.push_audio(numbered(1, 2000))
    heard = []
    for tick in range(32):
        clock.seconds = tick / FPS
        while (block := session.next_block()) is not None:
            heard.append(block)
    spoken = [block for block in heard if not block.silent]
    assert len(spoken) == 1 and spoken[0].start < 1.2
    assert np.array_equal(spoken[0].sound[spoken[0].sound > 0], numbered(1, 2000))


def test_a_prebuffer_waits_for_enough_sound(make, clock):
    """A microphone's sound comes at the speed at which it is shown: begun too early it would have gaps."""
    config = StreamConfig(lead_ms=600, reserve_ms=300, prebuffer_ms=1000)
    player = Player()
    session = make(config).session(FACE, "nods", clock=player.position, hold=player.drop)
    sound = []
    for tick in range(96):
        if 16 <= tick < 48:
            session.push_audio(numbered(1 + (tick - 16) * 1000, 1000))
        while (block := session.next_block()) is not None:
            player.put(block)
        sound.append(player.pull().sound)
    sound = np.concatenate(sound)
    start = int(np.flatnonzero(sound)[0])
    assert 16_000 + 15_000 <= start <= 16_000 + 22_000
    assert np.array_equal(sound[start : start + 32_000], numbered(1, 32_000)), "no gap"


def test_the_lead_holds_the_rendering_back(make, clock):
    session = make(StreamConfig(lead_ms=500, reserve_ms=100)).session(FACE, "nods", clock=clock)
    session.push_audio(speech(10 * SECONDS))
    assert [block.first for block in session] == [0]
    clock.seconds = 0.0625
    assert [block.first for block in session] == [9]
    clock.seconds = 2.0
    assert [block.first for block in session] == [21, 33]


# Changes in mid-stream


def test_a_new_prompt_counts_from_the_next_block(performer):
    session, plain = performer.session(FACE, "nods"), performer.session(FACE, "nods")
    other = performer.session(FACE, "smiles at the end")
    for each in (session, plain, other):
        each.push_audio(speech(5 * SECONDS))
    assert same(take(session, 2), take(plain, 2))
    assert session.set_prompt("smiles at the end") == 21 / FPS
    after, without = take(session, 2), take(plain, 2)
    assert not np.array_equal(frames_of(after), frames_of(without))
    assert not np.array_equal(frames_of(after), frames_of(take(other, 4)[2:]))
    session.interrupt(30 / FPS)
    session.push_audio(speech(5 * SECONDS)[30_000:])
    again = take(session, 2)
    assert np.array_equal(frames_of(again)[:15], frames_of(after)[9:]), "rendered again, a block keeps its prompt"
    with pytest.raises(ValueError, match="prompt is empty"):
        session.set_prompt(" ")


def test_another_picture_is_a_clean_restart(performer):
    session, fresh = performer.session(FACE, "nods", 3), performer.session(OTHER_FACE, "smiles", 4)
    session.push_audio(speech(5 * SECONDS))
    take(session, 3)
    dropped = session.restart(OTHER_FACE, "smiles", 4, played_until=1.0)
    assert dropped.first == 16 and dropped.frames == 17 and dropped.unheard == pytest.approx(4.0)
    for each in (session, fresh):
        each.push_audio(speech(4 * SECONDS, 1))
    first, second = take(session, 3), take(fresh, 3)
    assert [block.first for block in first] == [16, 25, 37]
    assert np.array_equal(frames_of(first), frames_of(second)) and np.array_equal(sound_of(first), sound_of(second))
    with pytest.raises(ValueError, match="too long ago"):
        session.interrupt(0.5)
    kept = performer.session(FACE, "nods", 3)
    kept.restart(FACE)
    assert np.array_equal(take(kept, 1, True)[0].frames, take(performer.session(FACE, "nods", 3), 1, True)[0].frames)


def test_a_restart_may_be_ahead_of_the_player(make, clock):
    """What the player still has of the picture before is shown; an interruption leaves it alone."""
    session = make(StreamConfig(lead_ms=3000, reserve_ms=100)).session(FACE, "nods", clock=clock)
    take(session, 3, fill=True)
    assert session.restart(OTHER_FACE, played_until=1.0).first == 16
    session.push_audio(numbered(1, 40_000))
    assert session.interrupt().first == 16
    session.push_audio(numbered(1, 40_000))
    block = session.next_block()
    assert block.first == 16 and np.array_equal(block.sound, numbered(1, 9000))


def test_positions_that_leave_the_trained_range_are_warned_of(tiny_parts, caplog):
    parts = tiny_parts
    performer = Performer(parts["generator"], parts["vae"], parts["audio"], parts["text"], TINY, (1000.0,), "absolute")
    assert performer.cache.positions == "absolute" and "choose relative" in caplog.text


# Limits and mistakes


def test_a_backlog_is_told_and_limited(make):
    session = make(StreamConfig(backlog_s=2)).session(FACE, "nods")
    assert session.push_audio(speech(SECONDS)) == 1.0
    assert session.push_audio(speech(8000), 8000) == pytest.approx(2.0, abs=0.1)
    with pytest.raises(ValueError, match=r"backlog of 2\.\d s is over 2 s"):
        session.push_audio(speech(SECONDS))
    take(session, 1)
    assert session.backlog == pytest.approx(2 - 9 / FPS, abs=0.1)
    session.push_audio(speech(8000))


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda p: p.session(FACE, " "), "prompt is empty"),
        (lambda p: p.session(FACE, "nods", -1), "seed -1"),
        (lambda p: p.session("nowhere.png", "nods"), "nowhere.png does not exist"),
        (lambda p: p.session(FACE, "nods").push_audio(np.full(9, np.nan)), "not finite"),
        (lambda p: p.session(FACE, "nods").push_audio(np.zeros(9), 17), "rate 17"),
        (lambda p: p.session(FACE, "nods").interrupt(float("nan")), "played_until nan"),
        (lambda p: p.session(FACE, "nods").interrupt(-1), "played_until -1"),
    ],
)
def test_mistakes_are_said_in_one_line(performer, act, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        act(performer)
    assert "\n" not in str(caught.value)


def test_no_sound_at_all_is_no_sound(performer):
    session = performer.session(FACE, "nods")
    assert session.push_audio(np.zeros(0)) == 0 and session.next_block() is None
    session.flush()
    assert session.next_block() is None
