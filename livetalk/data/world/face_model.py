"""The morphable head: neutral shape, identities, expressions, landmarks and eyes, at the resolution the world needs.

Units are those of ICT-FaceKit (about one centimetre); x points to the speaker's left, y up, z out of the face.
"""

import zipfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from livetalk.data.world.channels import CHANNEL, EXPRESSIONS
from livetalk.data.world.simplify import simplify


class Kind(IntEnum):
    """What a vertex of the head belongs to."""

    SKIN = 0
    MOUTH = 1
    EYE_SOCKET = 2
    GUM = 3
    TONGUE = 4
    TEETH = 5


# Index ranges of ICT-FaceKit's vertices; the packed files keep them.
_FACE_END = 9409
_HEAD_END = 11248
_SOCKETS_END = 14062
_NEEDED = ("N", "I", "E", "F", "M", "lm", "mats", "ex")
TEETH_BACK = 0.3
UPPER_TEETH_DOWN = 0.35
_REMEDY = "build it with scripts/build_face_model.sh from a clone of the public ICT-FaceKit repository"


@dataclass(frozen=True)
class FaceModel:
    """A head as arrays: V vertices, K identities, T triangles.

    neutral [V, 3], identity [K, V, 3] (weights ~ N(0, 1)), expression [53, V, 3] (weights in [0, 1], rows in the order
    of EXPRESSIONS), triangles [T, 3] (counter-clockwise from outside), kind [V] (Kind), landmarks [68] (vertex
    indices, the usual order), eye_centre [2, 3] (speaker's left first), eye_radius, eye_identity [K, 2, 3].
    """

    neutral: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    kind: np.ndarray
    landmarks: np.ndarray
    eye_centre: np.ndarray
    eye_radius: float
    eye_identity: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> "FaceModel":
        """Read a packed ICT-FaceKit file (whole or small) and simplify it to some thousand triangles.

        Raises ValueError when the file is missing, unreadable or not such a model.
        """
        raw = _read(Path(path))
        materials = [str(name) for name in raw["mats"]]
        part = np.array(materials)[raw["M"]]
        eyes = [_fit_sphere(raw["N"], raw["F"][part == f"M_Sclera{side}"]) for side in ("Left", "Right")]
        eye_vertices = [np.unique(raw["F"][part == f"M_Sclera{side}"]) for side in ("Left", "Right")]
        kept, triangles, kind = _simplified(raw, part)
        neutral = raw["N"][kept]
        teeth = kind[kept] == Kind.TEETH
        # Simplified lips are a little thinner: without this, teeth show between closed lips.
        neutral[teeth, 2] -= TEETH_BACK
        # A hint of the upper teeth below the lip makes an open mouth easier to read.
        upper = teeth & (np.abs(raw["E"][CHANNEL["jawOpen"], kept, 1]) < 0.1)
        neutral[upper, 1] -= UPPER_TEETH_DOWN
        return cls(
            neutral=neutral,
            identity=np.ascontiguousarray(raw["I"][:, kept]),
            expression=np.ascontiguousarray(raw["E"][:, kept]),
            triangles=triangles,
            kind=kind[kept],
            landmarks=np.searchsorted(kept, raw["lm"]),
            eye_centre=np.stack([centre for centre, _ in eyes]).astype(np.float32),
            eye_radius=float(np.mean([radius for _, radius in eyes])),
            eye_identity=np.stack([raw["I"][:, v].mean(1) for v in eye_vertices], 1),
        )

    @classmethod
    def tiny(cls) -> "FaceModel":
        """A small head made in code, for tests and debug runs: jaw, lips, smile and lids move, nothing else does."""
        from livetalk.data.world.tiny_head import build

        return cls(**build())


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"face model {str(path)!r} does not exist: {_REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            raw = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"face model {str(path)!r} is not a readable .npz file ({error}): {_REMEDY}") from error
    missing = [name for name in _NEEDED if name not in raw]
    if missing:
        raise ValueError(f"face model {str(path)!r} lacks the arrays {', '.join(missing)}: {_REMEDY}")
    if tuple(map(str, raw["ex"])) != EXPRESSIONS:
        raise ValueError(f"face model {str(path)!r} has other expressions than the 53 of EXPRESSIONS: {_REMEDY}")
    if len(raw["N"]) < _SOCKETS_END or raw["F"].max() >= len(raw["N"]) or raw["lm"].shape != (68,):
        raise ValueError(f"face model {str(path)!r} has {len(raw['N'])} vertices, not ICT-FaceKit's layout: {_REMEDY}")
    for name in ("I", "E"):
        # The small file stores 8-bit offsets with one scale a shape.
        scale = raw[f"{name}_scale"][:, None, None] if f"{name}_scale" in raw else 1
        raw[name] = (raw[name].astype(np.float32) * scale).astype(np.float32)
    raw["F"] = raw["F"].astype(np.int64)
    raw["lm"] = raw["lm"].astype(np.int64)
    return raw


