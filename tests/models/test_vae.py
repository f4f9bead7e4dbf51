"""The video autoencoder: golden values, pieces against the whole, causality, names, diffusers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.vae_names import from_diffusers, to_diffusers

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = VAEConfig(base_dim=4, res_blocks=1)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def random_vae(config, dtype=torch.float64, seed=0):
    """A VAE with every parameter drawn, so that nothing hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    vae = WanVAE(config).to(dtype)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan_in = max(parameter[0].numel(), 1)
            parameter.copy_(1 + 0.2 * value if name.endswith("gamma") else value / fan_in**0.5)
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny():
    return random_vae(TINY)


@pytest.fixture(scope="module")
def clip():
    return torch.rand(2, 3, 17, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 16, 6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def decode_pieces(vae, latents, pieces, state=None):
    state = state or vae.decoder_state()
    return torch.cat([vae.decode_step(piece, state) for piece in latents.split(pieces, dim=2)], dim=2)


def encode_pieces(vae, clip, pieces):
    state = vae.encoder_state()
    return torch.cat([vae.encode_step(piece, state) for piece in clip.split(pieces, dim=2)], dim=2)


def test_golden():
    with safe_open(GOLDEN / "wan_vae.safetensors", "pt") as file:
        config = VAEConfig.from_published(json.loads(file.metadata()["settings"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    vae = WanVAE(config)
    vae.load_state_dict({name[2:]: value for name, value in tensors.items() if name.startswith("w.")})
    with torch.no_grad():
        encoded = vae.encode(tensors["in.clip"])
        decoded = vae.decode(tensors["in.latent"])
    assert relative(encoded, tensors["out.encoded"]) < 1e-5
    assert relative(decoded, tensors["out.decoded"]) < 1e-5


def test_published_size_has_published_names_and_shapes():
    with torch.device("meta"):
        vae = WanVAE(VAEConfig())
    published = json.loads((GOLDEN / "layouts" / "wan2.1-vae.json").read_text())["tensors"]
    assert {name: list(value.shape) for name, value in vae.state_dict().items()} == published


def test_statistics_come_back_after_a_build_on_the_meta_device():
    with torch.device("meta"):
        vae = WanVAE(TINY)
    vae.to_empty(device="cpu").set_statistics()
    assert torch.equal(vae.latents_std.flatten(), torch.tensor(TINY.latents_std))


@pytest.mark.parametrize("pieces", [[6], [1] * 6, [1, 5], [2, 1, 3], [3, 3], [5, 1]])
def test_decoding_in_pieces_equals_the_whole(tiny, latents, pieces):
    whole = tiny.decode(latents)
    assert whole.shape == (2, 3, 21, 16, 24)
    assert relative(decode_pieces(tiny, latents, pieces), whole) < 1e-10


@pytest.mark.parametrize("pieces", [[17], [1, 4, 4, 4, 4], [1, 16], [5, 12], [9, 4, 4], [13, 4]])
def test_encoding_in_pieces_equals_the_whole(tiny, clip, pieces):
    whole = tiny.encode(clip)
    assert whole.shape == (2, 16, 5, 2, 3)
    assert relative(encode_pieces(tiny, clip, pieces), whole) < 1e-10


@pytest.mark.parametrize(
    "temporal, frames", [((False, False, False), 4), ((True, False, False), 7), ((True, True, True), 25)]
)
def test_other_temporal_factors_in_pieces(temporal, frames, latents):
    vae = random_vae(replace(TINY, temporal_downsample=temporal))
    latents = latents[:, :, :4]
    video = vae.decode(latents)
    assert video.shape[2] == frames
    assert relative(decode_pieces(vae, latents, [1, 2, 1]), video) < 1e-10
    step = 2 ** sum(temporal)
    assert relative(encode_pieces(vae, video, [1, step, 2 * step]), vae.encode(video)) < 1e-10


def test_later_latents_never_change_earlier_frames(tiny, latents):
    changed = latents.clone()
    changed[:, :, 3:] += 1
    before, after = tiny.decode(latents), tiny.decode(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.allclose(before[:, :, 9], after[:, :, 9])


def test_later_frames_never_change_earlier_latents(tiny, clip):
    changed = clip.clone()
    changed[:, :, 9:] *= -1
    before, after = tiny.encode(clip), tiny.encode(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3], after[:, :, 3])


def test_restored_states_go_on_from_the_snapshot(tiny, clip, latents):
    state = tiny.decoder_state()
    tiny.decode_step(latents[:, :, :2], state)
    snapshot = state.snapshot()
    first = tiny.decode_step(latents[:, :, 2:], state)
    state.restore(snapshot)
    tiny.decode_step(latents[:, :, 2:3] + 1, state)
    state.restore(snapshot)
    assert torch.equal(tiny.decode_step(latents[:, :, 2:], state), first)

    state = tiny.encoder_state()
    snapshot = state.snapshot()
    first = tiny.encode_step(clip[:, :, :5], state)
    state.restore(snapshot)
    assert torch.equal(tiny.encode_step(clip[:, :, :5], state), first)
    state.reset()
    assert torch.equal(tiny.encode_step(clip[:, :, :5], state), first)


def test_one_set_of_weights_serves_two_streams(tiny, latents):
    states = [tiny.decoder_state(), tiny.decoder_state()]
    streams = [latents, latents.flip(2)]
    videos = [[], []]
    for n in range(3):
        for state, stream, video in zip(states, streams, videos, strict=True):
            video.append(tiny.decode_step(stream[:, :, 2 * n : 2 * n + 2], state))
    for stream, video in zip(streams, videos, strict=True):
        assert relative(torch.cat(video, dim=2), tiny.decode(stream)) < 1e-10


def test_a_failed_step_leaves_the_state_where_it_was(tiny, clip):
    state = tiny.encoder_state()
    tiny.encode_step(clip[:, :, :5], state)
    snapshot = state.snapshot()
    with pytest.raises(ValueError, match="3 frames cannot be encoded here; give 4k"):
        tiny.encode_step(clip[:, :, 5:8], state)
    with pytest.raises(RuntimeError):
        tiny.encode_step(clip[:1, :, 5:9], state)
    assert state.snapshot() is snapshot


def test_the_state_does_not_grow(tiny, latents):
    state = tiny.decoder_state()
    tiny.decode_step(latents, state)
    storage = [tail.untyped_storage().nbytes() for tail in state.snapshot()]
    tiny.decode_step(torch.cat([latents] * 2, dim=2), state)
    assert [tail.untyped_storage().nbytes() for tail in state.snapshot()] == storage


def test_gradients_reach_every_parameter(clip):
    vae = random_vae(TINY).requires_grad_(True)
    mean, logvar = vae.posterior(clip[:1, :, :9])
    vae.decode_raw(mean + (logvar / 2).exp()).square().mean().backward()
    missing = [name for name, parameter in vae.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert missing == []


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_stays_close(tiny, clip, latents, dtype, tolerance):
    vae = random_vae(TINY, dtype)
    decoded = vae.decode(latents.to(dtype))
    assert decoded.dtype == dtype
    assert relative(decoded.double(), tiny.decode(latents)) < tolerance
    assert relative(vae.encode(clip.to(dtype)).double(), tiny.encode(clip)) < tolerance


def test_float32_in_pieces_equals_the_whole(clip, latents):
    vae = random_vae(TINY, torch.float32)
    clip, latents = clip.float()[:1], latents.float()[:1]
    assert relative(decode_pieces(vae, latents, [1, 2, 3]), vae.decode(latents)) < 1e-5
    assert relative(encode_pieces(vae, clip, [1, 4, 12]), vae.encode(clip)) < 1e-5


def test_autocast_reaches_the_convolutions(latents):
    vae = random_vae(TINY, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(latents.float()).dtype == torch.bfloat16


def test_channels_stay_last_in_memory_from_end_to_end(clip, latents):
    vae = random_vae(TINY, torch.float32)
    seen = []
    for module in [*vae.encoder.modules(), *vae.decoder.modules()]:
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    vae.decode(latents.float())
    vae.encode(clip.float())
    videos = [output for output in seen if output.ndim == 5]
    assert len(videos) > 50
    assert all(output.is_contiguous(memory_format=torch.channels_last_3d) for output in videos)


def test_compiles_in_one_piece(tiny, clip, latents):
    """No graph break in a whole pass or a step; the backend is the plain one, which keeps this quick."""
    whole = torch.compile(tiny.decode, fullgraph=True, backend="eager", dynamic=False)
    assert relative(whole(latents), tiny.decode(latents)) < 1e-10
    step = torch.compile(tiny.decode_step, fullgraph=True, backend="eager", dynamic=False)
    state = tiny.decoder_state()
    video = torch.cat([step(piece, state) for piece in latents.split(2, dim=2)], dim=2)
    assert relative(video, tiny.decode(latents)) < 1e-10
    step = torch.compile(tiny.encode_step, fullgraph=True, backend="eager", dynamic=False)
    state = tiny.encoder_state()
    encoded = torch.cat([step(piece, state) for piece in clip.split([1, 8, 8], dim=2)], dim=2)
    assert relative(encoded, tiny.encode(clip)) < 1e-10


@pytest.mark.parametrize("res_blocks", [1, 2])
def test_agrees_with_diffusers(res_blocks, clip, latents):
    diffusers = pytest.importorskip("diffusers")
    config = VAEConfig(base_dim=4, res_blocks=res_blocks)
    vae = random_vae(config)
    theirs = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=res_blocks).double()
    theirs.load_state_dict(to_diffusers(vae.state_dict(), config))
    with torch.no_grad():
        mean, logvar = vae.posterior(clip)
        assert relative(mean, theirs.encode(clip).latent_dist.mean) < 1e-10
        assert relative(logvar, theirs.encode(clip).latent_dist.logvar) < 1e-10
        # Theirs clamps; the small factor keeps the values inside.
        vae.decoder.head["2"].weight *= 0.05
        vae.decoder.head["2"].bias *= 0.05
        theirs.decoder.conv_out.weight *= 0.05
        theirs.decoder.conv_out.bias *= 0.05
        video = vae.decode_raw(latents)
        assert video.abs().max() < 1
        # Theirs up-samples in float32 whatever the dtype.
        assert relative(video, theirs.decode(latents).sample) < 1e-6
    again = from_diffusers(theirs.state_dict(), config)
    assert again.keys() == vae.state_dict().keys()


def test_names_of_something_else_are_refused():
    with pytest.raises(ValueError, match="decoder.up_blocks.4.resnets.0.conv1.weight"):
        from_diffusers({"decoder.up_blocks.4.resnets.0.conv1.weight": torch.zeros(1)}, TINY)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"attn_scales": [0.5]}, r"attn_scales=\[0.5\] is not supported"),
        ({"dropout": 0.1}, "dropout=0.1 is not supported"),
        ({"temporal_downsample": [True]}, "unknown VAE settings"),
        ({"z_dim": 8}, "latents_mean has 16 values; give one a latent channel: 8"),
        ({"dim_mult": [1, 2]}, "one entry fewer"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_published(settings)


def test_empty_published_settings_are_the_defaults():
    assert VAEConfig.from_published({"attn_scales": [], "dropout": 0.0}) == VAEConfig()


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 12, 16)])
def test_clips_that_do_not_fit_are_refused(tiny, shape):
    with pytest.raises(ValueError, match="1 \\+ 4k|multiples of 8"):
        tiny.encode(torch.zeros(shape, dtype=torch.float64))
