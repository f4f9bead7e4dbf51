"""A drawn face whose mouth follows a sound, and a finder that reads it from the pixels: what dlib is to real faces.

The face is an orange disc with two eyes and a mouth. Everything here works on decoded, cropped and scaled pictures.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects, label

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

SKIN, OTHER_SKIN, DARK = (230, 140, 60), (230, 90, 150), (25, 15, 15)
SIDE = 96


def voice(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Syllables as bursts of a tone: sound [frames * 1000], and how wide the mouth is open [frames] from 0 to 1."""
    rng = np.random.default_rng(seed)
    count = frames * SAMPLES_PER_FRAME
    seconds = np.arange(count) / SAMPLE_RATE
    wide = np.zeros(count)
    at = 0.1
    while at < frames / FPS:
        length, strength = rng.uniform(0.12, 0.3), rng.uniform(0.4, 1.0)
        inside = (seconds >= at) & (seconds < at + length)
        wide[inside] = strength * np.sin(np.pi * (seconds[inside] - at) / length)
        at += length + rng.uniform(0.02, 0.25)
    pcm = 0.3 * wide**2 * np.sin(2 * np.pi * 700 * seconds) + 0.0005 * rng.standard_normal(count)
    return pcm.astype(np.float32), wide[::SAMPLES_PER_FRAME]


def draw(
    wide: float, at: tuple[float, float] = (0.5, 0.5), skin=SKIN, size=(SIDE, SIDE), face: float = 0.5, light: int = 70
):
    """uint8 [H, W, 3]: a face, `face` of the height large, with its middle `at` (x, y) over the sides."""
    height, width = (4 * side for side in size)
    rows, columns = np.mgrid[0:height, 0:width]
    ground = light + 30 * ((rows // 24 + columns // 24) % 2)
    picture = Image.fromarray(np.repeat(ground[..., None], 3, 2).astype(np.uint8))
    pen, r = ImageDraw.Draw(picture), face * height / 2
    x, y = at[0] * width, at[1] * height
    pen.ellipse((x - r, y - r, x + r, y + r), fill=skin)
    for side in (-1, 1):
        eye = (x + side * 0.4 * r, y - 0.3 * r)
        pen.ellipse((eye[0] - 0.14 * r, eye[1] - 0.1 * r, eye[0] + 0.14 * r, eye[1] + 0.1 * r), fill=DARK)
    half = 0.04 * r + 0.2 * r * wide
    pen.ellipse((x - 0.32 * r, y + 0.45 * r - half, x + 0.32 * r, y + 0.45 * r + half), fill=DARK)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))


def film(frames: int, seed: int = 0, **look) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [frames, H, W, 3] of a face that speaks, nodding a little, and its sound."""
    pcm, wide = voice(frames, seed)
    sway = 0.02 * np.sin(np.arange(frames) / 5 + seed)
    return np.stack([draw(w, (0.5, 0.5 + s), **look) for w, s in zip(wide, sway, strict=True)]), pcm


def skin_of(picture: np.ndarray) -> np.ndarray:
    """bool [H, W]: where one of the skins is."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return (red - np.minimum(green, blue) > 50) & (red > 60)


class Faces:
    """A finder (livetalk.faces.Finder) of these faces."""

    def find(self, picture: np.ndarray) -> np.ndarray:
        places = find_objects(label(skin_of(picture))[0])
        boxes = [(c.start, r.start, c.stop, r.stop) for r, c in places]
        boxes = [box for box in boxes if box[3] - box[1] > 0.15 * len(picture)]
        boxes.sort(key=lambda box: box[1] - box[3])
        return np.asarray(boxes, float).reshape(-1, 4)

    def points(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The landmarks that other code looks at: nose bridge, chin, eyes, lips; the others lie on the outline."""
        found = self.find(picture)
        middle = (box[:2] + box[2:]) / 2
        if len(found):
            box = min(found, key=lambda one: np.linalg.norm((one[:2] + one[2:]) / 2 - middle))
        (x, y), r = (box[:2] + box[2:]) / 2, (box[3] - box[1]) / 2
        top, bottom = self.lips(picture, x, y, r)
        turns = np.linspace(0, 2 * np.pi, 68, endpoint=False)
        points = np.stack([x + r * np.cos(turns), y + r * np.sin(turns)], axis=1)
        points[27:36] = [(x, y - 0.3 * r + 0.05 * r * i) for i in range(9)]
        points[8] = x, y + r
        for start, side in ((36, -1), (42, 1)):
            eye = np.array([(-1, 0), (-0.5, -0.7), (0.5, -0.7), (1, 0), (0.5, 0.7), (-0.5, 0.7)])
            points[start : start + 6] = (x + side * 0.4 * r, y - 0.3 * r) + eye * (0.14 * r, 0.1 * r)
        points[48:68] = x, y + 0.45 * r
        points[48], points[54] = (x - 0.32 * r, y + 0.45 * r), (x + 0.32 * r, y + 0.45 * r)
        points[[51, 61, 62, 63]] = [(x + d * r, top) for d in (0, -0.05, 0, 0.05)]
        points[[57, 67, 66, 65]] = [(x + d * r, bottom) for d in (0, -0.05, 0, 0.05)]
        return points

    def lips(self, picture: np.ndarray, x: float, y: float, r: float) -> tuple[float, float]:
        """Upper and lower end of the dark in the middle of the lower face."""
        column, start = int(np.clip(round(x), 0, picture.shape[1] - 1)), int(max(0, y + 0.1 * r))
        light = picture[start : int(y + 0.9 * r), column].astype(float).mean(axis=1)
        dark = np.clip((110 - light) / 80, 0, 1)
        middle, gap = y + 0.45 * r, float(dark.sum())
        return middle - gap / 2, middle + gap / 2


def identity(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The colour of the skin: people of one colour are one."""
    skin = picture[skin_of(picture)]
    return skin.mean(axis=0) / 255 if len(skin) else np.zeros(3)


def brighter(picture: Image.Image) -> Image.Image:
    """An improvement that keeps the person: twice the size."""
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)


def somebody_else(picture: Image.Image) -> Image.Image:
    """An improvement that does not."""
    return Image.fromarray(np.asarray(picture)[..., [0, 2, 1]])


def caption(frames: np.ndarray, pcm: np.ndarray) -> str:
    return f"A disc\nspeaks@@for {len(frames)} frames."
