"""Training of the autoencoder: kinds of steps, losses, statistics of latents."""

from functools import partial

import pytest
import torch

from livetalk.media import to_unit
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.training.autoencoder import (
    AutoencoderConfig,
    AutoencoderObjective,
    edge_error,
    latent_statistics,
    motion_error,
    moving_places,
    psnr,
    reconstruction_error,
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


def test_crops_are_taken_where_pictures_move_and_are_more():
    generator = torch.Generator().manual_seed(0)
    clips = torch.full((2, 9, 32, 48, 3), 100, dtype=torch.uint8)
    clips[0, :, 18:22, 34:38] = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8, generator=generator)
    clips[1, :, 2:6, 2:6] = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8, generator=generator)
    places = moving_places(clips)
    assert places.shape == (2, 4, 6) and torch.allclose(places.sum((1, 2)), torch.ones(2))
    assert float(places[0, 2, 4]) > 0.99 and float(places[1, 0, 0]) > 0.99
    config = AutoencoderConfig(frames=5, crop=16, long_frames=9, long_every=2)
    objective = AutoencoderObjective(WanVAE(VAEConfig(base_dim=4, res_blocks=1)), clips, config)
    shown = objective._sample(5, 2, generator)
    assert shown.shape == (2 * 32 * 48 // 16**2, 3, 5, 16, 16)
    assert (shown.std(dim=(1, 2, 3, 4)) > 0).all()  # nobody looks at the still rest
    assert objective._sample(9, 2, generator).shape[3:] == (32, 48)


@pytest.mark.parametrize(
    ("crop", "reason"),
    [(-8, "crop=-8: give 0 or more"), (12, "multiple of 8 up to 16"), (24, "multiple of 8 up to 16")],
)
def test_crops_that_cannot_be_are_refused(vae, clips, crop, reason):
    with pytest.raises(ValueError, match=reason):
        AutoencoderObjective(vae, clips, AutoencoderConfig(crop=crop))


def test_the_error_weighs_the_first_frame_as_a_latent_and_what_moves_more():
    still = torch.zeros(1, 3, 5, 8, 8)
    wrong = still.clone()
    wrong[:, :, 0] = 0.5
    later = still.clone()
    later[:, :, 1] = 0.5
    first, other = (float(reconstruction_error(still, decoded, 0.0)) for decoded in (wrong, later))
    assert first == pytest.approx(4 * other) and other == pytest.approx((0.5 + 2 * 0.25) / 5)


def test_errors_count_more_where_places_do():
    video, weight = torch.zeros(1, 3, 5, 8, 8), torch.ones(1, 1, 1, 8, 8)
    weight[..., 2, 5] = 7.0
    there, elsewhere = video.clone(), video.clone()
    there[:, :, 1:4:2, 2, 5], elsewhere[:, :, 1:4:2, 5, 2] = 0.5, 0.5
    for error in (partial(reconstruction_error, moving=0.0), motion_error):
        assert float(error(video, there, weight=weight)) == pytest.approx(7 * float(error(video, elsewhere)))
        assert float(error(video, elsewhere, weight=weight)) == pytest.approx(float(error(video, elsewhere)))
    assert float(edge_error(video, there, weight)) == pytest.approx(4 * float(edge_error(video, elsewhere)))  # 7 and 1


def test_the_motion_error_sees_what_an_average_over_frames_loses():
    video = torch.zeros(1, 3, 5, 8, 8)
    video[:, :, 1::2] = 1
    average = video.mean(2, keepdim=True).expand_as(video)
    assert float(motion_error(video, average)) == 1
    assert float(motion_error(video, video + 0.3)) == pytest.approx(0, abs=1e-6)
    assert float(motion_error(video[:, :, :1], average[:, :, :1])) == 0  # a picture does not move


def test_psnr_is_that_of_a_range_of_two():
    assert float(psnr(torch.tensor(4e-3))) == pytest.approx(30)
