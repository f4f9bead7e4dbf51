"""The audio encoder can be captured, and what a captured run depends on is all in its kind."""

from dataclasses import replace

import pytest
import torch

from livetalk.geometry import Geometry
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.streaming.engine.hearing import HEARD, HeardStream
from livetalk.streaming.sound import hearing_of
from tests.training.host import CARD, as_if_on_a_card

SMALL = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16, "conv_dim": (16,) * 7}


def encoder(kind: str) -> AudioEncoder:
    torch.manual_seed(0)
    config = AudioConfig.nano() if kind == "window" else AudioConfig.wav2vec2_base()
    assert config.kind == kind
    return AudioEncoder(replace(config, **SMALL)).eval().requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["window", "clip"])
def test_hearing_asks_nothing_of_the_host(kind):
    hearing = hearing_of(encoder(kind).to(CARD), 5000, 250)
    frames = Geometry().block_frames(9)
    start, stop = hearing.span(frames)
    sound = torch.zeros(1, stop - start, device=CARD)
    with as_if_on_a_card() as asked:
        assert hearing.features(sound, frames).shape[1] == len(frames)
    # What could draw does not in a network that does not learn.
    assert [what for what in asked if not what.endswith("without the generator")] == []


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["window", "clip"])
def test_blocks_of_a_kind_have_the_same_run(kind):
    hearing, geometry = hearing_of(encoder(kind), 2000, 250), Geometry()
    heard = HeardStream(hearing, geometry, torch.float32, torch.device("cpu"), graphs=False)
    runs: dict = {}
    for index in range(12):
        frames = geometry.block_frames(index)
        runs.setdefault(heard.kind(frames), []).append(frames)
    alike = [frames for frames in runs.values() if len(frames) > 1]
    assert alike
    for first, *others in alike:
        start, stop = hearing.span(first)
        sound = torch.randn(1, stop - start)
        for frames in others:
            assert torch.equal(hearing.features(sound, frames), hearing.features(sound, first))


def test_all_kinds_are_captured_before_they_are_needed():
    """Also with the longest past that a stream may have."""
    heard = HeardStream(hearing_of(encoder("clip"), 60_000, 250), Geometry(), torch.float32, torch.device("cpu"), False)
    kinds = [heard.kind(Geometry().block_frames(index)) for index in range(3 * HEARD)]
    assert set(kinds[HEARD:]) <= set(kinds[:HEARD])
