"""Colours of the head's own vertices: skin, lips, brows, lids, mouth interior; and the eyeballs."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class FaceMap:
    """Where colours lie on a model's skin, the same for every identity: weights in [0, 1] and distances in units, over
    the S skin vertices; lists hold one array a side, the speaker's left first."""

    skin: np.ndarray  # bool [V]
    points: np.ndarray  # [S, 3]
    follow: np.ndarray  # [V], see neck_follow
    cheeks: np.ndarray
    nose: np.ndarray
    ears: np.ndarray
    beard: np.ndarray
    eye_hollow: np.ndarray
    lips: np.ndarray
    lip_line: np.ndarray
    open: np.ndarray  # share of the light that reaches a vertex
    brow_gap: list[np.ndarray]  # distance over the brow's taper
    upper_lid: np.ndarray
    lower_lid: np.ndarray

    @classmethod
    def of(cls, model: FaceModel) -> "FaceMap":
        neutral = model.neutral.astype(np.float64)
        skin = model.kind == Kind.SKIN
        points, marks = neutral[skin], neutral[model.landmarks]
        x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
        sides = ((1, marks[42:48], marks[22:27]), (-1, marks[36:42], marks[17:22]))
        cheeks = np.minimum(*(np.linalg.norm(points - (side * 4.6, -0.8, 8.5), axis=1) for side in (-1, 1)))
        hollow = [np.linalg.norm((points - eye.mean(0)) * (0.8, 1.1, 0.6), axis=1) for _, eye, _ in sides]
        nostril = [np.linalg.norm(points - (marks[33] + (side * 0.62, 0.18, -0.35)), axis=1) for side, _, _ in sides]
        lips = _lips(points, marks)
        inside = smoothstep(0.05, 0.7, marks[62, 2] - z) * (x < 1.6) * lips
        shade = 1 - 0.3 * smoothstep(-6.8, -8.6, y) * smoothstep(8.5, 6.0, z)
        shade *= (1 - 0.75 * smoothstep(0.85, 0.35, np.minimum(*nostril))) * (1 - 0.4 * inside)
        beard = smoothstep(0.0, -2.8, y + 0.16 * x) * smoothstep(-9.5, -7.5, y) * smoothstep(0.5, 3.5, z)
        return cls(
            skin=skin,
            points=points,
            follow=neck_follow(neutral),
            cheeks=smoothstep(3.2, 0.6, cheeks),
            nose=smoothstep(1.9, 0.5, np.linalg.norm(points - marks[30], axis=1)),
            ears=smoothstep(7.4, 8.8, x) * (y > -3),
            beard=beard,
            eye_hollow=smoothstep(2.3, 0.9, np.minimum(*hollow)),
            lips=lips,
            lip_line=smoothstep(0.34, 0.06, distance_to_polyline(points, marks[60:65])[0]),
            open=shade,
            brow_gap=[_brow_gap(points, line) for _, _, line in sides],
            upper_lid=np.minimum(*(distance_to_polyline(points, eye[:4])[0] for _, eye, _ in sides)),
            lower_lid=np.minimum(*(distance_to_polyline(points, eye[[0, 5, 4, 3]])[0] for _, eye, _ in sides)),
        )


def _brow_gap(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    gap, along = distance_to_polyline(points, line - (0, 0.12, 0))
    outer = along if line[-1, 0] > 0 else 1 - along
    inner = smoothstep(0.7, 1.5, np.abs(points[:, 0]))
    return gap / (1.05 - 0.45 * outer) + 9 * (1 - inner)


def _lips(points: np.ndarray, marks: np.ndarray) -> np.ndarray:
    outline = smooth_loop(marks[48:60, :2])
    near = (points[:, 2] > marks[48, 2] - 1.2) & (np.linalg.norm(points - marks[62], axis=1) < 4)
    signed = np.full(len(points), -1.0)
    signed[near] = inside_polygon(points[near, :2], outline)
    return smoothstep(-0.1, 0.16, signed)


def paint_head(model: FaceModel, where: FaceMap, look: Look, positions: np.ndarray) -> Part:
    """The head at positions [V, 3] in the look's colours."""
    z = model.neutral[:, 2].astype(np.float64)
    albedo = np.empty((len(z), 3))
    occlusion = np.ones(len(z))
    gloss = np.zeros(len(z))
    skin = where.skin
    albedo[skin], occlusion[skin], gloss[skin] = _skin(where, look)
    for kind, colour, front, back in (
        (Kind.TEETH, TEETH, 0.95, 0.35),
        (Kind.GUM, GUM, 0.6, 0.2),
        (Kind.TONGUE, TONGUE, 0.75, 0.15),
    ):
        chosen = model.kind == kind
        albedo[chosen] = colour
        occlusion[chosen] = back + (front - back) * smoothstep(7.8, 10.2, z[chosen])
    mouth = model.kind == Kind.MOUTH
    albedo[mouth] = MOUTH_BACK + (MOUTH_FRONT - MOUTH_BACK) * (smoothstep(3.0, 10.8, z[mouth]) ** 3)[:, None]
    occlusion[mouth] = 0.7
    albedo[model.kind == Kind.EYE_SOCKET] = np.array(look.face.skin) * (0.62, 0.42, 0.4)
    gloss[model.kind == Kind.TEETH] = 0.15
    return part(positions, model.triangles, albedo, where.follow, occlusion, gloss)


def _skin(where: FaceMap, look: Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour [S, 3], occlusion [S] and gloss [S] of the skin."""
    face, base = look.face, np.array(look.face.skin)
    mottle = Noise(np.random.default_rng(look.seed), 9)(where.points)
    colour = base * (1 + 0.025 * mottle)[:, None]

    def blend(target, weight: np.ndarray) -> None:
        colour[:] += (np.asarray(target) - colour) * weight[:, None]

    rosy = np.clip(base * (1.02, 0.78, 0.76), 0, 1)
    blend(rosy, face.blush * where.cheeks)
    blend(rosy, 0.35 * where.nose)
    blend(rosy, 0.5 * where.ears)
    blend(np.array(look.hair.colour) * 0.6, face.stubble * where.beard)
    blend(base * (0.8, 0.68, 0.7), 0.45 * where.eye_hollow)
    for gap in where.brow_gap:
        blend(face.brows, face.brow_weight * smoothstep(1.5, 0.7, gap / face.brow_width))
    blend((0.1, 0.06, 0.06), face.liner * smoothstep(0.3, 0.1, where.upper_lid))
    blend((0.35, 0.2, 0.18), 0.45 * face.liner * smoothstep(0.22, 0.05, where.lower_lid))
    blend(face.lips, where.lips)
    blend(np.array(face.lips) * (0.5, 0.36, 0.36), 0.85 * where.lip_line)
    return colour, where.open, 0.05 + 0.05 * where.nose + face.gloss * where.lips


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
