"""What several test files share: a tiny family of random weights, made in code, as parts and as a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory) -> Path:
    """A folder like livetalk/assets/nano with the smallest sizes that keep the shapes' relations."""
    from livetalk.models.audio import AudioConfig, AudioEncoder
    from livetalk.models.dit import DiTConfig, WanDiT
    from livetalk.models.text import TextConfig, TextEncoder, train_tokenizer
    from livetalk.models.vae import VAEConfig, WanVAE
    from livetalk.models.weights import save_pieces

    small = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16, "conv_dim": (16,) * 7}
    audio = replace(AudioConfig.nano(), **small)
    text = TextConfig(dim=16, heads=2, head_dim=8, ffn=16, layers=1, vocab=300, length=8, fix_text=False)
    dit = DiTConfig(
        dim=24,
        ffn_dim=32,
        heads=2,
        layers=4,
        text_dim=text.dim,
        text_len=text.length,
        freq_dim=16,
        audio_dim=audio.channels,
        audio_hidden=8,
    )
    family = tmp_path_factory.mktemp("family")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": WanVAE(VAEConfig(base_dim=4, res_blocks=1)),
            "audio": AudioEncoder(audio),
            "text": TextEncoder(text),
            "teacher": WanDiT(dit),
            "student": WanDiT(dit),
        }
    for name, module in parts.items():
        folder = family / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(asdict(module.config)))
        save_pieces(folder, module.state_dict(), 200_000, torch.float32)
    train_tokenizer(["nods while speaking"], family / "text" / "tokenizer.json", text.vocab)
    return family


@pytest.fixture(scope="session")
def tiny_parts(tiny_family) -> dict[str, torch.nn.Module]:
    """vae, audio, text and generator of that family, loaded."""
    from livetalk.config import InferenceRun
    from livetalk.families import parts_of

    run = InferenceRun(model=str(tiny_family))
    return {part.name: part.load(torch.device("cpu"), torch.float32) for part in parts_of(run)}
