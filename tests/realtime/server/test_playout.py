"""The timeline of what is sent: picture and sound in step whatever comes late, nothing that clicks, nothing that piles
up."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from livetalk.geometry import FPS, SAMPLES_PER_FRAME
from livetalk.realtime.server import playout as module
from livetalk.realtime.server.playout import (
    CHUNK,
    EARLY,
    FACTOR,
    MOST_FRAMES,
    TICK_SAMPLES,
    Overrun,
    Playout,
    Upsampler,
)
from livetalk.streaming.player import Player
from livetalk.streaming.session import Block
from livetalk.streaming.take import Ticket

STILL = np.full((2, 2, 3), 255, np.uint8)


def block(first: int, count: int, sound: np.ndarray | None = None) -> Block:
    """Frame j of the stream is of colour j."""
    frames = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    sound = np.zeros(count * SAMPLES_PER_FRAME, np.float32) if sound is None else sound
    return Block(frames, sound.astype(np.float32), first, False, Ticket())


def ticks(playout: Playout, count: int) -> None:
    """Runs that many ticks without waiting."""
    playout._origin = 0.0
    for _ in range(count):
        playout._tick()


def taken(playout: Playout, chunks: int) -> np.ndarray:
    async def take():
        playout._origin = -1e6
        return np.concatenate([(await playout.chunk())[1] for _ in range(chunks)])

    # As they are heard, EARLY samples after they were sent.
    return np.concatenate([np.zeros(EARLY, np.int16), asyncio.run(take())])


def test_resampling_in_pieces_is_resampling_at_once():
    sound = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    whole = Upsampler()(sound)
    upsampler, cuts = Upsampler(), [0, 1, 7, 1000, 1001, 3500, 5000]
    pieces = np.concatenate([upsampler(sound[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)])
    assert np.array_equal(whole, pieces) and len(whole) == FACTOR * len(sound)


@pytest.mark.parametrize("pitch", [100, 1000, 5000, 6500])
def test_resampling_keeps_tones_and_adds_none(pitch):
    at = np.arange(16_000)
    tone = np.sin(2 * np.pi * pitch * at / 16_000).astype(np.float32)
    out = Upsampler()(tone)[3000:-3000]
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    frequency = np.fft.rfftfreq(len(out), 1 / 48_000)
    near = np.abs(frequency - pitch) < 30
    assert np.sqrt(np.mean(out**2)) == pytest.approx(np.sqrt(0.5), rel=0.02)
    # Images of the tone around 16 kHz are 50 dB below it.
    assert spectrum[~near].max() < spectrum[near].max() * 10 ** (-50 / 20)


def test_resampling_is_late_by_a_known_time():
    click = np.zeros(200, np.float32)
    click[100] = 1
    late = np.abs(Upsampler()(click)).argmax() - 300
    assert late == pytest.approx(module.TAPS * FACTOR / 2, abs=1)


def test_frames_and_sound_of_a_tick_go_together():
    player = Player()
    sound = np.zeros(20 * SAMPLES_PER_FRAME)
    sound[7 * SAMPLES_PER_FRAME + 300] = 0.9
    player.put(block(0, 20, sound))
    playout = Playout(player, STILL, lambda frame: frame)
    ticks(playout, 20)
    heard = taken(playout, (20 * TICK_SAMPLES - EARLY) // CHUNK)
    click = int(np.abs(heard.astype(int)).argmax())
    assert click // TICK_SAMPLES == 7 and click % TICK_SAMPLES == pytest.approx(FACTOR * (300 + module.TAPS / 2), abs=2)
    assert [frame[0, 0, 0] for _, frame in playout._frames] == list(range(12, 20))


def test_a_frame_that_is_late_is_waited_for_with_silence_and_both_stay_in_step():
    player, seen = Player(), []
    playout = Playout(player, STILL, lambda frame: frame, lambda shown, at: seen.append((shown and shown.index, at)))
    ticks(playout, 2)
    assert playout.repeated == 0, "before the first frame nothing is late"
    player.put(block(0, 3, np.full(3 * SAMPLES_PER_FRAME, 0.5)))
    ticks(playout, 5)
    assert playout.repeated == 2
    player.put(block(3, 1, np.full(SAMPLES_PER_FRAME, 0.5)))
    ticks(playout, 1)
    assert [index for index, _ in seen] == [None, None, 0, 1, 2, None, None, 3]
    assert [at for _, at in seen] == pytest.approx([n / FPS for n in range(8)])
    assert [frame[0, 0, 0] for _, frame in playout._frames] == [255, 255, 0, 1, 2, 2, 2, 3]
    heard = taken(playout, (8 * TICK_SAMPLES - EARLY) // CHUNK)
    loud = [np.abs(heard[n * TICK_SAMPLES + 400 : (n + 1) * TICK_SAMPLES - 100]).mean() > 8000 for n in range(8)]
    assert loud == [False, False, True, True, True, False, False, True]


def test_sound_that_is_cut_off_does_not_click():
    player = Player()
    player.put(block(0, 4, np.full(4 * SAMPLES_PER_FRAME, 0.5)))
    playout = Playout(player, STILL, lambda frame: frame)
    ticks(playout, 2)
    assert playout.drop(0) == 2
    player.put(block(2, 4))
    ticks(playout, 2)
    heard = taken(playout, (4 * TICK_SAMPLES - EARLY) // CHUNK).astype(int)
    steps = np.abs(np.diff(heard))[2 * TICK_SAMPLES - 100 :]
    assert steps.max() < 300 and heard[2 * TICK_SAMPLES + 600 :].any() == 0


def test_what_was_taken_before_a_drop_is_sent_before_it_is_settled():
    async def cut():
        player = Player()
        player.put(block(0, 20, np.full(20 * SAMPLES_PER_FRAME, 0.5)))
        playout = Playout(player, STILL, lambda frame: frame)
        await playout.settled()
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(playout.run())
        await asyncio.sleep(0.2)
        playout.drop(0)
        taken, began = playout._ticks, loop.time()
        await playout.settled()
        running.cancel()
        return loop.time() - began, loop.time() - playout._origin - taken / FPS

    waited, after = asyncio.run(cut())
    assert waited < 0.15 and after >= 0


def test_what_is_shown_on_after_a_drop_is_sent_before_it_is_settled():
    async def cut():
        player = Player()
        player.put(block(0, 20, np.full(20 * SAMPLES_PER_FRAME, 0.5)))
        playout = Playout(player, STILL, lambda frame: frame)
        running = asyncio.create_task(playout.run())
        await asyncio.sleep(0.2)
        first = playout.drop(0)
        playout.show(block(first, 4, np.zeros(4 * SAMPLES_PER_FRAME)))
        await playout.settled()
        running.cancel()
        return player.position() * FPS - first, playout.repeated, player.lead

    shown, repeated, lead = asyncio.run(cut())
    assert 4 <= shown and repeated <= 1 and lead == 0


def test_a_slow_taker_loses_the_oldest_frames_and_nothing_else():
    player = Player()
    player.put(block(0, 30))
    playout = Playout(player, STILL, lambda frame: frame)
    ticks(playout, 20)
    assert [tick for tick, _ in playout._frames] == list(range(20 - MOST_FRAMES, 20))
    with pytest.raises(Overrun):
        ticks(playout, 100)


def test_in_real_time():
    """Half a second: each tick and chunk comes when it is due, none before, and 20 ms at most of it is taken ahead."""

    async def play():
        player = Player()
        player.put(block(0, 12))
        playout = Playout(player, STILL, lambda frame: frame)
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(playout.run())
        began, times = loop.time(), []
        for _ in range(8):
            tick, _ = await playout.frame()
            times.append((tick, loop.time() - began))
        chunks = [(await playout.chunk())[0] for _ in range(20)]
        running.cancel()
        return times, chunks, player.position()

    times, chunks, position = asyncio.run(play())
    assert [tick for tick, _ in times] == list(range(8)) and chunks == list(range(0, 20 * CHUNK, CHUNK))
    assert all(at >= tick / FPS + 0.019 for tick, at in times) and 8 <= position * FPS <= 12


def test_after_a_standstill_everything_is_later_and_nothing_is_hurried():
    async def play():
        playout = Playout(Player(), STILL, lambda frame: frame)
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(playout.run())
        await asyncio.sleep(0.1)
        time.sleep(0.8)
        before, again = playout._ticks, loop.time()
        await asyncio.sleep(0.2)
        running.cancel()
        return playout.late, playout._ticks - before, loop.time() - again

    late, ticks, seconds = asyncio.run(play())
    assert late == 1 and ticks <= seconds * FPS + 2
