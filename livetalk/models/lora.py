"""Low-rank adapters (LoRA, arXiv 2106.09685) merged into the weights they adapt: W + alpha / rank * B A.

An adapter file has, under peft's names, MODULE.lora_A.default.weight [rank, in] and MODULE.lora_B.default.weight
[out, rank] for each adapted linear layer, beside whole tensors that replace those of the base or are new. Nothing is
guessed: whatever of it has no place is listed and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.models.weights import DOWNLOAD, Entry

_FACTOR = re.compile(r"(.+)\.lora_(A|B)(?:\.default)?\.weight")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraConfig:
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank {self.rank} is not possible: it is at least 1")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def read(cls, path: str | Path) -> LoraConfig:
        """From OmniAvatar's config.json (lora_rank, lora_alpha). ValueError for a file that does not say them."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is not there: {DOWNLOAD}")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(settings["lora_rank"]), float(settings["lora_alpha"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not say lora_rank and lora_alpha ({error!r}): {DOWNLOAD}") from error


@dataclass(frozen=True)
class LoraTraining:
    """Adapters to train. rank: 0 for none."""

    rank: int = 0
    alpha: float = 64.0

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora.rank={self.rank}, lora.alpha={self.alpha}: rank is at least 0, alpha above it")

    @property
    def config(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha)


@dataclass(frozen=True)
class Adapter:
    """factors: module -> (A [rank, in], B [out, rank]); whole: tensors that replace the base's, or are new."""

    factors: dict[str, tuple[Tensor, Tensor]]
    whole: dict[str, Tensor]

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Adapter:
        """Sorts the tensors of an adapter file. Raises ValueError if one factor of a module is missing."""
        found: dict[str, dict[str, Tensor]] = {}
        whole = {}
        for name, value in tensors.items():
            name = name.removeprefix(_PREFIX)
            match = _FACTOR.fullmatch(name)
            if match is None:
                whole[name] = value
            else:
                found.setdefault(match[1], {})[match[2]] = value
        lonely = sorted(module for module, pair in found.items() if len(pair) != 2)
        if lonely:
            raise ValueError(f"adapter without both lora_A and lora_B: {', '.join(lonely)}")
        return cls({module: (pair["A"], pair["B"]) for module, pair in found.items()}, whole)


def merged(
    base: dict[str, Tensor], adapter: Adapter, config: LoraConfig, dtype: torch.dtype | None = None
) -> list[Entry]:
    """The base with the adapter in it, as entries to save: each tensor is computed when it is written.

    base: weights under published names, memory-mapped where they are large. dtype: of the result, by default the
    base's own. Sums are in float32. Raises ValueError, listing names and shapes, for a factor that has no weight in
    the base or does not fit it, and for a tensor that is adapted and replaced at once.
    """
    problems = list(_problems(base, adapter, config))
    if problems:
        raise ValueError(f"{len(problems)} tensors of the adapter do not fit the base: {'; '.join(problems)}")
    out_type = dtype or next(iter(base.values())).dtype
    entries = []
    for name, weight in {**base, **adapter.whole}.items():
        factors = adapter.factors.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        value: Callable[[], Tensor] = (
            weight.detach if factors is None else partial(_sum, weight, *factors, config.scale)
        )
        entries.append(Entry(name, tuple(weight.shape), out_type, value))
    return entries


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


def _problems(base: dict[str, Tensor], adapter: Adapter, config: LoraConfig):
    for module, (a, b) in adapter.factors.items():
        name = f"{module}.weight"
        if name not in base:
            yield f"{module} is not in the base"
        elif name in adapter.whole:
            yield f"{name} is both adapted and replaced"
        elif base[name].ndim != 2 or (b.shape[0], a.shape[1]) != tuple(base[name].shape):
            yield f"{name} {list(base[name].shape)} with A {list(a.shape)} and B {list(b.shape)}"
        elif a.shape[0] != config.rank or b.shape[1] != config.rank:
            yield f"{module} has rank {a.shape[0]} and {b.shape[1]}, config.json says {config.rank}"


# Training


ADAPTED = re.compile(r"blocks\.\d+\.((self_attn|cross_attn)\.[qkvo]|ffn\.[02])")
"""The layers of a transformer that OmniAvatar adapts, and we."""


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its adapter, which changes nothing at first: B is zero."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.linear, self.scale = linear, config.scale
        place = {"bias": False, "device": linear.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(linear.in_features, config.rank, **place)
        self.lora_B = nn.Linear(config.rank, linear.out_features, **place)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))
        return self.linear(x) + self.scale * low.to(x.dtype)


def adapt(network: nn.Module, config: LoraConfig) -> None:
    """Freezes a transformer and gives its layers ADAPTED adapters, which alone learn. In place."""
    network.requires_grad_(False)
    for name, module in list(network.named_modules()):
        if ADAPTED.fullmatch(name):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, AdaptedLinear(module, config))


def without_adapters(weights: dict[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The weights of an adapted transformer as those of one without adapters, which computes the same."""
    out = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith((".lora_A", ".lora_B")):
            continue
        base = module.removesuffix(".linear")
        if base == module or leaf != "weight":
            out[f"{base}.{leaf}" if base else leaf] = value
        else:
            a, b = (weights[f"{base}.{factor}.weight"] for factor in ("lora_A", "lora_B"))
            out[f"{base}.weight"] = _sum(value, a, b, config.scale)
    return out
