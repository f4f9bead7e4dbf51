"""Colours of the head's own vertices: skin, lips, brows, lids, mouth interior; and the eyeballs."""

import numpy as np

from livetalk.data.world.appearance import Look
from livetalk.data.world.face_model import FaceModel, Kind
from livetalk.data.world.mesh import (
    Noise,
    Part,
    distance_to_polyline,
    grid_triangles,
    inside_polygon,
    part,
    smooth_loop,
    smoothstep,
)

MOUTH_FRONT, MOUTH_BACK = np.array([0.36, 0.12, 0.12]), np.array([0.06, 0.015, 0.02])
TEETH, GUM, TONGUE = np.array([0.95, 0.92, 0.86]), np.array([0.66, 0.32, 0.32]), np.array([0.72, 0.34, 0.35])
PUPIL_SIZE = 0.19  # radians of the eyeball
EYE_SEGMENTS = 20


def neck_follow(neutral: np.ndarray) -> np.ndarray:
    """Share of the head's motion that each vertex takes: all of it from the jaw up, none at the collar."""
    return np.where(neutral[:, 2] > 6.5, 1.0, smoothstep(-14.0, -7.5, neutral[:, 1]))


def paint_head(model: FaceModel, look: Look, positions: np.ndarray) -> Part:
    """The head at positions [V, 3]; where colours lie is decided on the neutral head, the same for every identity."""
    neutral = model.neutral.astype(np.float64)
    albedo = np.empty((len(neutral), 3))
    occlusion = np.ones(len(neutral))
    gloss = np.zeros(len(neutral))
    skin = model.kind == Kind.SKIN
    albedo[skin], occlusion[skin], gloss[skin] = _skin(model, look, neutral, skin)
    depth = smoothstep(3.0, 10.8, neutral[:, 2])
    for kind, colour, front, back in (
        (Kind.TEETH, TEETH, 0.95, 0.35),
        (Kind.GUM, GUM, 0.6, 0.2),
        (Kind.TONGUE, TONGUE, 0.75, 0.15),
    ):
        chosen = model.kind == kind
        albedo[chosen] = colour
        occlusion[chosen] = back + (front - back) * smoothstep(7.8, 10.2, neutral[chosen, 2])
    mouth = model.kind == Kind.MOUTH
    albedo[mouth] = MOUTH_BACK + (MOUTH_FRONT - MOUTH_BACK) * (depth[mouth] ** 3)[:, None]
    occlusion[mouth] = 0.7
    socket = model.kind == Kind.EYE_SOCKET
    albedo[socket] = np.array(look.face.skin) * np.array([0.62, 0.42, 0.4])
    gloss[(model.kind == Kind.TEETH)] = 0.15
    return part(positions, model.triangles, albedo, neck_follow(neutral), occlusion, gloss)


def _skin(model: FaceModel, look: Look, neutral: np.ndarray, skin: np.ndarray):
    face, points = look.face, neutral[skin]
    marks = neutral[model.landmarks]
    base = np.array(face.skin)
    rng = np.random.default_rng(look.seed)
    colour = np.tile(base, (len(points), 1)) * (1 + 0.025 * Noise(rng, 9)(points))[:, None]
    occlusion = np.ones(len(points))

    def blend(target, weight):
        colour[:] += (np.asarray(target) - colour) * weight[:, None]

    rosy = np.clip(base * np.array([1.02, 0.78, 0.76]), 0, 1)
    cheeks = np.minimum(*(np.linalg.norm(points - (side * 4.6, -0.8, 8.5), axis=1) for side in (-1, 1)))
    blend(rosy, face.blush * smoothstep(3.2, 0.6, cheeks))
    blend(rosy, 0.35 * smoothstep(1.9, 0.5, np.linalg.norm(points - marks[30], axis=1)))
    ears = smoothstep(7.4, 8.8, np.abs(points[:, 0])) * (points[:, 1] > -3)
    blend(rosy, 0.5 * ears)

    beard = smoothstep(0.0, -2.8, points[:, 1] + 0.16 * np.abs(points[:, 0])) * smoothstep(-9.5, -7.5, points[:, 1])
    blend(np.array(look.hair.colour) * 0.6, face.stubble * beard * smoothstep(0.5, 3.5, points[:, 2]))

    occlusion *= 1 - 0.3 * smoothstep(-6.8, -8.6, points[:, 1]) * smoothstep(8.5, 6.0, points[:, 2])
    for side in (-1, 1):
        eye = marks[42:48] if side > 0 else marks[36:42]
        around = np.linalg.norm((points - eye.mean(0)) * (0.8, 1.1, 0.6), axis=1)
        blend(base * (0.8, 0.68, 0.7), 0.45 * smoothstep(2.3, 0.9, around))
        nostril = np.linalg.norm(points - (marks[33] + (side * 0.62, 0.18, -0.35)), axis=1)
        occlusion *= 1 - 0.75 * smoothstep(0.62, 0.25, nostril)
        _brow(blend, face, points, marks[22:27] if side > 0 else marks[17:22])
        _lids(blend, face, points, eye)
    gloss = 0.05 + 0.05 * smoothstep(2.5, 0.5, np.linalg.norm(points - marks[30], axis=1))
    lips = _lips(blend, face, points, marks, occlusion)
    return colour, occlusion, gloss + face.gloss * lips


