"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from livetalk.training.sharding import local


class EMA:
    """Averages the floating-point tensors of a module's state, each process its own parts.

    Early steps use a shorter memory, (1 + n) / (10 + n).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay {decay} must lie between 0 and 1")
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        floats, sources = [], []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                floats.append(local(self.weights[name]))
                sources.append(local(value.detach()))
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(floats, sources, 1 - decay)
