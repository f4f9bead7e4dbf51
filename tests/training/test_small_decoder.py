"""Training the small decoder: what its windows hold, and that it learns."""

from dataclasses import replace

import pytest
import torch

from livetalk import config
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, initialise
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.training.losses import Places
from livetalk.training.small_decoder import SmallDecoderObjective, SmallDecoderTraining, encode
from livetalk.training.trainer import TrainConfig, Trainer

SIZES = SmallDecoderConfig(z_dim=16, dim=16, mixes=1, widths=(12, 8, 8))
WINDOWS = SmallDecoderTraining(latents=2, history=2, crop=16)


def objective(config: SmallDecoderTraining = WINDOWS) -> SmallDecoderObjective:
    """Frame t is t everywhere plus ten times the row of its latent; so is every channel of latent f, which is 4f."""
    decoder = SmallDecoder(SIZES)
    initialise(decoder, torch.Generator().manual_seed(0))
    row = torch.arange(4)
    clips = torch.arange(25)[None, :, None, None, None] + 10 * row.repeat_interleave(8)[None, None, :, None, None]
    latents = 4.0 * torch.arange(7)[None, None, :, None, None] + 10 * row[None, None, None, :, None]
    return SmallDecoderObjective(
        decoder,
        latents.expand(3, 16, 7, 4, 4).clone(),
        clips.expand(3, 25, 32, 32, 3).to(torch.uint8).clone(),
        config,
    )


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_windows_show_the_frames_of_their_latents(begins, whole):
    """The last frame of every latent f is frame 4f, in the same place."""
    told = objective()
    for seed in range(5):
        latents, video, _ = told.sample(begins, whole, 8, torch.Generator().manual_seed(seed))
        side = 4 if whole else 2
        assert latents.shape == (2 if whole else 8, 16, 2 if begins else 4, side, side)
        assert video.shape[2:] == (5 if begins else 8, 8 * side, 8 * side)
        seen = ((video + 1) * 127.5)[:, 0, :: 4 if begins else 1, ::8, ::8]
        last = seen if begins else seen[:, 3::4]
        assert torch.allclose(last, latents[:, 0, -2:], atol=1e-3)
        if not begins:
            assert (latents[:, 0, 0, 0] % 10 >= 4).any() or latents.min() >= 4  # never a clip's first latent


def test_noise_levels_are_no_matter_of_a_decoder():
    with pytest.raises(ValueError, match="unknown key 'lids_at'"):
        config.load(None, ["small_decoder_training.places.lids_at=[0.4, 0.8]"], "train_nano")


@pytest.mark.parametrize("whole", [True, False])
def test_places_count_as_they_are_in_the_whole_picture(whole):
    """Rows 8 to 15 of the picture count three times as much, wherever the squares lie."""
    told = objective(replace(WINDOWS, places=Places(lids=(0.25, 0.0, 0.5, 1.0), lids_more=2.0)))
    told.clips = torch.arange(32, dtype=torch.uint8)[:, None, None].expand(3, 25, 32, 32, 3)  # pixels are their rows
    _, video, weight = told.sample(False, whole, 8, torch.Generator().manual_seed(0))
    row = ((video[:, :1, :1] + 1) * 127.5).round()
    expected = torch.where((row >= 8) & (row < 16), 2.0, 2 / 3)
    assert len(expected.unique()) == 2 and torch.allclose(weight, expected)


def test_kinds_are_starts_and_whole_pictures():
    told = objective()
    assert [told.kind(step) for step in range(6)] == [
        (True, False),
        (False, False),
        (False, True),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert objective(SmallDecoderTraining(latents=2, history=2)).kind(1) == (False, True)


def test_it_learns(tmp_path):
    trainer = Trainer(objective(), TrainConfig(steps=60, batch=4, lr=5e-3, warmup=5, precision="fp32"), tmp_path)
    before = float(trainer.objective.loss(1, 4, torch.Generator().manual_seed(0))[0].detach())
    trainer.fit()
    assert float(trainer.objective.loss(1, 4, torch.Generator().manual_seed(0))[0].detach()) < 0.5 * before


def test_latents_are_those_of_the_vae():
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(base_dim=4, res_blocks=1)).eval()
    clips = torch.randint(0, 256, (3, 5, 16, 16, 3), dtype=torch.uint8)
    found = encode(vae, clips, torch.float32, chunk=2)
    with torch.no_grad():
        expected = vae.encode(clips.permute(0, 4, 1, 2, 3) / 127.5 - 1)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latents": 6}, "fit into clips of 7"),
        ({"history": 0}, "history=0: give 1 or more"),
        ({"whole_every": 0}, "whole_every=0: give 1 or more"),
        ({"crop": 12}, "multiple of 8"),
        ({"crop": 40}, "up to 32"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        objective(SmallDecoderTraining(**{"latents": 2, "history": 2, "crop": 16, **change}))
