"""The part of the picture that a clip shows: still, of the wanted shape, the face of the wanted size in its middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from livetalk.data.curation.limits import Limits

CENTRE = (0.5, 0.5)  # where the middle of the face lies, over width and height
WIDE = 5  # frames that boxes are averaged over: a detector's boxes come in steps


@dataclass(frozen=True)
class Crop:
    """left, top, width, height in pixels of the source. face: the face's height over that of the crop."""

    left: float
    top: float
    width: float
    height: float
    face: float

    @property
    def area(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def moved(self, boxes: np.ndarray, height: int) -> np.ndarray:
        """Boxes [..., 4] of the source in pixels of the crop, scaled to `height`."""
        return (boxes - np.array([self.left, self.top, self.left, self.top])) * (height / self.height)


def steady(boxes: np.ndarray) -> np.ndarray:
    """Boxes [T, 4] without gaps (nan) and steps. At least one is known."""
    index, known = np.arange(len(boxes)), ~np.isnan(boxes[:, 0])
    whole = np.stack([np.interp(index, index[known], boxes[known, side]) for side in range(4)], axis=1)
    padded = np.pad(whole, ((WIDE // 2, WIDE // 2), (0, 0)), mode="edge")
    return np.stack([np.convolve(padded[:, side], np.ones(WIDE) / WIDE, mode="valid") for side in range(4)], axis=1)


def crop_of(boxes: np.ndarray, size: tuple[int, int], shape: tuple[int, int], limits: Limits) -> Crop:
    """For steady boxes [T, 4] in a source of `size` (height, width): a crop of the shape (height, width) of the result,
    within the source."""
    aspect = shape[1] / shape[0]
    face = float(np.median(boxes[:, 3] - boxes[:, 1]))
    height = min(face / limits.face_share, size[0], size[1] / aspect)
    width = height * aspect
    middle = np.median((boxes[:, :2] + boxes[:, 2:]) / 2, axis=0)
    left = float(np.clip(middle[0] - CENTRE[0] * width, 0, size[1] - width))
    top = float(np.clip(middle[1] - CENTRE[1] * height, 0, size[0] - height))
    return Crop(left, top, width, height, face / height)


def faults(crop: Crop, boxes: np.ndarray, shape: tuple[int, int], limits: Limits) -> Iterator[tuple[str, str]]:
    """What is wrong with a crop, as reason and detail."""
    enlarged = shape[0] / crop.height
    if enlarged > limits.enlarge:
        height = crop.face * crop.height
        yield "face size", f"a face of {height:.0f} pixels would be enlarged {enlarged:.1f} times"
    if crop.face > limits.face_most:
        yield "face size", f"the face fills {crop.face:.0%} of the height"
    inside = crop.moved(boxes, shape[0])
    outside = (inside[:, :2] < 0).any(axis=1) | (inside[:, 2:] > (shape[1], shape[0])).any(axis=1)
    if outside.any():
        yield "framing", f"the face leaves the picture in {outside.mean():.0%} of the frames"


def cropped(pictures: Iterable[np.ndarray], crop: Crop, shape: tuple[int, int]) -> np.ndarray:
    """Pictures uint8 [H, W, 3] cropped and scaled: uint8 [T, *shape, 3]."""
    size = shape[::-1]
    scaled = [
        np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, box=crop.area))
        for picture in pictures
    ]
    return np.stack(scaled)
