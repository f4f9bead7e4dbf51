"""The noise schedule and the algebra of flow matching, as pure functions.

A sample at noise level sigma in [0, 1] is x_t = (1 - sigma) x0 + sigma noise; the network predicts the flow
v = noise - x0 (Lipman et al., arXiv:2210.02747). The timestep a network is told is t = 1000 sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from livetalk.checks import MOST_GUIDANCE, at_least, known_levels

T = TypeVar("T")
SHIFT = 5.0
LEVELS = 1000


def shift_sigma(sigma: Tensor, shift: float = SHIFT) -> Tensor:
    """Moves noise levels towards the noisy end: s sigma / (1 + (s - 1) sigma) (Esser et al., arXiv:2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shifted_sigmas(steps: int, shift: float = SHIFT) -> Tensor:
    """[steps] float64 noise levels from 1 downwards; the level after the last is 0."""
    if steps < 1:
        raise ValueError(f"{steps} sampling steps: at least 1 is needed")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1], shift)


def training_weights(levels: int = LEVELS, shift: float = SHIFT) -> Tensor:
    """[levels] float64 loss weights over the shifted levels: a bell around t = 500, lowered to 0, mean 1."""
    t = LEVELS * shifted_sigmas(levels, shift)
    bell = torch.exp(-2 * ((t - LEVELS / 2) / LEVELS) ** 2)
    bell = bell - bell.min()
    return bell * (levels / bell.sum())


def sigma_of(timestep: Tensor | float) -> Tensor:
    """Noise level of a timestep in [0, 1000]."""
    return torch.as_tensor(timestep, dtype=torch.float64) / LEVELS


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Shapes levels [], [B] or [B, F] for broadcasting against latents [B, C, F, H, W], in float64."""
    if sigma.ndim == 0 and sigma.device.type == "cpu":
        # A level that the host knows is filled in: a copy from its memory would wait for the card.
        return torch.full([1] * like.ndim, sigma.item(), dtype=torch.float64, device=like.device)
    sigma = sigma.to(device=like.device, dtype=torch.float64)
    if sigma.ndim == 2:
        return sigma[:, None, :, None, None]
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t of clean latents and noise [B, C, F, H, W] at levels sigma [], [B] or [B, F]."""
    level = expand(sigma, x0)
    return ((1 - level) * x0 + level * noise).to(x0.dtype)


def flow_target(x0: Tensor, noise: Tensor) -> Tensor:
    return noise - x0