def _brow(blend, face, points: np.ndarray, line: np.ndarray) -> None:
    gap, along = distance_to_polyline(points, line - (0, 0.12, 0))
    outer = along if line[-1, 0] > 0 else 1 - along
    width = face.brow_width * (1.05 - 0.45 * outer)
    inner = smoothstep(0.7, 1.5, np.abs(points[:, 0]))
    blend(face.brows, face.brow_weight * inner * smoothstep(1.5, 0.7, gap / width))


def _lids(blend, face, points: np.ndarray, eye: np.ndarray) -> None:
    upper, lower = eye[:4], eye[[0, 5, 4, 3]]
    gap, _ = distance_to_polyline(points, upper)
    blend((0.1, 0.06, 0.06), face.liner * smoothstep(0.3, 0.1, gap))
    gap, _ = distance_to_polyline(points, lower)
    blend((0.35, 0.2, 0.18), 0.45 * face.liner * smoothstep(0.22, 0.05, gap))


def _lips(blend, face, points: np.ndarray, marks: np.ndarray, occlusion: np.ndarray) -> np.ndarray:
    """Paint the lips and the line where they meet; returns their weight [V]."""
    outline = smooth_loop(marks[48:60, :2])
    near = (points[:, 2] > marks[48, 2] - 1.2) & (np.linalg.norm(points - marks[62], axis=1) < 4)
    signed = np.full(len(points), -1.0)
    signed[near] = inside_polygon(points[near, :2], outline)
    lips = smoothstep(-0.1, 0.16, signed)
    blend(face.lips, lips)
    inner = np.concatenate([marks[60:65]])
    gap, _ = distance_to_polyline(points, inner)
    meet = smoothstep(0.34, 0.06, gap)
    blend(np.array(face.lips) * (0.5, 0.36, 0.36), 0.85 * meet)
    behind = smoothstep(0.05, 0.7, marks[62, 2] - points[:, 2]) * (np.abs(points[:, 0]) < 1.6) * lips
    occlusion *= 1 - 0.4 * behind
    return lips


def eyeball(centre: np.ndarray, radius: float, look: Look) -> Part:
    """An eyeball that looks along +z, with rings at the edges of pupil and iris so that they stay sharp."""
    iris = look.face.iris_size
    colour = np.array(look.face.iris)
    white = np.array([0.93, 0.91, 0.89])
    rings = (
        (0.02, (0.02, 0.02, 0.02)),
        (PUPIL_SIZE, (0.02, 0.02, 0.02)),
        (PUPIL_SIZE + 0.03, colour * 1.25),
        (iris * 0.75, colour),
        (iris - 0.05, colour * 0.5),
        (iris, colour * 0.4),
        (iris + 0.04, white),
        (0.9, white),
        (1.3, white * (0.95, 0.86, 0.84)),
        (1.75, white * (0.8, 0.6, 0.58)),
    )
    angle = np.array([ring for ring, _ in rings])[:, None]
    turn = (np.arange(EYE_SEGMENTS) / EYE_SEGMENTS * 2 * np.pi)[None]
    x, y = np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn)
    positions = centre + radius * np.stack([x, y, np.broadcast_to(np.cos(angle), x.shape)], -1).reshape(-1, 3)
    albedo = np.repeat(np.array([c for _, c in rings]), EYE_SEGMENTS, axis=0)
    triangles = grid_triangles(len(rings), EYE_SEGMENTS, closed=True)
    # The upper lid shades the ball.
    shadow = 0.88 - 0.4 * smoothstep(0.0, 0.62, (positions[:, 1] - centre[1]) / radius)
    return part(positions, triangles, np.clip(albedo, 0, 1), occlusion=shadow, gloss=0.1)


def catchlight(centre: np.ndarray, radius: float, look: Look) -> Part:
    """The small reflection of the light in the eye; it stays where it is while the eye turns."""
    middle = np.array(look.light.key_direction) * (0.42, 0.42, 0.42) + (0, 0, 0.9)
    middle = np.clip(middle / np.linalg.norm(middle), (-0.24, 0.1, 0), (0.24, 0.24, 1))
    turn = np.arange(6) / 6 * 2 * np.pi
    rim = np.stack([np.cos(turn), np.sin(turn), np.zeros(6)], 1) * 0.17
    positions = centre + middle / np.linalg.norm(middle) * radius * 1.015 + np.concatenate([np.zeros((1, 3)), rim])
    triangles = [(0, 1 + i, 1 + (i + 1) % 6) for i in range(6)]
    return part(positions, triangles, 1.0, occlusion=2.5)
