"""What is done to a frame before it is sent: enlarged to a size in which it can be encoded well, and marked."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "AI-generated"
MARGIN = 0.02
"""From the corner to the mark, of the picture's height; the mark's letters are twice as high."""
STRENGTH = 0.62
"""Of the dark ground under the letters."""


class Finish:
    """frame uint8 [H, W, 3] -> uint8 [h, w, 3], contiguous, at least `size` high and wide, marked in a corner.

    Enlargement is by a whole number, so that every frame of a size is treated alike.
    """

    def __init__(self, height: int, width: int, size: int, mark: bool) -> None:
        factor = max(1, -(-size // min(height, width)))
        self.height, self.width = height * factor, width * factor
        self._mark = _mark(self.height) if mark else None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        if frame.shape[:2] != (self.height, self.width):
            picture = Image.fromarray(frame).resize((self.width, self.height), Image.Resampling.BICUBIC)
            frame = np.array(picture)
        if self._mark is None:
            return np.ascontiguousarray(frame)
        frame = np.array(frame)
        light, weight = self._mark
        height, width = min(weight.shape[0], self.height), min(weight.shape[1], self.width)
        margin = round(MARGIN * self.height)
        corner = frame[self.height - margin - height : self.height - margin, margin : margin + width]
        light, weight = (part[: corner.shape[0], : corner.shape[1]] for part in (light, weight))
        corner[:] = (corner * (1 - weight) + light).astype(np.uint8)
        return frame


def _mark(height: int) -> tuple[np.ndarray, np.ndarray]:
    """Light to add and weight to take from a picture of that height, [h, w, 1] each: white letters on a dark pill."""
    letters = max(8, round(2 * MARGIN * height))
    font = ImageFont.load_default(letters)
    left, top, right, bottom = font.getbbox(TEXT)
    pad = round(letters * 0.45)
    size = (right - left + 2 * pad, bottom - top + 2 * pad)
    ground, text = (Image.new("L", size, 0) for _ in range(2))
    ImageDraw.Draw(ground).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), size[1] / 2, fill=255)
    ImageDraw.Draw(text).text((pad - left, pad - top), TEXT, fill=255, font=font)
    ink = np.asarray(text, np.float32)[..., None] / 255
    weight = np.maximum(np.asarray(ground, np.float32)[..., None] / 255 * STRENGTH, ink)
    return 255 * ink, weight
