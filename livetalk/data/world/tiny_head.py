"""A small head made in code: an ellipsoid with a mouth slit, lids, eyes and teeth, in the units of the real model.

It has the landmarks, kinds and the few expressions that tests and debug runs need; other expressions do nothing.
"""

import numpy as np

from livetalk.data.world.channels import EXPRESSIONS
from livetalk.data.world.mesh import grid_triangles, smoothstep

_ROWS, _COLUMNS = 36, 44
_MOUTH_Y, _MOUTH_HALF = -3.4, 2.4
_EYE = np.array([3.1, 3.6, 9.2])
_EYE_RADIUS = 1.5
_SKIN, _MOUTH, _TEETH = 0, 1, 5


def build() -> dict[str, np.ndarray | float]:
    """The fields of a FaceModel, by name."""
    mesh = _Mesh()
    skull, slit = _skull(mesh)
    lids = [_lids(mesh, side) for side in (1, -1)]
    _interior(mesh)
    neutral, triangles, kind = mesh.arrays()
    landmarks = _landmarks(neutral, skull, slit, lids)
    expression = _expressions(neutral, skull, slit, lids, kind)
    centre = np.stack([_EYE, _EYE * (-1, 1, 1)])
    identity, eye_identity = _identities(neutral, centre)
    return {
        "neutral": neutral.astype(np.float32),
        "identity": identity.astype(np.float32),
        "expression": expression.astype(np.float32),
        "triangles": triangles,
        "kind": kind,
        "landmarks": landmarks,
        "eye_centre": centre.astype(np.float32),
        "eye_radius": _EYE_RADIUS,
        "eye_identity": eye_identity.astype(np.float32),
    }


class _Mesh:
    """Pieces under construction; `add` returns the new vertices' indices in the piece's own shape."""

    def __init__(self):
        self.positions, self.triangles, self.kinds, self.count = [], [], [], 0

    def add(self, positions: np.ndarray, triangles: np.ndarray, kind: int) -> np.ndarray:
        flat = positions.reshape(-1, 3)
        index = np.arange(len(flat)).reshape(positions.shape[:-1]) + self.count
        self.positions.append(flat)
        self.triangles.append(triangles + self.count)
        self.kinds.append(np.full(len(flat), kind, np.uint8))
        self.count += len(flat)
        return index

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.concatenate(self.positions), np.concatenate(self.triangles), np.concatenate(self.kinds)


def _skull(mesh: _Mesh) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Rows from crown to collar of an ellipsoid that ends in a neck; the row at the mouth is doubled in front and its
    halves part when the jaw opens. Returns all indices and the upper and lower rows of the slit."""
    height = np.sort(np.concatenate([np.linspace(14.3, -16, _ROWS - 2), [_MOUTH_Y, _MOUTH_Y - 0.06]]))[::-1]
    turn = np.arange(_COLUMNS) / _COLUMNS * 2 * np.pi
    # Columns crowd at the front, where the mouth is.
    turn = turn - 0.55 * np.sin(turn)
    ball = np.clip(1 - np.abs((height - 3.5) / 11.5) ** 3, 0.01, 1) ** (1 / 3)
    neck = smoothstep(-6.8, -9, height)
    wide, deep = ball * 8 * (1 - neck) + 5.5 * neck, ball * 10 * (1 - neck) + 5 * neck
    positions = np.stack(
        [
            np.sin(turn) * wide[:, None],
            np.broadcast_to(height[:, None], (_ROWS, _COLUMNS)),
            np.cos(turn) * deep[:, None] + (0.8 - 1.5 * neck)[:, None],
        ],
        -1,
    )
    positions[..., 2] += (
        2.2
        * np.exp(-((positions[..., 0] / 1.1) ** 2 + ((positions[..., 1] - 0.6) / 1.5) ** 2))
        * (positions[..., 2] > 0)
    )
    row = int(np.argmin(np.abs(height - _MOUTH_Y)))
    triangles = grid_triangles(_ROWS, _COLUMNS, closed=True)
    front = (np.abs(positions[row, :, 0]) < _MOUTH_HALF) & (positions[row, :, 2] > 0)
    flat = positions.reshape(-1, 3)
    # The band between the two mouth rows is the slit: leave out its front.
    rows = triangles // _COLUMNS
    between = (rows.min(1) == row) & (rows.max(1) == row + 1) & front[triangles % _COLUMNS].all(1)
    mesh.add(flat, triangles[~between], _SKIN)
    grid = np.arange(_ROWS * _COLUMNS).reshape(_ROWS, _COLUMNS)
    order = np.flatnonzero(front)
    order = order[np.argsort(positions[row, order, 0])]
    return grid, (grid[row, order], grid[row + 1, order])


def _lids(mesh: _Mesh, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid of one eye as bands of a sphere around it; each row 0 is the lid's margin."""
    across = np.deg2rad(np.linspace(-75, 75, 9))
    bands = []
    for first, last in ((24, 85), (-20, -70)):
        up = np.deg2rad(np.linspace(first, last, 5))[:, None]
        bands.append(_lid_points(up, across, side))
    triangles = grid_triangles(5, 9, closed=False)
    return mesh.add(bands[0], triangles[:, ::-1], _SKIN), mesh.add(bands[1], triangles, _SKIN)


def _lid_points(up: np.ndarray, across: np.ndarray, side: int) -> np.ndarray:
    reach = np.cos(across)
    out = np.stack([np.sin(across) + 0 * up, np.sin(up) * reach, np.cos(up) * reach], -1)
    return out * (_EYE_RADIUS * 1.1) + _EYE * (side, 1, 1)


