"""Conditions as nobody curated them: blurred or wrongly cropped reference pictures, prompts that describe no motion.

Which clips are spoiled, and how, is a function of the clip's index and a seed alone; those spoiled at one share are
spoiled at every larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLURRED, CROPPED = "blurred", "cropped"
MOTIONLESS = (
    "A person.",
    "A portrait of a person.",
    "A face in soft light.",
    "Someone in front of a plain wall.",
    "A person in a quiet room.",
    "A talking head in a studio.",
)
BLUR = 0.035  # deviation of the blur over the height of the picture
SIDES = (0.5, 0.65)  # of a crop, over those of the picture
SALT = 0x5B01  # another stream than that of noise, which is drawn by seed and index, too


@dataclass(frozen=True)
class Spoilt:
    """What is done to a clip. kind: of its picture, blurred or cropped; top, left and side: of the crop, over the
    picture's sides; prompt: instead of its own."""

    kind: str
    top: float
    left: float
    side: float
    prompt: str


def spoilt(index: int, seed: int, share: float) -> Spoilt | None:
    """What is done to clip `index` where `share` (0 to 1) of all are spoiled; None: nothing."""
    rng = np.random.default_rng([SALT, seed, index])
    if rng.random() >= share:
        return None
    kind = BLURRED if rng.random() < 0.5 else CROPPED
    side = float(rng.uniform(*SIDES))
    top, left = (_off_centre(rng, 1 - side) for _ in range(2))
    return Spoilt(kind, top, left, side, MOTIONLESS[int(rng.integers(len(MOTIONLESS)))])


def _off_centre(rng: np.random.Generator, room: float) -> float:
    """Where a crop begins: within a quarter of its room from one end, so that the face is cut, never in the middle."""
    near = float(rng.uniform(0, 0.25)) * room
    return near if rng.random() < 0.5 else room - near


def spoil_picture(picture: Tensor, how: Spoilt) -> Tensor:
    """A picture [C, H, W], of any range, spoiled; of the same shape."""
    return blur(picture) if how.kind == BLURRED else crop(picture, how.top, how.left, how.side)


def blur(picture: Tensor) -> Tensor:
    """A picture [C, H, W] under a Gaussian whose deviation is BLUR of its height."""
    deviation = BLUR * picture.shape[-2]
    reach = max(1, round(3 * deviation))
    x = torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype)
    weights = torch.exp(-0.5 * (x / deviation).square())
    weights = (weights / weights.sum()).expand(len(picture), 1, 1, -1)
    padded = F.pad(picture[None], (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights, groups=len(picture))
    return F.conv2d(rows, weights.transpose(2, 3), groups=len(picture))[0]


def crop(picture: Tensor, top: float, left: float, side: float) -> Tensor:
    """The part of a picture [C, H, W] from `top` and `left` on, `side` of its sides large, enlarged to the whole."""
    height, width = picture.shape[-2:]
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    low, first = min(round(top * height), height - rows), min(round(left * width), width - columns)
    part = picture[None, :, low : low + rows, first : first + columns]
    return F.interpolate(part, (height, width), mode="bilinear", align_corners=False)[0]
