from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Config, Wav2Vec2Model

from livetalk.geometry import SAMPLE_RATE, SAMPLES_PER_FRAME
from livetalk.models import audio
from livetalk.models.audio import AudioConfig, AudioEncoder, AudioHeads, AudioStream, published_names

SMALL = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 24, "conv_dim": (12,) * 7}
WINDOW = replace(AudioConfig.nano(), **SMALL)
CLIP = replace(AudioConfig.wav2vec2_base(), **SMALL, pos_kernel=8, pos_groups=2)


def encoder_of(config, dtype=torch.float64):
    torch.manual_seed(0)
    return AudioEncoder(config).to(dtype).eval()


@pytest.fixture(scope="module")
def window():
    return encoder_of(WINDOW)


def sound(frames, batch=1, seed=0, dtype=torch.float64):
    return 0.1 * torch.randn(
        batch, frames * SAMPLES_PER_FRAME, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_states_are_those_that_transformers_collects(pre_norm):
    config = replace(CLIP, pre_norm=pre_norm, normalise=False)
    encoder = encoder_of(config)
    pcm = sound(16)
    with torch.no_grad():
        extracted = encoder.model.feature_extractor(pcm)
        states = encoder._states(extracted)
        want = encoder.model(pcm, output_hidden_states=True)
    assert len(states) == config.layers + 2
    torch.testing.assert_close(states[0], want.last_hidden_state)
    for got, hidden in zip(states[1:-1], want.hidden_states[:-1], strict=True):
        torch.testing.assert_close(got, hidden)
    torch.testing.assert_close(states[-1], want.last_hidden_state)
    assert not torch.allclose(states[1], states[2])


@torch.no_grad()
def test_clip_features_lie_on_the_frames_and_are_normalised():
    encoder = encoder_of(CLIP)
    pcm = sound(21, batch=2)
    features = encoder.features(pcm, frames=21)
    assert features.shape == (2, 21, CLIP.channels)
    # 21 frames span 20 intervals of the normalised sound.
    whole = audio.normalised(pcm)
    torch.testing.assert_close(features, encoder.resampled(whole[:, : 20 * SAMPLES_PER_FRAME], 21))
    torch.testing.assert_close(encoder.features(7 * pcm + 3, 21), features, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(AudioEncoder.features(encoder_of(replace(CLIP, normalise=False)), pcm, 21), features)
    assert encoder.features(pcm[:, :10], 1).shape == (2, 1, CLIP.channels)


def test_normalised_is_zero_mean_and_unit_variance():
    pcm = audio.normalised(3 + sound(4, batch=3))
    assert pcm.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(pcm.var(1, unbiased=False), torch.ones(3).double(), rtol=0, atol=2e-5)


@torch.no_grad()
def test_shared_convolutions_equal_a_window_at_a_time(window):
    assert audio.shared_layers() == 4
    frames, size = 7, WINDOW.window
    pcm = sound(frames + 2)
    features = window.features(pcm, frames)
    before = size - WINDOW.lookahead
    padded = F.pad(pcm, (before, size))
    for j in range(frames):
        one = padded[:, j * SAMPLES_PER_FRAME : j * SAMPLES_PER_FRAME + size]
        states = window._states(window.model.feature_extractor(one))
        place = (before - audio.FIELD / 2) / audio.HOP
        left, share = int(place), place % 1
        want = torch.cat([(1 - share) * state[:, left] + share * state[:, left + 1] for state in states], dim=-1)
        torch.testing.assert_close(features[:, j], want)
    heard = padded[:, : (frames - 1) * 1000 + size]
    torch.testing.assert_close(window.windows(heard, frames, chunk=2), features)
    torch.testing.assert_close(window.windows(heard, frames, at_once=4), features)


@torch.no_grad()
def test_a_feature_hears_200_ms_ahead_and_no_further(window):
    frames, j = 8, 3
    pcm = sound(frames)
    features = window.features(pcm, frames)
    assert WINDOW.lookahead <= 0.2 * SAMPLE_RATE
    end = j * SAMPLES_PER_FRAME + WINDOW.lookahead
    for sample, changes in ((end, False), (end - 1, True)):
        other = pcm.clone()
        other[:, sample:] += 1
        same = torch.equal(window.features(other, frames)[:, : j + 1], features[:, : j + 1])
        assert same != changes
    # The past is bounded as well, by the beginning of the window.
    late = sound(20)
    moved = late.clone()
    moved[:, : 10 * SAMPLES_PER_FRAME + WINDOW.lookahead - WINDOW.window] += 1
    assert torch.equal(window.features(moved, 20)[:, 10:], window.features(late, 20)[:, 10:])


@torch.no_grad()
def test_features_do_not_depend_on_the_place_in_the_clip(window):
    pcm = sound(24)
    shifted = window.features(pcm[:, 5 * SAMPLES_PER_FRAME :], 12)
    torch.testing.assert_close(shifted[:, 6:], window.features(pcm, 17)[:, 11:])


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1], [160], [999, 1, 2500], [3200], [100_000]])
@pytest.mark.parametrize("samples", [1, 3199, 8500, 12_000])
def test_streamed_equals_whole(window, samples, pieces):
    if pieces == [1] and samples > 1:
        pieces = [1, 499]
    pcm = sound(12, batch=2)[:, :samples]
    whole = window.features(pcm, audio.clip_frames(samples))
    stream, parts, at = AudioStream(window, batch=2), [], 0
    for n in range(samples):
        if at >= samples:
            break
        step = pieces[n % len(pieces)]
        parts.append(stream.push(pcm[:, at : at + step]))
        at = min(at + step, samples)
        ready = (at - WINDOW.lookahead) // SAMPLES_PER_FRAME + 1
        assert sum(part.shape[1] for part in parts) == max(0, ready)
    parts.append(stream.finish())
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert stream.sound.shape[1] < WINDOW.window + SAMPLES_PER_FRAME + WINDOW.lookahead


