"""Streams with the engine beside streams without: the same frames, also after changes, and seats used again."""

import gc
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.geometry import Geometry
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, TrueColours, initialise
from livetalk.pipeline import EXAMPLE_IMAGE
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.engine import FastSeat
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from livetalk.streaming.seat import PlainSeat
from tests.leaks import held

SIZES = Geometry(height=32, width=16, clip_latents=6, window=9, anchors=3)
FAST = EngineConfig(path="fast", decoder="fused")


def performer(parts, engine: EngineConfig, positions: str = "relative") -> Performer:
    own = (parts[name] for name in ("generator", "vae", "audio", "text"))
    return Performer(*own, SIZES, (1000.0, 500.0), positions, StreamConfig(engine=engine))


def sound(blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, blocks * 12_000).astype(np.float32)


def told(made: Performer) -> list[np.ndarray]:
    """Frames of a stream that is interrupted, given another prompt and begun anew."""
    session = made.session(EXAMPLE_IMAGE, "nods")
    out = []

    def speak(blocks: int, seed: int) -> None:
        session.push_audio(sound(blocks, seed))
        session.flush()
        out.extend(block.frames for block in session)

    speak(7, 0)
    session.interrupt(session._ready / 16 - 1)
    speak(3, 1)
    session.set_prompt("smiles while speaking")
    speak(2, 2)
    session.restart(EXAMPLE_IMAGE, seed=3)
    speak(2, 3)
    return out


def wandered(made: Performer, seed: int) -> list[np.ndarray]:
    """Frames of a stream whose halves are made in turns, and that is taken back as far as it goes, or begun anew."""
    session, chance, waiting, out = made.session(EXAMPLE_IMAGE, "nods", seed), random.Random(seed), None, []
    for _ in range(60):
        act = chance.random()
        if waiting is None and act < 0.8:
            waiting = session.denoise_next(fill=True)
        elif act < 0.8:
            block, waiting = session.decode_all(waiting), None
            out += [] if block is None else [block.frames]
        elif act < 0.98:
            earliest = session._frames(session._oldest()).start
            session.interrupt((session._base + chance.randint(earliest, max(earliest, session._ready))) / 16)
            session.push_audio(sound(chance.randint(0, 4), len(out)))
        else:
            session.restart(EXAMPLE_IMAGE, seed=len(out))
    return out


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("seed", range(3))
def test_where_earlier_states_lie_changes_nothing(tiny_parts, overlap, seed):
    engines = (replace(FAST, undo=undo, overlap=overlap) for undo in ("device", "host"))
    device, host = (wandered(performer(tiny_parts, engine), seed) for engine in engines)
    assert len(device) == len(host) > 10 and all(map(np.array_equal, device, host))
    plain = wandered(performer(tiny_parts, EngineConfig(path="plain")), seed)
    assert np.abs(np.concatenate(plain).astype(int) - np.concatenate(host)).max() <= 1


@pytest.mark.parametrize("undo", ["device", "host"])
def test_what_earlier_states_take_does_not_grow(tiny_parts, undo):
    made = performer(tiny_parts, replace(FAST, undo=undo))
    session, sizes = made.session(EXAMPLE_IMAGE, "nods"), []
    for _ in range(15):
        session.next_block(fill=True)
        session.next_block(fill=True)
        session.interrupt(session._ready / 16 - 1)
        sizes.append(held(session._take._seat, {id(made)}))
    assert sizes[1] == sizes[-1]


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_stream_is_that_of_the_plain_path(tiny_parts, overlap):
    plain = told(performer(tiny_parts, EngineConfig(path="plain")))
    fast = told(performer(tiny_parts, replace(FAST, overlap=overlap)))
    assert [block.shape for block in plain] == [block.shape for block in fast]
    plain, fast = (np.concatenate(blocks).astype(int) for blocks in (plain, fast))
    assert np.abs(plain - fast).max() <= 1 and (plain != fast).mean() < 1e-2 and plain.std() > 1


@pytest.mark.parametrize("engine", [EngineConfig(path="plain"), EngineConfig(path="fast", decoder="plain")])
def test_the_colours_of_a_picture_come_and_go_with_it(tiny_parts, engine, monkeypatch):
    """They are found out while nobody waits: neither with the first frames nor inside the session's lock."""
    small = SmallDecoder(SmallDecoderConfig(dim=8, mixes=2, widths=(8, 6, 4))).eval().requires_grad_(False)
    initialise(small, torch.Generator().manual_seed(0))
    colours, asked = TrueColours(small, tiny_parts["vae"]), []
    own = (tiny_parts[name] for name in ("generator", "vae", "audio", "text"))
    made = Performer(*own, SIZES, (1000.0, 500.0), "relative", StreamConfig(engine=engine), colours)
    other = Image.new("RGB", (16, 32), (200, 30, 90))
    session = made.session(EXAMPLE_IMAGE, "nods", 3)

    def missing(latent: torch.Tensor, find=colours._missing) -> torch.Tensor:
        asked.append(session._state.locked())
        return find(latent)

    monkeypatch.setattr(colours, "_missing", missing)
    before = [session.next_block(fill=True).frames for _ in range(2)]
    assert asked == []
    session.restart(other, seed=4)
    fresh = made.session(other, "nods", 4)
    assert asked == [False, False]
    frames = [[one.next_block(fill=True).frames for _ in range(3)] for one in (session, fresh)]
    assert all(map(np.array_equal, *frames)) and not np.array_equal(frames[0][0], before[0])
    fresh.interrupt(0.0)
    assert np.array_equal(fresh.next_block(fill=True).frames, frames[1][0]) and len(asked) == 2


