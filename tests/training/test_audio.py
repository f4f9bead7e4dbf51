"""The audio objective on sound whose samples say their own clip and frame."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from livetalk.geometry import SAMPLES_PER_FRAME
from livetalk.models.audio import AudioConfig, AudioEncoder, AudioHeads
from livetalk.training.audio import (
    AudioObjective,
    AudioTrainingConfig,
    LabelledSound,
    alike,
    figures,
    fit_heads,
    spoken,
)
from livetalk.training.disturb import Disturbances

CLIPS, FRAMES, CLASSES = 2, 20, 40
STILL = Disturbances(voice=0, line=0, noise=0, quietest=0, loudest=0)
CONFIG = AudioTrainingConfig(frames=8, curves=1.0, disturbances=STILL)


def sound(lag=0, clips=CLIPS):
    """The class of frame j of clip n is 20 n + j, and so, in thousandths, is every sample of it, `lag` frames later."""
    classes = torch.arange(clips * FRAMES).reshape(clips, FRAMES)
    curves = torch.stack([classes, -classes], dim=-1).float() / CLASSES
    pcm = classes.float().roll(lag, 1).repeat_interleave(SAMPLES_PER_FRAME, 1) / 1000
    return LabelledSound(pcm, classes, curves)


class Ear(nn.Module):
    """Stands for the encoder: hears sample j * 1000 at frame j, in windows that begin three frames before."""

    config = SimpleNamespace(window=4 * SAMPLES_PER_FRAME, lookahead=SAMPLES_PER_FRAME)

    def __init__(self):
        super().__init__()
        self.heard = []

    def features(self, pcm, frames):
        return 1000 * pcm[:, : frames * SAMPLES_PER_FRAME : SAMPLES_PER_FRAME, None]

    def windows(self, pcm, frames):
        assert pcm.shape[1] == (frames + 3) * SAMPLES_PER_FRAME
        self.heard.append(pcm)
        return self.features(pcm[:, 3 * SAMPLES_PER_FRAME :], frames)


class Reader(nn.Module):
    """Stands for the heads: reads the class off the sample."""

    def forward(self, features):
        value = features[..., 0].round().long().clamp(0, CLASSES - 1)
        return 100 * F.one_hot(value, CLASSES).float(), torch.cat([features, -features], -1) / CLASSES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_label_j_belongs_to_the_sound_at_frame_j():
    made = AudioObjective(Ear(), Reader(), sound(), CONFIG)
    loss, parts = made.loss(0, 64, generator())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    late, parts = AudioObjective(Ear(), Reader(), sound(lag=1), CONFIG).loss(0, 64, generator())
    assert parts["naming"] > 50 and parts["tracing"] > 0


def test_an_excerpt_brings_the_sound_around_it_and_silence_beyond_the_clip():
    ear = Ear()
    AudioObjective(ear, Reader(), sound(), CONFIG).loss(0, 200, generator())
    heard = (1000 * ear.heard[0][:, ::SAMPLES_PER_FRAME]).round().long()  # [200, 3 before, 8]
    starts = heard[:, 3]
    assert set(starts.tolist()) == {20 * clip + j for clip in range(CLIPS) for j in range(FRAMES - CONFIG.frames + 1)}
    for row, start in zip(heard, starts, strict=True):
        first = start // FRAMES * FRAMES
        expected = torch.arange(start - 3, start + CONFIG.frames)
        assert torch.equal(row, torch.where(expected < first, 0, expected))


def test_an_excerpt_as_long_as_its_clip():
    loss, _ = AudioObjective(Ear(), Reader(), sound(), replace(CONFIG, frames=FRAMES)).loss(0, 4, generator())
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_sound_is_disturbed():
    ear = Ear()
    loud = replace(CONFIG, disturbances=replace(STILL, quietest=6, loudest=12))
    loss, parts = AudioObjective(ear, Reader(), sound(), loud).loss(0, 64, generator())
    assert parts["naming"] > 10 and (1000 * ear.heard[0]).max() > 2 * CLASSES - 2


def test_other_engines_have_their_share():
    ear = Ear()
    others = replace(sound(clips=1), pcm=-sound(clips=1).pcm)
    made = AudioObjective(ear, Reader(), sound(), replace(CONFIG, others=0.25), others)
    made.loss(0, 40, generator())
    below = (ear.heard[0] < 0).any(1)
    assert below.sum() == 10 and below[-10:].all()


def test_known_features_are_kept():
    own = replace(sound(), features=Ear().features(sound().pcm, FRAMES))
    made = AudioObjective(Ear(), Reader(), own, CONFIG, own)
    assert made.loss(0, 64, generator())[1]["keeping"].item() == pytest.approx(0, abs=1e-9)
    half = replace(own, features=own.features.half())
    with torch.autocast("cpu", torch.bfloat16):
        made = AudioObjective(Ear(), Reader(), half, CONFIG, half)
        assert made.loss(0, 64, generator())[1]["keeping"].item() < 1e-3
    far = AudioObjective(Ear(), Reader(), replace(own, features=own.features + 5), CONFIG)
    assert far.loss(0, 64, generator())[1]["keeping"].item() > 0.05


def test_features_of_what_is_not_known_are_those_of_its_like():
    dice = generator(3)
    classes = torch.randint(6, (30, FRAMES), generator=dice)
    curves = torch.randn(30, FRAMES, 2, generator=dice)
    known = LabelledSound(torch.zeros(30, 1), classes, curves, features=torch.randn(30, FRAMES, 5, generator=dice))
    # Said again by somebody else, with the lips a little different.
    again = replace(known, curves=curves + 0.01 * torch.randn(curves.shape, generator=dice), features=None)
    order = torch.tensor([7, 3, 20])
    asked = LabelledSound(torch.zeros(3, 1), again.classes[order], again.curves[order])
    torch.testing.assert_close(alike(known, asked, 6, count=1), known.features[order])
    assert alike(known, asked, 6, count=4).std() < known.features.std()


def test_heads_are_fitted_to_known_features():
    dice = generator(4)
    features = torch.randn(40, FRAMES, 12, generator=dice)
    classes = features[..., :4].argmax(-1)
    known = LabelledSound(torch.zeros(40, 1), classes, features[..., 4:6] * 2 + 1)
    heads = AudioHeads(12, 4)
    fit_heads(heads, features, known)
    logits, curves = heads(features)
    assert (logits.argmax(-1) == classes).float().mean() > 0.9
    torch.testing.assert_close(curves, known.curves, atol=0.02, rtol=0.02)


def test_the_gradient_reaches_the_encoder():
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16, "conv_dim": (16,) * 7}
    encoder = AudioEncoder(replace(AudioConfig.nano(), **sizes))
    heads = AudioHeads(encoder.config.channels, CLASSES)
    noisy = replace(sound(), pcm=torch.randn(CLIPS, FRAMES * SAMPLES_PER_FRAME, generator=generator()))
    objective = AudioObjective(encoder, heads, noisy, replace(CONFIG, disturbances=Disturbances()))
    objective.loss(0, 2, generator())[0].backward()
    assert encoder.model.feature_extractor.conv_layers[0].conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_clips_shorter_than_an_excerpt_are_refused():
    with pytest.raises(ValueError, match="excerpts of 21 frames do not fit clips of 20"):
        AudioObjective(Ear(), Reader(), sound(), replace(CONFIG, frames=21))


def test_figures_of_a_perfect_a_late_and_a_reversed_reading():
    perfect = figures(Ear(), Reader(), sound())
    assert perfect["named right"] == 1
    assert perfect["opening Pearson"] == pytest.approx(1) and perfect["width Pearson"] == pytest.approx(1)
    late = figures(Ear(), Reader(), sound(lag=1))
    assert late["named right"] == 0 and late["opening Pearson"] < 0.99
    backwards = replace(sound(), curves=-sound().curves)
    assert figures(Ear(), Reader(), backwards)["opening Pearson"] == pytest.approx(-1)


def test_features_of_clips_do_not_depend_on_how_many_are_taken_at_once():
    torch.manual_seed(0)
    encoder = AudioEncoder(replace(AudioConfig.nano(), hidden=16, layers=1, heads=2, ffn=16, conv_dim=(16,) * 7))
    pcm = 0.1 * torch.randn(5, 4 * SAMPLES_PER_FRAME, generator=generator())
    torch.testing.assert_close(spoken(encoder, pcm, 4, chunk=2), encoder.features(pcm, 4).detach())
