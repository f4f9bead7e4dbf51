"""Merging OmniAvatar's adapter into its Wan2.1 base: one file of the teacher, loaded like any other."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from livetalk.models import dit
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.layouts import DIT_DIFFUSERS, Layout, require
from livetalk.models.lora import Adapter, LoraConfig, merged
from livetalk.models.weights import Entry, save, tensors_of

log = logging.getLogger(__name__)

SIZES = {name: dit.SIZES[name] for name in ("1.3b", "14b")}


def sources(size: str, layout: Layout, base: str | None = None, lora: str | None = None) -> tuple[Path, Path]:
    """Base weights and adapter folder of a size, by default where `layout` has them, both present.

    Raises ValueError, naming what is missing and the remedy.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not known: use {' or '.join(SIZES)}")
    remedy = f"bash scripts/download.sh --teacher-{size}"
    base = require(base or layout.wan("transformer", size), remedy)
    lora = require(lora or layout.lora(size), remedy)
    require(lora / "pytorch_model.pt", remedy)
    return base, lora


def plan(config: DiTConfig, base: Path, lora: Path, dtype: torch.dtype = torch.bfloat16) -> list[Entry]:
    """The merged tensors, checked by name and shape against a transformer of sizes `config`, not yet computed.

    base: file or folder, published names or diffusers'. lora: folder of pytorch_model.pt and config.json.
    Raises ValueError with every difference.
    """
    adapter = Adapter.of(dict(tensors_of(lora / "pytorch_model.pt")))
    weights = DIT_DIFFUSERS(dict(tensors_of(base)))
    entries = merged(weights, adapter, LoraConfig.read(lora / "config.json"), dtype)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in WanDiT(config).state_dict().items()}
    found = {entry.name: entry.shape for entry in entries}
    wrong = [
        f"{name}: expected {wanted.get(name, 'nothing')}, merged {found.get(name, 'nothing')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if wrong:
        raise ValueError(f"{base} with {lora} is not this size of OmniAvatar, {len(wrong)} differ: {'; '.join(wrong)}")
    log.info("%d of %d tensors adapted, %d from the adapter", len(adapter.factors), len(entries), len(adapter.whole))
    return entries


def write(entries: list[Entry], out: str | Path) -> Path:
    """Computes and writes the merged file, tensor by tensor, and moves it into place when it is whole."""
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"output {out} must end in .safetensors")
    if out.is_dir():
        raise ValueError(f"output {out} is a folder: name a file in it")
    return save(out, entries)