@torch.no_grad()
def test_a_stream_rewinds(window):
    pcm = sound(12)
    stream = AudioStream(window)
    stream.push(pcm[:, :5000])
    state = stream.snapshot()
    first = stream.push(pcm[:, 5000:])
    stream.restore(state)
    assert torch.equal(stream.push(pcm[:, 5000:]), first)
    assert AudioStream(window).finish().shape[1] == 0


def test_gradients_reach_the_encoder_and_heads_tell_classes_and_curves(window):
    encoder = encoder_of(WINDOW, torch.float32)
    logits, curves = AudioHeads(WINDOW.channels, 40)(encoder.features(sound(4, dtype=torch.float32), 4))
    assert logits.shape == (1, 4, 40) and curves.shape == (1, 4, 2)
    (logits.sum() + curves.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.model.feature_extractor.parameters())


def test_nano_is_as_budgeted():
    with torch.device("meta"):
        count = sum(p.numel() for p in AudioEncoder(AudioConfig.nano()).parameters())
    assert 1.0e6 < count < 1.25e6 and AudioConfig.nano().channels == 768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "whole"}, "use 'clip' or 'window'"),
        ({"window": 9000}, "audio window 9000"),
        ({"lookahead": 20_000}, "lookahead 20000"),
        ({"normalise": True}, "no statistics over time"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(WINDOW, **change)


def test_mistakes_are_named(window):
    with pytest.raises(ValueError, match="frames >= 1"):
        window.features(sound(1)[0], 1)
    with pytest.raises(ValueError, match="cannot stream"):
        AudioStream(encoder_of(CLIP))


def test_hub_names_are_read_in_every_form():
    plain = Wav2Vec2Model(
        Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).state_dict()
    conv = "encoder.pos_conv_embed.conv."
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        for name in plain
    }
    assert conv + "weight_g" in old
    want = {f"model.{name}" for name in plain}
    for names in (plain, old, {f"wav2vec2.{name}" for name in old} | {"lm_head.weight", "lm_head.bias"}):
        assert set(published_names(names)) == want
