"""A network beside the one that learns, for passes without gradient: the same numbers, its weights cast already.

Autocast casts the weights of linear layers once and keeps the casts; compiled parts (compiled.py) cast them in every
pass, which takes a tenth of a pass over one block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from livetalk.models.dit import Block, WanDiT


class Narrow:
    """dit: `wide` with the weights that its layers multiply by in `dtype`, as they were at the latest `refresh`; all
    others are those of `wide`. What prepare() runs is not among them."""

    def __init__(self, wide: WanDiT, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            self.dit = WanDiT(wide.config)
        self.dit.parts = wide.parts
        for name, value in wide.named_parameters():
            _put(self.dit, name, value)
        linears = [f"blocks.{i}.{name}" for i, block in enumerate(wide.blocks) for name in _linears(block)]
        self._wide = [wide.get_parameter(name) for name in linears]
        self._own: list[Tensor] = []
        for name, value in zip(linears, self._wide, strict=True):
            own = nn.Parameter(torch.empty_like(value, dtype=dtype, requires_grad=False), requires_grad=False)
            _put(self.dit, name, own)
            self._own.append(own)

    @torch.no_grad()
    def refresh(self) -> WanDiT:
        """The network, as `wide` is now."""
        torch._foreach_copy_(self._own, self._wide)
        return self.dit


def _linears(block: Block) -> list[str]:
    """Names of weights and biases of a block's linear layers, without those that make a text's keys and values."""
    layers = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    own = [name for name in layers if name not in ("cross_attn.k", "cross_attn.v")]
    return [f"{name}.{kind}" for name in own for kind in ("weight", "bias")]


def _put(network: nn.Module, name: str, value: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, value)
