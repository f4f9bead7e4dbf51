"""Eyes one by one. Judges read both as one figure, by which an eye that shuts alone is half a blink; so each half of a
face is shown to them beside its own mirror image. Heads are cut along the column about which they are most symmetric,
which errs where they are turned far: truth's figures say how much."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.evaluation.metrics import luma

ROWS = (0.23, 0.5)  # of a picture's height: brows to below the eyes, wherever a face of the world turns
COLUMNS = (0.39, 0.61)  # of its width: where the middle of a face is looked for
REACH = 0.2  # of its width: how far from the middle both sides are compared
STEADY = 9  # frames over which the middle is averaged
SHUT = 0.55  # of how far an eye is open otherwise
APART = 0.35  # how much further open the other is, where one is shut alone


def face_middles(frames: Tensor) -> Tensor:
    """[B, T] columns about which the eyes' surroundings of uint8 [B, T, H, W, 3] are most symmetric: their middle lies
    before that column. Brightness of a whole side does not count, so that light from one side moves nothing. Raises
    ValueError for other shapes and for nothing."""
    if frames.ndim != 5 or not frames.numel() or frames.shape[3] < 2:
        raise ValueError(f"eyes are told apart in uint8 [B, T, H, W, 3], 2 wide or more: got {tuple(frames.shape)}")
    height, width = frames.shape[2:4]
    band = luma(frames)[:, :, round(ROWS[0] * height) : round(ROWS[1] * height)]
    reach = max(1, round(REACH * width))
    first, last = max(reach, round(COLUMNS[0] * width)), min(width - reach, round(COLUMNS[1] * width))
    errors = []
    for middle in range(first, last + 1):
        left, right = band[..., middle - reach : middle].flip(-1), band[..., middle : middle + reach]
        left, right = (side - side.mean((-2, -1), keepdim=True) for side in (left, right))
        errors.append((left - right).abs().mean((-2, -1)))
    middles = first + torch.stack(errors).argmin(0).float()
    around = F.pad(middles[:, None], (STEADY // 2, STEADY // 2), mode="replicate")
    return F.avg_pool1d(around, STEADY, 1)[:, 0].round().long()


def mirrored_halves(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Two videos like uint8 [B, T, H, W, 3]: the left half of each face twice, and the right half. What has no mirror
    image within the picture stays."""
    middles = face_middles(frames)[..., None]
    columns = torch.arange(frames.shape[3], device=frames.device).expand(*frames.shape[:2], -1)
    mirror = 2 * middles - 1 - columns
    inside = (mirror >= 0) & (mirror < frames.shape[3])

    def twice(hidden: Tensor) -> Tensor:
        source = torch.where(hidden & inside, mirror, columns)
        return frames.gather(3, source[:, :, None, :, None].expand_as(frames))

    return twice(columns >= middles), twice(columns < middles)


def eye_figures(frames: Tensor, read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Shares of frames [B] in which one eye alone is shut, and both, of uint8 [B, T, H, W, 3]; read: how far the eyes
    of such videos are open, [B, T]."""
    sides = torch.stack([read(half).float() for half in mirrored_halves(frames)])
    sides = sides / sides.quantile(0.9, dim=2, keepdim=True).clamp_min(1e-6)
    less, more = sides.amin(0), sides.amax(0)
    alone, both = (less < SHUT) & (more - less > APART), more < SHUT
    return {"one eye shut alone (share)": alone.float().mean(1), "both eyes shut (share)": both.float().mean(1)}