def _interior(mesh: _Mesh) -> None:
    """The dark of the mouth behind the slit, and a row of teeth above and below."""
    x, y = np.meshgrid(np.linspace(-3, 3, 7), np.linspace(-1.8, -5.5, 5))
    mesh.add(np.stack([x, y, 7.0 - 0.2 * x**2], -1), grid_triangles(5, 7, closed=False), _MOUTH)
    for top, bottom in ((-2.2, -3.2), (-3.6, -4.5)):
        x, y = np.meshgrid(np.linspace(-1.7, 1.7, 7), (top, bottom))
        mesh.add(np.stack([x, y, 8.4 - 0.25 * x**2], -1), grid_triangles(2, 7, closed=False), _TEETH)


def _landmarks(neutral: np.ndarray, skull: np.ndarray, slit, lids) -> np.ndarray:
    """The usual 68, as the nearest vertices; inner lips and lids are exact."""
    jaw = np.deg2rad(np.linspace(-85, 85, 17))
    wanted = np.zeros((68, 3))
    wanted[:17] = np.stack([7.4 * np.sin(jaw), 4 - 11.6 * np.cos(jaw) ** 0.8, 4 + 5 * np.cos(jaw)], 1)
    for start, ends in ((17, (-5.6, -1.2)), (22, (1.2, 5.6))):
        x = np.linspace(*ends, 5)
        wanted[start : start + 5] = np.stack([x, 6.2 - 0.05 * (np.abs(x) - 2.8) ** 2, 10 - 0.1 * x**2], 1)
    wanted[27:31] = np.stack([np.zeros(4), np.linspace(3.7, 0.6, 4), np.linspace(10.5, 13, 4)], 1)
    wanted[31:36] = np.stack([np.linspace(-1.2, 1.2, 5), np.full(5, -1.1), np.full(5, 11.0)], 1)
    outer = np.deg2rad(180 - np.arange(12) * 30)
    wanted[48:60] = np.stack([2.6 * np.cos(outer), _MOUTH_Y + 0.9 * np.sin(outer), np.full(12, 9.5)], 1)
    gap = np.linalg.norm(neutral[skull.ravel()][None] - wanted[:, None], axis=-1)
    landmarks = skull.ravel()[gap.argmin(1)]
    upper, lower = slit
    places = np.linspace(0, len(upper) - 1, 5).round().astype(int)
    landmarks[60:65], landmarks[65:68] = upper[places], lower[places[3:0:-1]]
    for start, (top, bottom), columns in ((36, lids[1], (0, 3, 5, 8)), (42, lids[0], (0, 3, 5, 8))):
        landmarks[start : start + 4] = top[0, list(columns)]
        landmarks[start + 4 : start + 6] = bottom[0, [5, 3]]
    return landmarks


def _expressions(neutral, skull, slit, lids, kind) -> np.ndarray:
    offsets = {name: np.zeros_like(neutral) for name in EXPRESSIONS}
    upper, lower = (np.isin(np.arange(len(neutral)), rows) for rows in slit)
    x, y, z = neutral.T
    skin = (kind == _SKIN) & (z > 0)
    below = skin & (y < _MOUTH_Y - 0.03)
    near = smoothstep(4.5, 1.5, np.abs(x))
    lip = smoothstep(2.6, 0.8, np.abs(y - _MOUTH_Y)) * skin * smoothstep(5, 2, np.abs(x))
    jaw = np.where(below, smoothstep(-11, -7, y) * smoothstep(7.5, 1.0, np.abs(x)), 0)
    # The slit's corners stay closed.
    jaw = np.where(lower, smoothstep(_MOUTH_HALF, 0.8, np.abs(x)), jaw)
    offsets["jawOpen"][:, 1] = -3.6 * jaw
    teeth = (kind == _TEETH) & (y < -3.5)
    offsets["jawOpen"][teeth, 1] = -2.6
    dark = (kind == _MOUTH) & (y < _MOUTH_Y - 0.5)
    offsets["jawOpen"][dark, 1] = -2.4
    offsets["mouthClose"][:, 1] = 3.4 * np.where(lower, jaw, 0)
    offsets["mouthPucker"][:, 0] = -0.4 * x * lip
    offsets["mouthPucker"][:, 2] = 0.9 * lip * near
    offsets["mouthFunnel"][:, 0] = -0.3 * x * lip
    offsets["mouthFunnel"][:, 1] = 0.5 * np.where(upper, 1, np.where(lower, -1, 0)) * near
    for side, name in ((1, "mouthSmile_L"), (-1, "mouthSmile_R")):
        corner = lip * smoothstep(0.4, 2.4, side * x)
        offsets[name][:, 0] = 0.9 * side * corner
        offsets[name][:, 1] = 0.7 * corner
    across = np.deg2rad(np.linspace(-75, 75, 9))
    for (top, _), side, name in ((lids[0], 1, "eyeBlink_L"), (lids[1], -1, "eyeBlink_R")):
        closed = _lid_points(np.deg2rad(np.linspace(-17, 85, 5))[:, None], across, side)
        offsets[name][top] = (closed - neutral[top]) * 1.02
    return np.stack([offsets[name] for name in EXPRESSIONS])


def _identities(neutral: np.ndarray, eyes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Four ways to differ: wider, taller, deeper heads and a fuller jaw."""

    def shapes(points: np.ndarray) -> np.ndarray:
        x, y, z = points.T
        none = np.zeros_like(x)
        jaw = smoothstep(0, -7, y) * 0.05
        return np.stack(
            [
                np.stack([0.04 * x, none, none], 1),
                np.stack([none, 0.04 * y, none], 1),
                np.stack([none, none, 0.03 * z], 1),
                np.stack([jaw * x, none, jaw * z], 1),
            ]
        )

    return shapes(neutral), shapes(eyes)