def _fit_sphere(positions: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, float]:
    points = positions[np.unique(triangles)].astype(np.float64)
    system = np.concatenate([2 * points, np.ones((len(points), 1))], 1)
    solution = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]
    centre = solution[:3]
    return centre, float(np.sqrt(solution[3] + centre @ centre))


def _kinds(raw: dict[str, np.ndarray], part: np.ndarray) -> np.ndarray:
    """Kind of each vertex from its material and index."""
    neutral = raw["N"]
    kind = np.full(len(neutral), Kind.SKIN, np.uint8)
    sockets = np.arange(_HEAD_END, _SOCKETS_END)
    kind[sockets] = np.where(neutral[sockets, 1] < 1, Kind.MOUTH, Kind.EYE_SOCKET)
    teeth = np.unique(raw["F"][part == "M_Teeth"])
    soft = np.unique(raw["F"][part == "M_GumsTongue"])
    kind[teeth] = Kind.TEETH
    # Gums and tongue are one material: what lies close to a tooth is gum.
    gap = np.stack([np.linalg.norm(neutral[teeth[::4]] - point, axis=1).min() for point in neutral[soft]])
    inside = np.abs(neutral[soft, 0]) < 1.5
    kind[soft] = np.where((gap < 0.55) | ~inside, Kind.GUM, Kind.TONGUE)
    return kind


def _spacing(neutral: np.ndarray, kind: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Wanted vertex spacing [V] in model units: a pixel of a 128-pixel frame is about a quarter of a unit."""
    x, y, z = np.abs(neutral[:, 0]), neutral[:, 1], neutral[:, 2]
    spacing = np.full(len(neutral), 1.3)
    spacing[(z > 2) & (y > -8.5)] = 0.75  # the front of the head
    spacing[(x > 6.9) & (y > -3) & (y < 7) & (z > -3.5) & (z < 4.5)] = 0.6  # ears
    spacing[(x < 2) & (y > -2) & (y < 4) & (z > 9.5)] = 0.45  # nose
    rings = ((landmarks[36:48], 0.75, 0.28), (landmarks[48:68], 0.7, 0.28), (landmarks[17:27], 1, 0.36))
    for points, reach, fine in rings:
        gap = np.min([np.linalg.norm(neutral - neutral[p], axis=1) for p in points], axis=0)
        spacing[gap < reach] = np.minimum(spacing[gap < reach], fine)
    coarse = {Kind.MOUTH: 0.5, Kind.EYE_SOCKET: 1.0, Kind.GUM: 0.7, Kind.TONGUE: 0.6, Kind.TEETH: 0.38}
    for which, value in coarse.items():
        spacing[kind == which] = value
    return spacing


def _simplified(raw: dict[str, np.ndarray], part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kept vertices, triangles over them, and the kind of every vertex of the whole mesh."""
    neutral, landmarks = raw["N"], raw["lm"]
    kind = _kinds(raw, part)
    wanted = np.isin(part, ("M_Face", "M_BackHead", "M_GumsTongue", "M_Teeth"))
    # Molars and the gums behind them are never seen in a video call.
    hidden = np.isin(kind, (Kind.TEETH, Kind.GUM)) & (neutral[:, 2] < 7)
    wanted &= ~hidden[raw["F"]].any(1)
    # In the open pose lips are far apart, so that no grid cell spans both.
    pose = neutral + raw["E"][CHANNEL["jawOpen"]]
    for name in ("eyeWide_L", "eyeWide_R"):
        pose = pose + raw["E"][CHANNEL[name]]
    spacing = _spacing(neutral, kind, landmarks)
    kept, triangles = simplify(pose.astype(np.float64), raw["F"][wanted], spacing, np.unique(landmarks))
    return kept, triangles, kind
