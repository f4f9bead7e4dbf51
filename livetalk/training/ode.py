"""ODE initialisation: a causal student learns to jump from the teacher's states to the end of its trajectory.

The student is the teacher's network under a block-causal mask, told one timestep a latent frame (CausVid,
arXiv:2412.07772, section 4.2). B batch, F latent frames, K student levels, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from livetalk import flow
from livetalk.data.pairs import OdePairs
from livetalk.geometry import tokens_of
from livetalk.models.attention import BlockCausal
from livetalk.models.dit import WanDiT
from livetalk.training.sequence import flow_of, require_rows

DEV_ERROR = "dev error"


@dataclass(frozen=True)
class OdeConfig:
    """clean_context: blocks are also shown clean, at t = 0, as later blocks will see them; those are not scored.

    The verdict: converged if the dev error fell by less than `tolerance` of itself over the last `share` of the steps.
    """

    clean_context: bool = True
    share: float = 0.25
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.tolerance <= 0:
            raise ValueError(f"share {self.share} must lie between 0 and 1, tolerance {self.tolerance} above 0")


def draw_levels(batch: int, blocks: int, block: int, levels: int, generator: torch.Generator) -> Tensor:
    """[B, F] integers below `levels`, one drawn a block and shared by its `block` latent frames."""
    drawn = torch.randint(levels, (batch, blocks), generator=generator, device=generator.device)
    return drawn.repeat_interleave(block, dim=1)


def mean_over(error: Tensor, scored: Tensor) -> Tensor:
    """Of errors [B, F] where `scored` [B, F]; 0 where that is nowhere."""
    kept = scored.to(error)
    return (error * kept).sum() / kept.sum().clamp_min(1)


def frame_errors(predicted: Tensor, x0: Tensor) -> Tensor:
    """[B, F] float64 mean squared errors of clean latents [B, C, F, h, w]."""
    return (predicted.double() - x0.double()).square().mean(dim=(1, 3, 4))


class OdeObjective:
    """pairs live where the student does; text: features [N, L, text_dim] of their prompts; block: latent frames; group:
    the processes that share the tokens of a pass (sequence.py)."""

    def __init__(
        self,
        student: WanDiT,
        pairs: OdePairs,
        text: Tensor,
        block: int,
        config: OdeConfig,
        group: ProcessGroup | None = None,
    ) -> None:
        require_rows(pairs.states.shape[-2], group)
        self.group = group
        frames = pairs.states.shape[2]
        if frames % block:
            raise ValueError(f"pairs of {frames} latent frames are not whole blocks of {block}: choose another block")
        self.student, self.pairs, self.text, self.config = student, pairs, text, config
        self.block, self.blocks = block, frames // block
        # Index K is the end of the trajectory: clean, at timestep 0.
        self.timesteps = torch.tensor([*pairs.timesteps, 0.0], dtype=torch.float64, device=pairs.states.device)

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def kind(self, step: int) -> Hashable:
        return 0

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.pairs.states.device
        clean = len(self.pairs.timesteps)
        chosen = torch.randint(len(self.pairs), (batch,), generator=generator, device=device)
        count = clean + 1 if self.config.clean_context else clean
        levels = draw_levels(batch, self.blocks, self.block, count, generator)
        predicted, x0 = self.predict(self.student, chosen, levels)
        scored = self.scored(levels)
        error = frame_errors(predicted, x0)
        return mean_over(error, scored), self.by_level(error.detach(), levels, scored)

    def by_level(self, error: Tensor, levels: Tensor, scored: Tensor) -> dict[str, Tensor]:
        """Means of the scored errors [B, F] at each level; 0 for a level that a tiny batch lacks."""
        at = (levels[..., None] == torch.arange(len(self.pairs.timesteps), device=levels.device)) & scored[..., None]
        means = (error[..., None] * at).sum((0, 1)) / at.sum((0, 1)).clamp_min(1)
        return {f"loss at {t:g}": mean for t, mean in zip(self.pairs.timesteps, means, strict=True)}

    def predict(self, student: WanDiT, chosen: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Clean predictions and the truth [B, C, F, h, w] of the chosen pairs [B], frames at their levels [B, F]."""
        frames = torch.arange(levels.shape[1], device=levels.device)
        shown = rearrange(self.pairs.states[chosen[:, None], levels, frames], "b f c h w -> b c f h w").float()
        x0 = rearrange(self.pairs.states[chosen, -1], "b f c h w -> b c f h w").float()
        t = self.timesteps[levels]
        conditions = self.pairs.conditions(chosen, self.text[chosen])
        flowed = flow_of(student, shown, t, conditions, BlockCausal(self.block), self.group)
        return flow.x0_from_flow(shown, flowed, flow.sigma_of(t)), x0

    def scored(self, levels: Tensor) -> Tensor:
        """[B, F]: all but clean blocks and the reference image's frame."""
        first = torch.arange(levels.shape[1], device=levels.device) == 0
        return (levels < len(self.pairs.timesteps)) & ~first

    @property
    def tokens(self) -> int:
        _, _, frames, _, height, width = self.pairs.states.shape
        return tokens_of(frames, height, width)

    @torch.no_grad()
    def errors(self, student: WanDiT, chunk: int) -> dict[str, float]:
        """Mean squared error on all pairs, by level and over all.

        Every block is shown at every level once, its neighbours at the others in turn, as in training: no chance in it.
        """
        count = len(self.pairs.timesteps)
        device = self.timesteps.device
        order = torch.arange(self.blocks, device=device).repeat_interleave(self.block)
        total = torch.zeros(2, count, dtype=torch.float64, device=device)
        for chosen in torch.arange(len(self.pairs), device=device).split(chunk):
            for turn in range(count):
                levels = ((order + turn) % count).expand(len(chosen), -1)
                error, scored = frame_errors(*self.predict(student, chosen, levels)), self.scored(levels)
                total[0].index_add_(0, levels[scored], error[scored])
                total[1].index_add_(0, levels[scored], torch.ones_like(error[scored]))
        by_level = (total[0] / total[1]).tolist()
        named = {f"{DEV_ERROR} at {t:g}": value for t, value in zip(self.pairs.timesteps, by_level, strict=True)}
        return {DEV_ERROR: sum(by_level) / count, **named}


