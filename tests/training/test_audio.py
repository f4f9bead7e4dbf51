"""The audio objective on sound whose samples say their own clip and frame."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from livetalk.geometry import SAMPLES_PER_FRAME
from livetalk.models.audio import AudioConfig, AudioEncoder, AudioHeads
from livetalk.training.audio import AudioObjective, AudioTrainingConfig, LabelledSound, figures

CLIPS, FRAMES, CLASSES = 2, 20, 40
CONFIG = AudioTrainingConfig(frames=8, gain=0.0, noise=0.0, curves=1.0)


def sound(lag=0):
    """The class of frame j of clip n is 20 n + j, and so is every sample of it, `lag` frames later."""
    classes = torch.arange(CLIPS * FRAMES).reshape(CLIPS, FRAMES)
    curves = torch.stack([classes, -classes], dim=-1).float() / CLASSES
    pcm = classes.float().roll(lag, 1).repeat_interleave(SAMPLES_PER_FRAME, 1)
    return LabelledSound(pcm, classes, curves)


class Ear(nn.Module):
    """Stands for the encoder: hears sample j * 1000 at frame j."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def features(self, pcm, frames):
        self.heard.append(pcm)
        return pcm[:, : frames * SAMPLES_PER_FRAME : SAMPLES_PER_FRAME, None]


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


def test_sound_follows_the_last_frame_of_an_excerpt_as_in_the_clip():
    ear = Ear()
    AudioObjective(ear, Reader(), sound(), CONFIG).loss(0, 64, generator())
    starts = ear.heard[0][:, ::SAMPLES_PER_FRAME]
    assert torch.equal(starts, starts[:, :1] + torch.arange(CONFIG.frames + 4)), "consecutive, four frames more"
    assert set((starts[:, 0] % FRAMES).tolist()) == set(range(FRAMES - CONFIG.frames - 4 + 1))


def test_an_excerpt_as_long_as_its_clip_is_followed_by_silence():
    ear = Ear()
    loss, _ = AudioObjective(ear, Reader(), sound(), replace(CONFIG, frames=FRAMES)).loss(0, 4, generator())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert not ear.heard[0][:, FRAMES * SAMPLES_PER_FRAME :].any()
    assert ear.heard[0].shape[1] == (FRAMES + 4) * SAMPLES_PER_FRAME


def test_gain_and_noise_stay_in_their_limits():
    ear = Ear()
    plain = replace(sound(), pcm=torch.ones(CLIPS, FRAMES * SAMPLES_PER_FRAME))
    AudioObjective(ear, Reader(), plain, replace(CONFIG, gain=6.0)).loss(0, 64, generator())
    decibels = 20 * ear.heard[0][:, 0].log10()
    assert -6 <= decibels.min() < -4 and 4 < decibels.max() <= 6
    AudioObjective(ear, Reader(), plain, replace(CONFIG, noise=0.15)).loss(0, 64, generator())
    spread = ear.heard[1].std(1)
    assert spread.min() < 0.02 and 0.1 < spread.max() < 0.16


def test_the_gradient_reaches_the_encoder():
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16, "conv_dim": (16,) * 7}
    encoder = AudioEncoder(replace(AudioConfig.nano(), **sizes))
    heads = AudioHeads(encoder.config.channels, CLASSES)
    noisy = replace(sound(), pcm=torch.randn(CLIPS, FRAMES * SAMPLES_PER_FRAME, generator=generator()))
    AudioObjective(encoder, heads, noisy, CONFIG).loss(0, 2, generator())[0].backward()
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