def x0_from_flow(xt: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """Clean prediction x_t - sigma v, computed in float64."""
    return (xt.double() - expand(sigma, xt) * flow.double()).to(xt.dtype)


def flow_from_x0(xt: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Flow (x_t - x0) / sigma, computed in float64; sigma must not be 0."""
    return ((xt.double() - x0.double()) / expand(sigma, xt)).to(xt.dtype)


def guide(null: Tensor, text: Tensor, full: Tensor, text_scale: float, audio_scale: float) -> Tensor:
    """Classifier-free guidance on text and on audio: null + s_text (text - null) + s_audio (full - text).

    null has the negative prompt and no audio, text the prompt and no audio, full both. Scale 1 and 1 is the plain
    conditional prediction `full`. Linear, so it serves flows and clean predictions alike.
    """
    return null + text_scale * (text - null) + audio_scale * (full - text)


def within(sigma: Tensor | float, levels: tuple[float, float]) -> Tensor | bool:
    """Which noise levels lie from the lower to the higher of two."""
    return (levels[0] <= sigma) & (sigma <= levels[1])


@dataclass(frozen=True)
class SkipLayer:
    """Skip-layer guidance: `scale` times the way from what a network says without its layer `layer`, which sees the
    conditions and is a little worse, to what it says (autoguidance, Karras et al., arXiv:2406.02507). levels: the
    lowest and the highest noise level (0 clean, 1 noise) at which it is done; scale 0: never."""

    scale: float = 0.0
    layer: int = 3
    levels: tuple[float, float] = (0.4, 0.75)

    def __post_init__(self) -> None:
        at_least(0, self, "scale", "layer")
        known_levels("skip.levels", self.levels)

    def at(self, sigma: Tensor | float) -> Tensor | float:
        """The scale at noise levels, of their shape."""
        return self.scale * within(sigma, self.levels)

    def require(self, network: nn.Module) -> None:
        """Raises ValueError unless a transformer has the layer that is to be left out, if one is."""
        if self.scale and self.layer >= len(network.blocks):
            raise ValueError(f"skip.layer={self.layer}: the network has layers 0 to {len(network.blocks) - 1}")


def scaling_part(change: Tensor, clean: Tensor) -> Tensor:
    """The part of a change [B, C, F, h, w] that only scales how each place of clean latents moves, less or more: its
    projection, place by place, on what the latents deviate by from their mean over time."""
    motion = clean - clean.mean(2, keepdim=True)
    size = motion.square().sum((1, 2), keepdim=True).clamp_min(1e-4)
    return (change * motion).sum((1, 2), keepdim=True) / size * motion


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance on text and on audio (`guide`); scales of 1 and 1 give the plain conditional prediction.

    parallel: how much is kept of what guidance on audio does to the size of motion, 1 all of it (scaling_part).
    Without it the sound is followed as closely, but mouths do not open wider than people's (after adaptive projected
    guidance, Sadat et al., arXiv:2410.02416). It is read from all frames of a clip, and takes the text-only pass even
    where both scales are the same. skip: guidance by the network without one of its layers, a pass more.
    """

    text: float = 1.0
    audio: float = 1.0
    parallel: float = 1.0
    skip: SkipLayer = SkipLayer()

    def __str__(self) -> str:
        """As reports and columns say it."""
        alike = self.text == self.audio
        told = f"guidance {self.audio:g}" if alike else f"guidance {self.text:g} on text and {self.audio:g} on sound"
        told += f", {self.parallel:g} of its parallel part" if self._projects else ""
        return told + (f", layer {self.skip.layer} skipped {self.skip.scale:g}" if self.skip.scale else "")

    @property
    def weights(self) -> tuple[float, float, float]:
        """What the null, the text-only and the full prediction count in the guided one; they add up to 1."""
        return 1 - self.text, self.text - self.audio, self.audio

    @property
    def needed(self) -> tuple[bool, bool, bool]:
        """Which of the null, the text-only and the full prediction have to be computed."""
        null, text, full = (weight != 0 for weight in self.weights)
        return null, text or self._projects, full or self._projects or self.skip.scale != 0

    def chosen(self, sides: Sequence[T]) -> list[T]:
        """Those that are `needed` of what belongs to the null, the text-only and the full prediction."""
        return [side for side, needed in zip(sides, self.needed, strict=True) if needed]

    @property
    def passes(self) -> int:
        """Passes of the network that a guided prediction takes."""
        return sum(self.needed) + (self.skip.scale != 0)

    def combined(self, predicted: Sequence[Tensor], clean: Callable[[Tensor], Tensor], given: int) -> Tensor:
        """The guided prediction of those that are `needed` [B, C, F, h, w], in order, flows or clean ones, before a
        layer is skipped. clean: makes a prediction a clean one; given: latent frames at its start that are not
        predicted but known."""
        there = dict(zip(self.chosen(range(3)), predicted, strict=True))
        guided = sum(weight * there[side] for side, weight in enumerate(self.weights) if weight != 0)
        if self._projects:
            change = (1 - self.parallel) * (1 - self.audio) * (there[2] - there[1])
            scaled = scaling_part(change[:, :, given:], clean(there[2])[:, :, given:])
            guided = torch.cat([guided[:, :, :given], guided[:, :, given:] + scaled], dim=2)
        return guided

    @property
    def _projects(self) -> bool:
        return self.parallel != 1 and self.audio != 1


PLAIN = Guidance()


@dataclass(frozen=True)
class Guided:
    """Settings of a guided teacher, in words of a config: see Guidance."""

    text_scale: float = 2.0
    audio_scale: float = 2.0
    parallel: float = 1.0
    skip: SkipLayer = SkipLayer()

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.text_scale, self.audio_scale, self.parallel, self.skip)

    def check_guidance(self, group: str = "") -> None:
        """Raises ValueError for scales below 0 or beyond MOST_GUIDANCE, and for a `parallel` that is no share."""
        for name in ("text_scale", "audio_scale"):
            if not 0 <= getattr(self, name) <= MOST_GUIDANCE:
                raise ValueError(f"{group}{name} {getattr(self, name)}: choose a number from 0 to {MOST_GUIDANCE:g}")
        if not 0 <= self.parallel <= 1:
            raise ValueError(f"{group}parallel {self.parallel}: it is a share, choose a number from 0 to 1")
