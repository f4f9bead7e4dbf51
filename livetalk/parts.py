"""The parts of a family of weights on disk: family/PART/ with config.json, weights in pieces, and card.json."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.text import TextConfig, TextEncoder, file_tokenizer, published_names
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.weights import load_into, tensors_of

C = TypeVar("C")
CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def read_config(folder: str | Path, kind: type[C]) -> C:
    """The frozen config of a part. Raises ValueError if it is missing or of another kind."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{path} not found: the folder of a part holds {CONFIG} and *.safetensors")
    data = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(kind)}
    if set(data) != known:
        raise ValueError(f"{path} does not describe a {kind.__name__}: differing keys {sorted(set(data) ^ known)}")
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def load_vae(family: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> WanVAE:
    folder = Path(family) / "vae"
    with torch.device("meta"):
        vae = WanVAE(read_config(folder, VAEConfig))
    load_into(vae, tensors_of(folder), dtype=dtype, device=device)
    vae.set_statistics()
    return vae.eval().requires_grad_(False)


def load_audio(family: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> AudioEncoder:
    folder = Path(family) / "audio"
    with torch.device("meta"):
        encoder = AudioEncoder(read_config(folder, AudioConfig))
    return _filled(encoder, folder, device, dtype)


def load_text(family: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
    folder = Path(family) / "text"
    with torch.device("meta"):
        encoder = TextEncoder(read_config(folder, TextConfig), file_tokenizer(folder / TOKENIZER))
    load_into(encoder, tensors_of(folder), dtype=dtype, device=device, rename=lambda name: tuple(published_names([name])))
    return encoder.eval().requires_grad_(False)


def load_dit(folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> WanDiT:
    """A transformer: part `teacher` or `student` of a family."""
    with torch.device("meta"):
        dit = WanDiT(read_config(folder, DiTConfig))
    return _filled(dit, Path(folder), device, dtype)


def _filled(model: nn.Module, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    return load_into(model, tensors_of(folder), dtype=dtype, device=device).eval().requires_grad_(False)