def seam_ratio(latents: Tensor, block: int) -> float:
    """Mean change [B, C, F, h, w] from one latent frame to the next at block seams, over that inside blocks.

    1: no seam is to be seen. The step from the reference image, which stands for one frame, not four, is left out.
    """
    change = (latents[:, :, 2:] - latents[:, :, 1:-1]).abs().double().mean(dim=(0, 1, 3, 4))
    seam = torch.arange(2, latents.shape[2], device=latents.device) % block == 0
    return float(change[seam].mean() / change[~seam].mean())


@dataclass(frozen=True)
class Verdict:
    """converged: None where there are too few evaluations to tell. improvement: share of the error that went away."""

    converged: bool | None
    improvement: float | None
    rule: str

    def __str__(self) -> str:
        if self.converged is None:
            return f"convergence cannot be told: too few evaluations ({self.rule})"
        change = f"{'fell' if self.improvement >= 0 else 'rose'} by {100 * abs(self.improvement):.1f}%"
        if self.converged:
            word = "converged"
        elif self.improvement >= 0:
            word = "not converged, train longer"
        else:
            word = "getting worse, keep the best checkpoint and lower the rate"
        return f"{word}: dev error {change} ({self.rule})"


def verdict(history: Sequence[tuple[int, float]], config: OdeConfig) -> Verdict:
    """Whether the ODE initialisation is good enough, from (step, dev error) in order of steps.

    The last evaluation is compared with the latest one that is at least `share` of the steps older. Where the schedule
    lowers the learning rate to the end, part of the fall is the schedule's, not the number of steps'.
    """
    rule = f"converged: fell by under {100 * config.tolerance:g}% over the last {100 * config.share:g}% of the steps"
    if not history:
        return Verdict(None, None, rule)
    last, error = history[-1]
    before = [value for step, value in history if step <= (1 - config.share) * last]
    if not before:
        return Verdict(None, None, rule)
    improvement = 1 - error / before[-1]
    # A rise beyond the tolerance, or no number at all, is no convergence.
    return Verdict(-config.tolerance <= improvement < config.tolerance, improvement, rule)
