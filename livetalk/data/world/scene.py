"""A look made into arrays: every vertex and triangle of the person, ready to be posed and shaded frame by frame."""

from dataclasses import dataclass

import numpy as np

from livetalk.data.world.appearance import Look
from livetalk.data.world.backdrop import backdrop
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.mesh import Part, incident_triangles, smoothstep
from livetalk.data.world.paint import FaceMap, catchlight, eyeball, paint_head
from livetalk.data.world.wardrobe import clothes, glasses, hair_cap, long_hair


@dataclass(frozen=True)
class Scene:
    """V vertices, T triangles; the first len(source) vertices move with the model's vertices `source`.

    base [V, 3] head frame, no expression; eyes: (start, stop) of each eyeball's vertices (speaker's left first) with
    eye_centre [2, 3]; follow, occlusion, gloss [V]; albedo [V, 3] linear; triangles [T, 3]; two_sided [T];
    loose [V]: vertices whose normal turns to the viewer; incident [V, most] triangles around each vertex;
    background [H, H, 3] sRGB.
    """

    base: np.ndarray
    source: np.ndarray
    eyes: tuple[tuple[int, int], tuple[int, int]]
    eye_centre: np.ndarray
    follow: np.ndarray
    occlusion: np.ndarray
    gloss: np.ndarray
    albedo: np.ndarray
    triangles: np.ndarray
    two_sided: np.ndarray
    loose: np.ndarray
    incident: np.ndarray
    background: np.ndarray


def identity_shape(model: FaceModel, look: Look) -> np.ndarray:
    """Neutral vertices [V, 3] of this identity, float64. Raises ValueError when the look is for another model."""
    if len(look.identity) != len(model.identity):
        raise ValueError(
            f"look has {len(look.identity)} identity weights, the face model {len(model.identity)}: "
            "sample the look with the model that renders it"
        )
    offset = np.tensordot(look.identity.astype(np.float32), model.identity, 1)
    return model.neutral.astype(np.float64) + offset


def _tucked(positions: np.ndarray) -> np.ndarray:
    """Vertices with the bust's shoulders, back and chest drawn in, so that they stay under the clothes."""
    x, y, z = positions.T
    below = smoothstep(-8.0, -9.5, y) * ((z < 6.5) | (y < -11.5))
    widest = np.where(z < 2, 6.3, 8.0)
    inside = np.stack([np.clip(x, -widest, widest), y, np.maximum(z, -6.2)], 1)
    inside[:, 2] = np.minimum(inside[:, 2], np.interp(y, (-16, -13.5, -11), (0.5, 3.0, 6.0)))
    return positions + (inside - positions) * below[:, None]


def build_scene(model: FaceModel, where: FaceMap, look: Look, pixels: int) -> Scene:
    """Everything that stays the same over a clip of this look; `where` is FaceMap.of(model)."""
    positions = identity_shape(model, look)
    centres = model.eye_centre + np.tensordot(look.identity.astype(np.float64), model.eye_identity, 1)
    parts: list[Part] = [paint_head(model, where, look, _tucked(positions))]
    source = np.arange(len(positions))
    cap = hair_cap(model, look, positions)
    if cap is not None:
        source = np.concatenate([source, cap[0]])
        parts.append(cap[1])
    start = len(source)
    balls = [eyeball(centre, model.eye_radius, look) for centre in centres]
    middle, last = start + len(balls[0].positions), start + sum(len(ball.positions) for ball in balls)
    parts += balls + [catchlight(centre, model.eye_radius, look) for centre in centres]
    crown = positions[:, 1].max() - model.neutral[:, 1].max()
    brow_z = positions[model.landmarks[[19, 24, 27]], 2].max()
    parts += long_hair(look, crown) + glasses(look, centres, brow_z) + clothes(look)
    return _joined(parts, source, ((start, middle), (middle, last)), centres, backdrop(look, pixels))


def _joined(parts: list[Part], source, eyes, centres, background) -> Scene:
    offsets = np.cumsum([0] + [len(p.positions) for p in parts])
    triangles = np.concatenate([p.triangles + offset for p, offset in zip(parts, offsets[:-1], strict=True)])

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts])

    return Scene(
        base=join("positions"),
        source=source,
        eyes=eyes,
        eye_centre=centres,
        follow=join("follow"),
        occlusion=join("occlusion"),
        gloss=join("gloss"),
        albedo=np.clip(join("albedo"), 0, 1) ** 2.2,
        triangles=triangles,
        two_sided=np.concatenate([np.full(len(p.triangles), p.two_sided) for p in parts]),
        loose=np.concatenate([np.full(len(p.positions), p.two_sided) for p in parts]),
        incident=incident_triangles(triangles, offsets[-1]),
        background=background,
    )
