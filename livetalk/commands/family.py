"""What the training commands share: devices, and how a trained part is exported into a family of weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetalk.config import flat
from livetalk.models.weights import save_pieces
from livetalk.training.trainer import Trainer

PIECE_BYTES = 15 * 2**20


def device_of(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises ValueError for a device that is not there."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: no GPU is seen by PyTorch {torch.__version__}: use device=cpu")
    return device


def settle_gpu() -> None:
    """Lets cuDNN choose convolutions by measurement and float32 products use TF32: what training here is tuned for."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


@dataclass(frozen=True)
class Card:
    """Where weights come from: the world's seed, steps, every setting of the run, figures on held-out clips."""

    data_seed: int
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(run: Any, trainer: Trainer, figures: dict[str, float]) -> Card:
        rounded = {name: round(value, 5) for name, value in figures.items()}
        return Card(run.world.seed, trainer.step, rounded, flat(run))


def export_part(family: str | Path, name: str, config: Any, weights: dict[str, Tensor], card: Card) -> Path:
    """Writes family/name/: config.json, card.json and bfloat16 weights in pieces; replaces what was there when whole."""
    final = Path(family) / name
    partial = final.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    card_text = json.dumps(asdict(card), indent=1, default=str, ensure_ascii=False)
    (partial / "card.json").write_text(card_text + "\n", encoding="utf-8")
    save_pieces(partial, weights, PIECE_BYTES, torch.bfloat16)
    for extra in final.glob("tokenizer.json"):
        shutil.copy(extra, partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final
