"""ODE pairs: the teacher's guided trajectory at a student's noise levels, which the student learns to jump along.

The regression start of a causal student as in CausVid (Yin et al., arXiv:2412.07772) and Self Forcing (Huang et al.,
arXiv:2506.08009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from livetalk import flow
from livetalk.conditions import Conditions
from livetalk.flow import Guidance
from livetalk.models.attention import Attend
from livetalk.models.dit import WanDiT
from OmniAvatar.sampling import sample


def stops(timesteps: Sequence[float], steps: int) -> list[int]:
    """The numbers of the teacher's steps at whose start its level is one of `timesteps` (largest first), then `steps`.

    Of 48 steps, 1000, 937.5, 833.33 and 625 are 0, 12, 24, 36. Raises ValueError for a timestep that is never visited.
    """
    visited = (flow.LEVELS * flow.shifted_sigmas(steps)).tolist()
    found = []
    for timestep in timesteps:
        near = min(range(steps), key=lambda step: abs(visited[step] - timestep))
        if not math.isclose(visited[near], timestep, rel_tol=1e-6):
            raise ValueError(
                f"timestep {timestep:g} is none of the levels of {steps} steps, the nearest is {visited[near]:.6g}: "
                f"give steps as a multiple of {len(timesteps)}, and timesteps of the schedule shifted by {flow.SHIFT:g}"
            )
        found.append(near)
    if found != sorted(set(found)) or not found:
        raise ValueError(f"timesteps {list(timesteps)} must fall: largest first, each once")
    return [*found, steps]


def trajectory(
    dit: WanDiT,
    conditions: Conditions,
    null_text: Tensor,
    noise: Tensor,
    timesteps: Sequence[float],
    *,
    steps: int = 48,
    order: int = 1,
    guidance: Guidance,
    attend: Attend | None = None,
) -> Tensor:
    """States [B, K + 1, F, C, h, w] of one window sampled from `noise` [B, C, F, h, w]: before the steps whose level is
    one of the K `timesteps`, and the result. Latent frame 0 is the clean reference at every level.
    order, attend: as in sample.
    """
    wanted = set(stops(timesteps, steps))
    kept: list[Tensor] = []

    def visit(step: int, state: Tensor) -> None:
        if step in wanted:
            kept.append(rearrange(state, "b c f h w -> b f c h w"))

    sample(dit, conditions, null_text, noise, steps=steps, order=order, guidance=guidance, attend=attend, visit=visit)
    return torch.stack(kept, dim=1)


def clip_noise(seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """[len(indices), *shape] on the CPU; a clip's noise depends on the seed and its index, not on its neighbours."""
    generators = (torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**32) for index in indices)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
