"""What is behind the speaker: a still picture of soft shapes, out of focus like a room behind a video call."""

import numpy as np

from livetalk.data.world.appearance import Look
from livetalk.data.world.mesh import smoothstep


def backdrop(look: Look, pixels: int) -> np.ndarray:
    """The background of a look: float32 sRGB [pixels, pixels, 3] in [0, 1]."""
    rng = np.random.default_rng(look.seed + 4)
    v, u = np.meshgrid((np.arange(pixels) + 0.5) / pixels, (np.arange(pixels) + 0.5) / pixels, indexing="ij")
    wall, first, second = (np.array(colour) for colour in look.backdrop_colours)
    toward = rng.uniform(0, 2 * np.pi)
    slope = (u - 0.5) * np.cos(toward) + (v - 0.5) * np.sin(toward)
    image = wall * (1 + 0.3 * slope[..., None])
    painter = _PAINTERS[look.backdrop]
    image, blur = painter(image, u, v, wall, first, second, rng)
    image = _blur(image, max(1, round(blur * pixels)))
    vignette = 1 - 0.28 * ((u - 0.5) ** 2 + (v - 0.5) ** 2)
    return np.clip(image * vignette[..., None], 0, 1).astype(np.float32)


def _over(image: np.ndarray, colour, weight: np.ndarray) -> np.ndarray:
    return image + (np.asarray(colour) - image) * weight[..., None]


def _box(u, v, left, top, right, bottom) -> np.ndarray:
    return ((u >= left) & (u < right) & (v >= top) & (v < bottom)).astype(np.float64)


def _gradient(image, u, v, wall, first, second, rng):
    glow = np.exp(-(((u - rng.uniform(0, 1)) ** 2 + (v - rng.uniform(0, 0.7)) ** 2) / 0.18))
    return _over(image, wall * 0.5 + first * 0.5, 0.6 * glow), 0.02


def _window(image, u, v, wall, first, second, rng):
    left, top = rng.choice((-0.08, 0.62)) + rng.uniform(-0.04, 0.04), rng.uniform(0.0, 0.12)
    width, height = rng.uniform(0.34, 0.46), rng.uniform(0.4, 0.56)
    image = _over(image, wall * 0.78, _box(u, v, left - 0.02, top - 0.02, left + width + 0.02, top + height + 0.02))
    sky = np.array([0.8, 0.9, 0.98]) * rng.uniform(0.9, 1.02)
    image = _over(image, sky, _box(u, v, left, top, left + width, top + height))
    land = _box(u, v, left, top + height * rng.uniform(0.55, 0.8), left + width, top + height)
    image = _over(image, np.array([0.5, 0.64, 0.46]), land)
    for x in (left + width / 2,):
        image = _over(image, wall * 0.78, _box(u, v, x - 0.012, top, x + 0.012, top + height))
    image = _over(image, wall * 0.78, _box(u, v, left, top + height * 0.45, left + width, top + height * 0.45 + 0.024))
    return image, 0.012


def _shelf(image, u, v, wall, first, second, rng):
    wood = np.array([0.42, 0.3, 0.21]) * rng.uniform(0.7, 1.4)
    for row in np.arange(rng.uniform(0.08, 0.2), 0.95, 0.26):
        edge = 0.0
        while edge < 1:
            width = rng.uniform(0.025, 0.07)
            book = rng.uniform(0.15, 0.8, 3) * 0.6 + (first if rng.random() < 0.5 else second) * 0.4
            if rng.random() < 0.82:
                image = _over(image, book, _box(u, v, edge, row + rng.uniform(0.02, 0.09), edge + width, row + 0.22))
            edge += width
        image = _over(image, wood, _box(u, v, 0, row + 0.22, 1, row + 0.25))
    return image, 0.014


def _lamps(image, u, v, wall, first, second, rng):
    image = image * 0.5
    for _ in range(rng.integers(6, 14)):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 0.9), rng.uniform(0.03, 0.09)
        disc = smoothstep(radius, radius * 0.85, np.hypot(u - x, v - y))
        light = np.array([1.0, rng.uniform(0.65, 0.95), rng.uniform(0.4, 0.8)])
        image = _over(image, light, disc * rng.uniform(0.25, 0.65))
    return image, 0.008


def _panels(image, u, v, wall, first, second, rng):
    edges = np.sort(rng.uniform(0, 1, 3))
    for left, right, colour in zip(edges[:-1], edges[1:], (first, second), strict=True):
        image = _over(image, wall * 0.55 + colour * 0.45, _box(u, v, left, -1, right, 2))
    floor = rng.uniform(0.72, 0.9)
    return _over(image, wall * 0.6, _box(u, v, 0, floor, 1, 2)), 0.016


def _picture(image, u, v, wall, first, second, rng):
    left, top = rng.choice((0.02, 0.66)) + rng.uniform(-0.02, 0.02), rng.uniform(0.06, 0.2)
    width, height = rng.uniform(0.24, 0.32), rng.uniform(0.26, 0.4)
    image = _over(image, (0.16, 0.13, 0.12), _box(u, v, left, top, left + width, top + height))
    image = _over(image, first, _box(u, v, left + 0.02, top + 0.02, left + width - 0.02, top + height - 0.02))
    hill = (v > top + height * (0.6 + 0.2 * np.sin(9 * u + rng.uniform(0, 6)))).astype(np.float64)
    inner = _box(u, v, left + 0.02, top + 0.02, left + width - 0.02, top + height - 0.02)
    image = _over(image, second, hill * inner)
    x, leaf = (0.9 if left < 0.5 else 0.1), np.array([0.24, 0.42, 0.26]) * rng.uniform(0.7, 1.2)
    for _ in range(9):
        tilt, size = rng.uniform(-1.1, 1.1), rng.uniform(0.12, 0.24)
        a = (u - x) * np.cos(tilt) + (v - 0.8) * np.sin(tilt)
        b = -(u - x) * np.sin(tilt) + (v - 0.8) * np.cos(tilt) + size
        image = _over(image, leaf * rng.uniform(0.8, 1.2), ((a / 0.035) ** 2 + (b / size) ** 2 < 1).astype(np.float64))
    return image, 0.01


_PAINTERS = {
    "gradient": _gradient,
    "window": _window,
    "shelf": _shelf,
    "lamps": _lamps,
    "panels": _panels,
    "picture": _picture,
}


def _blur(image: np.ndarray, radius: int) -> np.ndarray:
    """Two box blurs along each axis, edges repeated: a soft tent."""
    size = 2 * radius + 1
    for axis in (0, 1, 0, 1):
        pad = [(radius + 1, radius) if a == axis else (0, 0) for a in range(3)]
        total = np.pad(image, pad, mode="edge").cumsum(axis)
        count = image.shape[axis]
        image = (total.take(np.arange(size, size + count), axis) - total.take(np.arange(count), axis)) / size
    return image
