"""The small decoder: pieces against the whole, causality, state, size."""

import pytest
import torch
import torch.nn.functional as F

from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, TrueColours, initialise
from livetalk.models.vae import VAEConfig, WanVAE

TINY = SmallDecoderConfig(z_dim=4, dim=8, mixes=2, widths=(8, 6, 4))


@pytest.fixture(scope="module")
def decoder():
    made = SmallDecoder(TINY).double().eval().requires_grad_(False)
    initialise(made, torch.Generator().manual_seed(0))
    return made


def latents(frames: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, frames, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_latent_is_four_frames_and_the_first_one(decoder):
    assert decoder.decode(latents(1)).shape == (2, 3, 1, 24, 40)
    assert decoder.decode(latents(6)).shape == (2, 3, 21, 24, 40)


@pytest.mark.parametrize("pieces", [[6], [1, 5], [3, 3], [1, 1, 1, 1, 1, 1], [2, 1, 3]])
def test_pieces_are_the_whole(decoder, pieces):
    z, state = latents(6), decoder.decoder_state()
    parts = [decoder.decode_step(part, state) for part in z.split(pieces, dim=2)]
    assert [part.shape[2] for part in parts] == [4 * n - 3 * (i == 0) for i, n in enumerate(pieces)]
    assert torch.allclose(torch.cat(parts, dim=2), decoder.decode(z), atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_last_latents_alone_give_the_last_frames(decoder, count):
    """All six latents: the first frame too."""
    whole, last = decoder.decode(latents(6)), decoder.decode_last(latents(6), count)
    assert last.shape[2] == (21 if count == 6 else 4 * count)
    assert torch.allclose(last, whole[:, :, -last.shape[2] :], atol=1e-12)


def test_later_latents_never_change_earlier_frames(decoder):
    z = latents(6)
    later = z.clone()
    later[:, :, 4:] += 1
    before, after = decoder.decode(z), decoder.decode(later)
    assert torch.equal(before[:, :, :13], after[:, :, :13])
    assert not torch.allclose(before[:, :, 13:], after[:, :, 13:])


def test_the_latents_before_are_seen_as_far_as_the_layers_reach(decoder):
    """One latent for the entrance, one for each layer that mixes time: a window of training needs no more history."""
    z = latents(8, 1)
    reach = 1 + TINY.mixes
    window = decoder.decode(z[:, :, 7 - reach :])[:, :, -4:]
    assert torch.allclose(window, decoder.decode(z)[:, :, -4:], atol=1e-12)
    assert not torch.allclose(decoder.decode(z[:, :, 8 - reach :])[:, :, -4:], window, atol=1e-9)


def test_a_state_goes_back_to_a_snapshot(decoder):
    z, state = latents(5), decoder.decoder_state()
    decoder.decode_step(z[:, :, :2], state)
    kept = state.snapshot()
    expected = decoder.decode_step(z[:, :, 2:3], state)
    decoder.decode_step(z[:, :, 3:], state)
    state.restore(kept)
    assert torch.equal(decoder.decode_step(z[:, :, 2:3], state), expected)
    state.reset()
    assert decoder.decode_step(z[:, :, :1], state).shape[2] == 1


def coloured(decoder) -> TrueColours:
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(base_dim=4, res_blocks=1, z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4))
    return TrueColours(decoder, vae.double().eval().requires_grad_(False))


def test_colours_are_those_of_a_still_picture(decoder):
    """Square by square, at the start of a stream and later; what is added depends on the first latent alone."""
    z, made = latents(6), coloured(decoder)
    added = made.decode(z) - decoder.decode(z)
    steady = 4 * decoder.reach  # the first frame that no longer sees the start
    assert torch.allclose(added[:, :, steady:], added[:, :, steady : steady + 1].expand(-1, -1, 21 - steady, -1, -1))
    assert not torch.allclose(added[:, :, 0], added[:, :, steady], atol=1e-3)
    other = torch.cat([z[:, :, :1], 2 * z[:, :, 1:]], dim=2)
    assert torch.allclose(made.decode(other) - decoder.decode(other), added, atol=1e-12)

    frame = made.vae.decode(z[:, :, :1])
    still = decoder.decode(made.vae.encode(frame.clamp(-1, 1).expand(-1, -1, steady + 1, -1, -1)))
    for index in (0, steady):
        without = still[:, :, index] - frame[:, :, 0]
        before, after = (F.avg_pool2d(x, 8).abs().mean() for x in (without, without + added[:, :, index]))
        assert after < 0.5 * before


def test_colours_are_kept_over_pieces_and_snapshots(decoder):
    z, made = latents(6), coloured(decoder)
    state = made.decoder_state()
    parts = [made.decode_step(z[:, :, :2], state)]
    kept = state.snapshot()
    made.decode_step(z[:, :, 4:], state)
    state.restore(kept)
    parts += [made.decode_step(part, state) for part in z[:, :, 2:].split(2, dim=2)]
    assert torch.allclose(torch.cat(parts, dim=2), made.decode(z), atol=1e-12)


def test_colours_of_a_known_first_latent_are_found_before_the_stream(decoder, monkeypatch):
    z, made = latents(6), coloured(decoder)
    state = made.decoder_state(z[:, :, :1])
    monkeypatch.setattr(made, "_missing", lambda latent: pytest.fail("asked with the first frames"))
    parts = [made.decode_step(part, state) for part in z.split(2, dim=2)]
    state.restore(None)
    again = made.decode_step(z[:, :, :2], state)
    monkeypatch.undo()
    assert torch.allclose(torch.cat(parts, dim=2), made.decode(z), atol=1e-12) and torch.equal(again, parts[0])


def test_it_is_small():
    with torch.device("meta"):
        made = SmallDecoder(SmallDecoderConfig())
    assert sum(value.numel() for value in made.parameters()) < 660_000


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SmallDecoderConfig(mixes=0)
    with pytest.raises(ValueError, match="three"):
        SmallDecoderConfig(widths=(8, 4))
