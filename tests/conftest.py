"""What several test files share: tiny parts of a pipeline with random weights, made in code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from livetalk.geometry import Geometry

TINY = Geometry(height=32, width=48)


class Bytes(nn.Module):
    """Stands in for a text encoder: the bytes of a text as features [B, 8, 16], padding zero."""

    def encode(self, texts: list[str]) -> torch.Tensor:
        rows = [[byte / 128 for byte in text.encode()[:8].ljust(8, b"\0")] for text in texts]
        return torch.tensor(rows)[:, :, None].expand(-1, -1, 16).contiguous()


@pytest.fixture(scope="session")
def tiny_parts() -> dict:
    """vae, audio, text and dit at the smallest sizes that keep the shapes' relations; weights from a fixed seed."""
    from livetalk.models.audio import AudioConfig, AudioEncoder
    from livetalk.models.dit import DiTConfig, WanDiT
    from livetalk.models.vae import VAEConfig, WanVAE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        audio = AudioConfig.nano()
        dit = DiTConfig(
            dim=24,
            ffn_dim=32,
            heads=2,
            layers=4,
            text_dim=16,
            text_len=8,
            freq_dim=16,
            audio_dim=audio.channels,
            audio_hidden=8,
        )
        parts = {
            "vae": WanVAE(VAEConfig(base_dim=4, res_blocks=1)),
            "audio": AudioEncoder(audio),
            "text": Bytes(),
            "dit": WanDiT(dit),
        }
    for part in parts.values():
        part.eval()
    return parts
