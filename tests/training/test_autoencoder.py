"""Training of the autoencoder: kinds of steps, losses, statistics of latents."""

import pytest
import torch

from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.training.autoencoder import (
    AutoencoderConfig,
    AutoencoderObjective,
    latent_statistics,
    psnr,
    reconstruction_error,
    to_unit,
)


@pytest.fixture
def clips():
    return torch.randint(0, 256, (3, 17, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return WanVAE(VAEConfig(base_dim=4, res_blocks=1))


def test_deviation_of_latents_counts_the_posteriors_own_variance(vae, clips):
    mean, logvar = (x.double().transpose(0, 1).flatten(1) for x in vae.requires_grad_(False).posterior(to_unit(clips)))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack(
        [mean + torch.randn(mean.shape, generator=generator) * (0.5 * logvar).exp() for _ in range(400)], dim=1
    ).flatten(1)
    centre, deviation = latent_statistics(vae, clips, chunk=2)
    assert torch.allclose(torch.tensor(centre).double(), mean.mean(1), atol=1e-6)
    assert torch.allclose(torch.tensor(deviation).double(), drawn.std(1), rtol=0.02)


def test_an_emptied_channel_is_not_blown_up(vae, clips):
    with torch.no_grad():
        vae.conv1.weight[0] *= 1e-4
        vae.conv1.weight[16] = 0
        vae.conv1.bias[16] = 0
    _, deviation = latent_statistics(vae, clips)
    assert deviation[0] == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("every, lengths", [(0, [5, 5, 5, 5]), (1, [9, 9, 9, 9]), (2, [9, 5, 9, 5])])
def test_long_clips_come_every_so_many_steps_with_as_many_frames(vae, clips, every, lengths):
    objective = AutoencoderObjective(vae, clips, AutoencoderConfig(frames=5, long_frames=9, long_every=every))
    assert [objective.kind(step) for step in range(4)] == lengths
    shown = [objective._sample(length, 4, torch.Generator().manual_seed(0)) for length in lengths]
    assert [video.shape[2] for video in shown] == lengths
    assert all(15 <= video.shape[0] * video.shape[2] <= 20 for video in shown)


def test_the_error_weighs_the_first_frame_as_a_latent_and_what_moves_more():
    still = torch.zeros(1, 3, 5, 8, 8)
    wrong = still.clone()
    wrong[:, :, 0] = 0.5
    later = still.clone()
    later[:, :, 1] = 0.5
    first, other = (float(reconstruction_error(still, decoded, 0.0)) for decoded in (wrong, later))
    assert first == pytest.approx(4 * other) and other == pytest.approx((0.5 + 2 * 0.25) / 5)


def test_psnr_is_that_of_a_range_of_two():
    assert float(psnr(torch.tensor(4e-3))) == pytest.approx(30)
