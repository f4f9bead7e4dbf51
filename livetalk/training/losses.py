"""Losses as pure functions on latents [B, C, F, h, w]; noise levels are arguments, never looked up.

Latent frame 0 of a clip is the reference image: it stays in the DMD mean and is left out of the critic's flow loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk import flow
from livetalk.checks import at_least, known_levels

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Places:
    """Where in a picture errors count more: boxes (top, left, bottom, right) as shares of its sides, which hold lids
    and lips wherever the face of a clip turns, and how much more, 0: as the rest."""

    lids: Box = (0.25, 0.18, 0.44, 0.82)
    lips: Box = (0.56, 0.25, 0.82, 0.75)
    lids_more: float = 0.0
    lips_more: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, self, "lids_more", "lips_more")
        for name in ("lids", "lips"):
            top, left, bottom, right = getattr(self, name)
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                raise ValueError(f"{name}={getattr(self, name)}: give top, left, bottom and right, shares from 0 to 1")

    def weight(self, height: int, width: int, device: torch.device, lids_more: Tensor | None = None) -> Tensor:
        """[h, w] of mean 1, each place by how much of it the boxes cover; [B, 1, F, h, w], of mean 1 over each clip, of
        clips in whose latent frames lids count lids_more [B, F] more (F 1: in all)."""
        rows, columns = (torch.arange(side, device=device) / side for side in (height, width))

        def covered(box: Box) -> Tensor:
            top, left, bottom, right = box
            return torch.outer(
                height * ((rows + 1 / height).clamp_max(bottom) - rows.clamp_min(top)).clamp_min(0),
                width * ((columns + 1 / width).clamp_max(right) - columns.clamp_min(left)).clamp_min(0),
            )

        more = self.lids_more if lids_more is None else lids_more[:, None, :, None, None]
        weight = 1 + more * covered(self.lids) + self.lips_more * covered(self.lips)
        return weight / weight.mean((-2, -1) if lids_more is None else (2, 3, 4), keepdim=True)


@dataclass(frozen=True)
class NoisedPlaces(Places):
    """Places in clips that are noised. shut_more: how much more lids count, beside lids_more, in latent frames in which
    they are shut: a blink is a twentieth of what lids cost, so that a small network does without. lids_at: the lowest
    and the highest noise level (0 clean, 1 noise) at which all that is done; where nothing of a blink can be seen,
    shut_more makes one likelier than it is."""

    shut_more: float = 0.0
    lids_at: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "shut_more")
        known_levels("lids_at", self.lids_at)

    def weight_at(self, height: int, width: int, sigma: Tensor, shut: Tensor | None = None) -> Tensor:
        """[B, 1, F, h, w] of noise levels [B] and of shut [B, F], where lids are, which shut_more needs; F 1 without
        it: see `weight`."""
        more = torch.full_like(sigma[:, None], self.lids_more, dtype=torch.float32)
        if self.shut_more:
            more = more + self.shut_more * shut
        return self.weight(height, width, sigma.device, more * flow.within(sigma, self.lids_at)[:, None])


def moving_weight(clip: Tensor, strength: float, most: float = 8.0) -> Tensor:
    """[B, 1, 1, h, w] of mean 1: places of a clip [B, C, F, h, w] that change over time count more.

    Lips and lids cover a small part of a picture that otherwise hardly moves.
    """
    change = (clip - clip.mean(2, keepdim=True)).abs().mean((1, 2), keepdim=True).float()
    weight = 1 + strength * (change / change.mean((3, 4), keepdim=True).clamp_min(1e-3)).clamp_max(most)
    return weight / weight.mean((3, 4), keepdim=True)


def flow_loss(
    predicted: Tensor,
    x0: Tensor,
    noise: Tensor,
    skip: Tensor | None = None,
    moving: float = 0.0,
    place_weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the flow. skip: [B, F] boolean, latent frames left out; moving: see moving_weight;
    place_weight: [h, w] or [B, 1, 1 or F, h, w], how much each counts (Places.weight)."""
    error = (predicted.float() - flow.flow_target(x0, noise).float()).square()
    weight = moving_weight(x0, moving) * (1 if place_weight is None else place_weight)
    error = (error * (weight / weight.mean((2, 3, 4), keepdim=True))).mean(dim=(1, 3, 4))
    if skip is None:
        return error.mean()
    kept = (~skip).to(error)
    return (error * kept).sum() / kept.sum()


def dmd_gradient(generated: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """Distribution-matching gradient (Yin et al., arXiv:2405.14867, eq. 7-8), NaN set to 0.

    generated, fake_x0 (critic), real_x0 (guided teacher): any [B, ...]; normalised a sample by the mean distance
    between the sample and the teacher's prediction.
    """
    scale = (generated - real_x0).abs().flatten(1).mean(1).reshape(-1, *[1] * (generated.ndim - 1))
    return torch.nan_to_num((fake_x0 - real_x0) / scale, nan=0.0)


def dmd_loss(generated: Tensor, gradient: Tensor) -> Tensor:
    """0.5 mean (x - stopgrad(x - g))^2 in float64: its gradient with respect to x is g / number of elements."""
    target = (generated.double() - gradient.double()).detach()
    return 0.5 * (generated.double() - target).square().mean()


def critic_input(generated: Tensor, noise: Tensor, sigma: Tensor, reference: Tensor) -> Tensor:
    """Generated latents noised to `sigma` [B] or [B, F], latent frame 0 replaced by the reference [B, C, 1, h, w]."""
    noisy = flow.add_noise(generated, noise, sigma)
    return torch.cat([reference.to(noisy), noisy[:, :, 1:]], dim=2)


def critic_flow_loss(fake_x0: Tensor, noisy: Tensor, generated: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error between the critic's flow, from its clean prediction, and noise - generated; frames 1 on."""
    return critic_flow_errors(fake_x0, noisy, generated, noise, sigma).mean()


def critic_flow_errors(fake_x0: Tensor, noisy: Tensor, generated: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """critic_flow_loss a sample: [B] in float64."""
    predicted = flow.flow_from_x0(noisy, fake_x0, sigma)
    error = predicted[:, :, 1:].double() - flow.flow_target(generated, noise)[:, :, 1:].double()
    return error.square().flatten(1).mean(1)
