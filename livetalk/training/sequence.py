"""Sequence parallelism: several processes share the tokens of a pass over whole clips.

Each takes some rows of tokens of every latent frame, and all gather each other's keys and values; the transformer knows
nothing of it. All of a group compute the same loss on the gathered result, so that the mean of their gradients, which
a sharded training takes over all processes, is the gradient. B batch, S own tokens, n processes of the group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from livetalk.conditions import Conditions
from livetalk.geometry import PATCH
from livetalk.models.attention import BlockCausal, FullAttention, Grid, View, attention
from livetalk.models.dit import WanDiT
from livetalk.models.rope import rope_table


class Gather(torch.autograd.Function):
    """[B, ...] of every process, one after another [n * B, ...]; its gradient is the sum of all processes' own."""

    @staticmethod
    def forward(context, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        out = value.new_empty(group.size() * value.shape[0], *value.shape[1:])
        dist.all_gather_into_tensor(out, value.contiguous(), group=group)
        return out

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        own = gradient.new_empty(gradient.shape[0] // context.group.size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous(), group=context.group)
        return own, None


@dataclass(frozen=True)
class SharedRows:
    """FullAttention, or with `block` BlockCausal, of a clip of which this process has a share of the rows."""

    group: dist.ProcessGroup
    block: int | None = None
    repeatable: ClassVar[bool] = True

    def open(self, grid: Grid, head_dim: int, device: torch.device) -> View:
        size, per = self.group.size(), grid.tokens_per_frame
        frames = torch.arange(grid.first, grid.first + grid.frames, device=device)
        table = rope_table(frames, size * grid.rows, grid.columns, head_dim)
        own = table.unflatten(0, (grid.frames, size, per))[:, self.group.rank()].flatten(0, 1)
        step, turn = (self.block or grid.frames) * per, grid.turn

        def view(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = turn(q, own), turn(k, own)
            both = Gather.apply(torch.cat([k, v], dim=-1), self.group)
            both = rearrange(both, "(n b) (f s) h d -> b (f n s) h d", n=size, s=per)
            keys, values = both.chunk(2, dim=-1)
            parts = [
                attention(q[:, start : start + step], *(x[:, : size * (start + step)] for x in (keys, values)))
                for start in range(0, q.shape[1], step)
            ]
            return torch.cat(parts, dim=1)

        return view


def require_rows(height: int, group: dist.ProcessGroup | None) -> None:
    """Raises ValueError if the rows of tokens of latents of a height do not divide among the processes."""
    rows, size = height // PATCH, 1 if group is None else group.size()
    if rows % size:
        raise ValueError(f"{rows} rows of tokens do not divide among sequence={size} processes: choose a divisor")


def flow_of(
    dit: WanDiT,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    attend: FullAttention | BlockCausal,
    group: dist.ProcessGroup | None = None,
    *skip: int,
) -> Tensor:
    """dit(x, t, conditions, attend, *skip) [B, 16, F, h, w], computed by all of the group together; by one alone
    without.

    Raises ValueError as require_rows.
    """
    if group is None:
        return dit(x, t, conditions, attend, *skip)
    require_rows(x.shape[-2], group)
    size = group.size()

    def own(value: Tensor) -> Tensor:
        return value.chunk(size, dim=-2)[group.rank()]

    reference = None if conditions.reference is None else own(conditions.reference)
    shared = SharedRows(group, attend.block if isinstance(attend, BlockCausal) else None)
    flow = dit(own(x), t, replace(conditions, reference=reference), shared, *skip)
    return rearrange(Gather.apply(flow, group), "(n b) c f h w -> b c f (n h) w", n=size)
