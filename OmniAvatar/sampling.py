"""Many-step sampling of the bidirectional teacher, guided on text and on audio, in windows for long sound.

Shapes: B batch, F latent frames of a window, h w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from livetalk import flow
from livetalk.conditions import Conditions, pin
from livetalk.flow import PLAIN, Guidance
from livetalk.models.attention import Attend, FullAttention
from livetalk.models.dit import Prepared, WanDiT

Noise = Callable[[tuple[int, ...]], Tensor]


class GuidedFlow:
    """The guided flow of one window, callable as (x, t). Predictions that are not needed are not computed."""

    def __init__(
        self,
        dit: WanDiT,
        conditions: Conditions,
        null_text: Tensor,
        frames: int,
        guidance: Guidance,
        levels: list[float],
        attend: Attend | None = None,
    ) -> None:
        sides = (conditions.null(null_text), conditions.without_audio(), conditions)
        guidance.skip.require(dit)
        self.sides = [dit.prepare(side, frames, levels) for side in guidance.chosen(sides)]
        self.dit, self.guidance, self.attend = dit, guidance, attend or FullAttention()
        self.dtype, self.given = conditions.text.dtype, conditions.prefix

    def __call__(self, x: Tensor, level: float) -> Tensor:
        """The network computes in the conditions' precision; the sum of its predictions is in that of the state x."""
        own, sigma = x.to(self.dtype), level / flow.LEVELS

        def told(prepared: Prepared, *skipped: int) -> Tensor:
            return self.dit(own, level, prepared, self.attend, *skipped).to(x.dtype)

        found, skip = [told(side) for side in self.sides], self.guidance.skip
        guided = self.guidance.combined(found, lambda full: x - sigma * full, self.given)
        if scale := skip.at(sigma):
            guided = guided + scale * (found[-1] - told(self.sides[-1], skip.layer))
        return guided


@torch.no_grad()
def sample(
    dit: WanDiT,
    conditions: Conditions,
    null_text: Tensor,
    noise: Tensor,
    *,
    steps: int = 50,
    order: int = 1,
    guidance: Guidance = PLAIN,
    given: Tensor | None = None,
    attend: Attend | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrates the guided flow from `noise` [B, 16, F, h, w] to clean latents by steps over the shifted levels.

    order: 1 for Euler's steps, which the published recipe takes; 2 for those of Adams and Bashforth, which go by the
    flow of the step before as well and cost no pass more. Euler's lose variance: of Gaussian latents, at 50 steps, 10 %
    where the data deviates by 1, 25 % by 0.3; those of order 2 at most 4 %.
    The state is at least float32, since 50 steps in bfloat16 would round it away; the result has the noise's type.
    given: clean latents at the window's start (default: the reference image's latent, if there is one). attend: who
    sees whom (default: all see all). visit: called
    with the number and state of each step before it is taken, and once with (steps, result).
    """
    frames = noise.shape[2]
    given = conditions.reference if given is None else given
    conditions = replace(conditions, first=0, prefix=0 if given is None else given.shape[2])
    sigmas = [*flow.shifted_sigmas(steps).tolist(), 0.0]
    levels = [1000 * sigma for sigma in sigmas[:-1]]
    guided = GuidedFlow(dit, conditions, null_text, frames, guidance, levels, attend)
    size = before = None
    x = noise.to(torch.promote_types(noise.dtype, torch.float32))
    for step, level in enumerate(levels):
        x = pin(x, given)
        if visit:
            visit(step, x)
        ahead, now = sigmas[step + 1] - sigmas[step], guided(x, level)
        slope = now if order == 1 or before is None else now + ahead / (2 * size) * (now - before)
        x, size, before = x + ahead * slope, ahead, now
    x = pin(x, given)
    if visit:
        visit(steps, x)
    return x.to(noise.dtype)


def windows(latents: int, window: int, prefix: int) -> list[int]:
    """Starts of the windows that cover `latents` latent frames, each keeping the last `prefix` of the one before."""
    if not 1 <= prefix < window:
        raise ValueError(f"a window of {window} latent frames cannot keep {prefix} of the one before")
    starts = [0]
    while starts[-1] + window < latents:
        starts.append(starts[-1] + window - prefix)
    return starts


def sample_clip(
    dit: WanDiT,
    conditions: Conditions,
    null_text: Tensor,
    noise: Noise,
    shape: tuple[int, int],
    *,
    window: int = 21,
    prefix: int = 4,
    steps: int = 50,
    order: int = 1,
    guidance: Guidance = PLAIN,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Iterator[Tensor]:
    """Yields the new latents of window after window: `window` of them, then `window - prefix` each.

    conditions cover a whole number of windows (`covered`); shape: latent height and width.
    """
    latents = conditions.audio.shape[1]
    given, batch = conditions.reference, conditions.text.shape[0]
    for start in windows(latents, window, prefix):
        part = conditions.block(start, window)
        x = noise((batch, dit.config.out_channels, window, *shape))
        x = sample(dit, part, null_text, x, steps=steps, order=order, guidance=guidance, given=given, visit=visit)
        yield x if start == 0 else x[:, :, prefix:]
        given = x[:, :, -prefix:]


def covered(latents: int, window: int, prefix: int) -> int:
    """Latent frames of the whole windows that cover `latents`: pad the sound to these with silence."""
    return windows(latents, window, prefix)[-1] + window