def test_the_first_frames_come_before_the_rest_of_their_block(tiny_parts):
    made = performer(tiny_parts, FAST)
    whole, given = made.session(EXAMPLE_IMAGE, "nods"), sound(3)
    whole.push_audio(given)
    wanted = list(whole)
    with made.live(EXAMPLE_IMAGE, "nods") as live:
        live.push_audio(given)
        live.finish()
        found = list(live)
    assert [len(block.frames) for block in wanted[:2]] == [9, 12]
    assert [(block.first, len(block.frames)) for block in found[:3]] == [(0, 5), (5, 4), (9, 12)]
    frames, heard = (np.concatenate([getattr(block, name) for block in found]) for name in ("frames", "sound"))
    count = sum(len(block.frames) for block in wanted)
    assert np.array_equal(frames[:count], np.concatenate([block.frames for block in wanted]))
    assert np.array_equal(heard[: len(given)], given) and heard.any()


@pytest.mark.parametrize(("cut", "parts"), [(0, [(0, 5), (5, 4)]), (3, [(3, 2), (5, 4)]), (5, [(5, 4)])])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_stream_may_be_interrupted_between_its_first_frames(tiny_parts, overlap, cut, parts):
    made = performer(tiny_parts, replace(FAST, overlap=overlap))
    session, whole = made.session(EXAMPLE_IMAGE, "nods"), made.session(EXAMPLE_IMAGE, "nods")
    for each in (session, whole):
        each.push_audio(sound(2))
    taken_back = session.denoise_next()
    assert len(session.decode_next(taken_back).frames) == 5 and not taken_back.over
    whole.next_block()
    for each in (session, whole):
        each.interrupt(cut / 16)
        each.push_audio(sound(2, 1))
    assert session.decode_next(taken_back) is None
    rendering, found = session.denoise_next(), []
    while not rendering.over:
        found.append(session.decode_next(rendering))
    assert [(block.first, len(block.frames)) for block in found] == parts
    assert np.array_equal(np.concatenate([block.frames for block in found]), whole.next_block().frames)
    assert np.array_equal(session.next_block().frames, whole.next_block().frames)


def test_a_seat_is_used_again_and_forgets(tiny_parts):
    made = performer(tiny_parts, FAST)
    first = made.session(EXAMPLE_IMAGE, "nods")
    second = made.session(EXAMPLE_IMAGE, "nods")
    seats = {id(session._take._seat) for session in (first, second)}
    assert len(seats) == 2
    frames = [block.frames for session in (first, second) for block in [session.next_block(fill=True)]]
    del first, second
    gc.collect()
    again = made.session(EXAMPLE_IMAGE, "nods")
    assert id(again._take._seat) in seats
    assert np.array_equal(again.next_block(fill=True).frames, frames[0]) and np.array_equal(*frames)


class Holder:
    """Whoever has a seat."""


def test_who_is_fast(tiny_parts):
    """All but those whose positions are absolute, unless asked otherwise."""
    assert isinstance(performer(tiny_parts, EngineConfig()).seat(Holder()), FastSeat)
    assert isinstance(performer(tiny_parts, EngineConfig(path="plain")).seat(Holder()), PlainSeat)
    assert isinstance(performer(tiny_parts, EngineConfig(), "absolute").seat(Holder()), PlainSeat)
    with pytest.raises(ValueError, match="positions=relative"):
        performer(tiny_parts, FAST, "absolute").seat(Holder())


@pytest.mark.parametrize(
    "key", ["path", "graphs", "compile", "attention", "linears", "decoder", "decoder_precision", "overlap", "undo"]
)
def test_an_unknown_setting_is_refused(key):
    with pytest.raises(ValueError, match=f"engine.{key} 'quick' is not known"):
        EngineConfig(**{key: "quick"})


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (EngineConfig(path="fast", attention="fa3-fp8"), "Hopper"),
        (EngineConfig(path="fast", attention="cudnn"), "is not there on cpu"),
    ],
)
def test_what_is_not_there_is_refused(tiny_parts, engine, reason):
    with pytest.raises(ValueError, match=reason):
        performer(tiny_parts, engine).seat(Holder())
