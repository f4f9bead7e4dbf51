"""Pieces of geometry with their colours, and the small helpers that make and join them (numpy)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """Vertices with what shading needs. positions [V, 3] in the head's frame; triangles [T, 3]; albedo [V, 3] sRGB;
    follow [V] share of the head's motion; occlusion [V] (1 = open); gloss [V]; two_sided: triangles without inside."""

    positions: np.ndarray
    triangles: np.ndarray
    albedo: np.ndarray
    follow: np.ndarray
    occlusion: np.ndarray
    gloss: np.ndarray
    two_sided: bool = False


def part(positions, triangles, albedo, follow=1.0, occlusion=1.0, gloss=0.0, two_sided=False) -> Part:
    """A Part whose per-vertex values may be given once for all vertices."""
    count = len(positions)

    def spread(value, *shape):
        return np.broadcast_to(np.asarray(value, np.float64), (count, *shape)).copy()

    return Part(
        positions=np.asarray(positions, np.float64),
        triangles=np.asarray(triangles, np.int64),
        albedo=spread(albedo, 3),
        follow=spread(follow),
        occlusion=spread(occlusion),
        gloss=spread(gloss),
        two_sided=two_sided,
    )


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high (low > high falls instead)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def grid_triangles(rows: int, columns: int, closed: bool) -> np.ndarray:
    """Triangles of a rows x columns grid of vertices; `closed` joins the last column to the first. Counter-clockwise
    from outside for columns that run counter-clockwise as seen from row 0 and rows that lead away."""
    right = columns if closed else columns - 1
    r, c = (index.ravel() for index in np.meshgrid(np.arange(rows - 1), np.arange(right), indexing="ij"))
    here, side = r * columns + c, r * columns + (c + 1) % columns
    below, corner = here + columns, side + columns
    return np.concatenate([np.stack([here, below, corner], 1), np.stack([here, corner, side], 1)])


def vertex_normals(positions: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (positions[triangles[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    total = np.stack(
        [np.bincount(triangles.ravel(), np.repeat(face[:, axis], 3), len(positions)) for axis in range(3)], 1
    )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)


def incident_triangles(triangles: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` vertices the triangles around it, [count, most], padded with len(triangles)."""
    flat = triangles.ravel()
    order = np.argsort(flat, kind="stable")
    degree = np.bincount(flat, minlength=count)
    slot = np.arange(len(flat)) - np.repeat(degree.cumsum() - degree, degree)
    table = np.full((count, max(int(degree.max()), 1)), len(triangles))
    table[flat[order], slot] = order // 3
    return table


def distance_to_polyline(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of points [V, D] to the polyline [P, D], and where along it (0 .. 1) the nearest place is."""
    start, span = line[:-1], np.diff(line, axis=0)
    offset = points[:, None] - start
    along = np.clip((offset * span).sum(-1) / np.maximum((span**2).sum(-1), 1e-9), 0, 1)
    gap = np.linalg.norm(offset - along[..., None] * span, axis=-1)
    nearest = gap.argmin(1)
    rows = np.arange(len(points))
    return gap[rows, nearest], (nearest + along[rows, nearest]) / len(span)


def smooth_loop(points: np.ndarray, steps: int = 4) -> np.ndarray:
    """Closed Catmull-Rom curve through points [P, D]: [P * steps, D]."""
    before, after, beyond = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (before, points, after, beyond))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, points.shape[1])


def inside_polygon(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Signed distance of points [V, 2] to the polygon's outline [P, 2]: positive inside."""
    gap, _ = distance_to_polyline(points, np.concatenate([polygon, polygon[:1]]))
    x, y = points[:, 0, None], points[:, 1, None]
    x0, y0 = polygon.T
    x1, y1 = np.roll(polygon, -1, 0).T
    crosses = (y0 > y) != (y1 > y)
    height = np.where(y1 == y0, 1, y1 - y0)
    odd = (crosses & (x < x0 + (y - y0) / height * (x1 - x0))).sum(1) % 2 == 1
    return np.where(odd, gap, -gap)


class Noise:
    """Smooth noise of place, about -1 .. 1: a sum of plane waves drawn from a generator."""

    def __init__(self, rng: np.random.Generator, wavelength: float, waves: int = 6):
        direction = rng.standard_normal((3, waves))
        frequency = 2 * np.pi / wavelength * rng.uniform(0.6, 1.4, waves)
        self._wave = direction / np.linalg.norm(direction, axis=0) * frequency
        self._phase = rng.uniform(0, 2 * np.pi, waves)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return np.sin(positions @ self._wave + self._phase).sum(-1) / np.sqrt(self._wave.shape[1]) / 1.2
