"""What a person wears: hair, glasses and clothes as geometry over the head's neutral shape."""

from dataclasses import replace

import numpy as np

from livetalk.data.world.appearance import Look
from livetalk.data.world.face_model import FaceModel, Kind
from livetalk.data.world.mesh import Noise, Part, grid_triangles, part, smoothstep, vertex_normals

# Height of the hairline by angle around the head, from the forehead (0) by temple, sideburn and ear to the nape (180).
_ANGLES = (0, 22, 40, 54, 62, 68, 74, 82, 104, 114, 128, 150, 180)
_LINE = (10.9, 10.7, 9.4, 7.0, 3.6, 2.2, 4.8, 6.0, 6.0, 3.0, -2.5, -5.0, -5.5)
_FRINGE_DROP = 3.4
_CURTAIN_END = {"bob": -7.0, "long": -17.5}
_SHEET_COLUMNS, _SHEET_ROWS = 44, 16

# The bust by height: half width, half depth, depth of its middle.
_BUST = np.array(
    [
        *((-9.5, 6.3, 6.0, -1.0), (-11.0, 7.4, 6.5, -1.6), (-12.0, 9.8, 6.6, -2.0), (-13.0, 12.0, 6.7, -2.3)),
        *((-14.0, 14.6, 6.9, -2.5), (-15.0, 17.0, 7.0, -2.6), (-16.5, 19.2, 7.3, -2.6), (-19.0, 21.0, 8.4, -2.4)),
        *((-24.0, 22.0, 9.8, -2.2), (-45.0, 22.0, 10.5, -2.0)),
    ]
)
# Lowest point in front, and how wide the opening is.
_NECKLINE = {
    **{"crew": (-12.0, 0.9), "v": (-17.2, 0.5), "shirt": (-13.6, 0.45)},
    **{"polo": (-12.6, 0.55), "scoop": (-15.0, 1.1)},
}


def _angle(points: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arctan2(np.abs(points[:, 0]), points[:, 2] - 0.5))


def _above_hairline(points: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Signed height over the hairline [V], positive where hair grows."""
    hair, angle = look.hair, _angle(points)
    line = np.interp(angle, _ANGLES, _LINE)
    line = line + hair.line * smoothstep(60, 20, angle)
    if hair.style == "fringe":
        line -= _FRINGE_DROP * smoothstep(48, 30, angle) * (1 + 0.12 * hair.part * points[:, 0] / 4)
    if hair.style == "swept":
        line -= 1.3 * smoothstep(50, 20, angle) * np.clip(0.5 + hair.part * points[:, 0] / 4, 0, 1)
    return points[:, 1] - line - 0.22 * Noise(rng, 2.5)(points)


def _strands(points: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Hair colour [V, 3] with lighter and darker strands that run from the crown down."""
    around = np.arctan2(points[:, 0], points[:, 2] + 1.0)
    shade = sum(np.sin(around * k + rng.uniform(0, 6.3)) for k in (9, 17, 29)) / 3
    shade = 1 + 0.16 * shade + 0.07 * Noise(rng, 3)(points)
    return np.clip(np.array(look.hair.colour) * shade[:, None], 0, 1)


def hair_cap(model: FaceModel, look: Look, positions: np.ndarray) -> tuple[np.ndarray, Part] | None:
    """Hair that lies on the head at positions [V, 3]: the scalp's triangles again, pushed outwards.

    Below the hairline the shell dips under the skin, so the depth test draws the line. Returns the source vertices [C]
    (whose deformation the cap shares) and the part, or None for the bald.
    """
    if look.hair.style == "bald":
        return None
    rng = np.random.default_rng(look.seed + 1)
    neutral = model.neutral.astype(np.float64)
    height = _above_hairline(neutral, look, rng)
    scalp = (height > -1.6) & (model.kind == Kind.SKIN) & (neutral[:, 1] > -9)
    ear = np.linalg.norm((neutral - (8.4, 1.6, -0.2)) / (1.1, 3.6, 2.6), axis=1) < 1
    ear |= np.linalg.norm((neutral - (-8.4, 1.6, -0.2)) / (1.1, 3.6, 2.6), axis=1) < 1
    chosen = (scalp & ~ear)[model.triangles].all(1)
    source, triangles = np.unique(model.triangles[chosen], return_inverse=True)
    if len(source) == 0:
        return None
    points, height = neutral[source], height[source]
    normal = vertex_normals(positions, model.triangles)[source]
    top = smoothstep(5, 13, points[:, 1])
    volume = look.hair.thickness * (0.6 + 0.6 * top) * smoothstep(0, 2.2, height)
    volume *= smoothstep(-6.5, -1, points[:, 1]) * 0.75 + 0.25
    if look.hair.style == "swept":
        sweep = np.sign(look.hair.part) * np.clip(points[:, 0] / 5, -1, 1)
        volume *= 1 + 0.5 * smoothstep(30, 0, _angle(points)) * sweep
    if look.hair.style == "curly":
        volume += 0.45 * smoothstep(0, 1.5, height) * Noise(rng, 1.8)(points)
    push = np.where(height > 0, 0.1 + volume, -0.4 * smoothstep(0, -0.5, height) + 0.1)
    occlusion = 0.62 + 0.38 * smoothstep(0, 2.5, height)
    shell = part(
        positions[source] + normal * push[:, None],
        triangles.reshape(-1, 3),
        _strands(points, look, rng),
        smoothstep(-14, -7.5, points[:, 1]),
        occlusion,
        gloss=0.08 if look.hair.style == "buzz" else 0.2,
    )
    return source, shell


def long_hair(look: Look, lift: float) -> list[Part]:
    """Hair that hangs beside and behind the head, or a bun on top; `lift` moves it to this head's height."""
    hair, rng = look.hair, np.random.default_rng(look.seed + 2)
    if hair.style == "bun":
        return [_bun(look, rng, lift)]
    if hair.style not in _CURTAIN_END:
        return []
    end = _CURTAIN_END[hair.style] + rng.uniform(-1.5, 1.5)
    front = rng.uniform(56, 72)
    angle = np.deg2rad(np.linspace(front, 360 - front, _SHEET_COLUMNS))
    # The front edges curl inwards, which gives the sheet a thickness.
    edge = np.minimum(np.arange(_SHEET_COLUMNS), np.arange(_SHEET_COLUMNS)[::-1])
    inward = np.interp(edge, (0, 1, 2, 3), (0.72, 0.86, 0.96, 1.0))
    height = np.linspace(10.5, end, _SHEET_ROWS)[:, None]
    spread = np.interp(-height, (-10.5, -8, -4, 0, 6, 12, 18), (0.78, 0.92, 1.0, 1.04, 1.02, 1.06, 1.12))
    thick = 0.55 * hair.thickness
    wave = 0.35 * hair.wave * np.sin(height * 1.1 + 4 * angle + rng.uniform(0, 6))
    x = (8.9 + thick + wave) * spread * inward * np.sin(angle)
    z = 0.5 + (9.0 + thick + wave) * spread * np.cos(angle)
    positions = np.stack([x, np.broadcast_to(height + lift, x.shape), np.broadcast_to(z, x.shape)], -1).reshape(-1, 3)
    # Behind the neck the sheet is seen from inside, in the shade.
    shade = np.interp(edge, (0, 1, 2, 4, 12, 18), (0.45, 0.7, 0.9, 1.0, 0.8, 0.3))
    occlusion = np.broadcast_to(shade, x.shape).ravel()
    # Columns run clockwise as seen from above.
    triangles = grid_triangles(_SHEET_ROWS, _SHEET_COLUMNS, closed=False)
    sheet = part(
        positions,
        triangles,
        _strands(positions, look, rng),
        smoothstep(-16, -4, positions[:, 1]),
        occlusion,
        gloss=0.2,
        two_sided=True,
    )
    return [sheet]


def _bun(look: Look, rng: np.random.Generator, lift: float) -> Part:
    tilt = np.linspace(0.02, np.pi - 0.02, 8)[:, None]
    turn = np.arange(14) / 14 * 2 * np.pi
    around = np.stack([np.sin(tilt) * np.sin(turn), np.cos(tilt) + 0 * turn, np.sin(tilt) * np.cos(turn)], -1)
    positions = around.reshape(-1, 3) * rng.uniform(2.4, 3.2) * (1.1, 0.9, 1) + (0, 15.3 + lift, -1.5)
    return part(positions, grid_triangles(8, 14, closed=True), _strands(positions, look, rng), gloss=0.2)


def glasses(look: Look, eyes: np.ndarray, brow_z: float) -> list[Part]:
    """Rims, bridge and arms around the eye centres [2, 3]; the rims stand just before the brows (brow_z)."""
    wear = look.glasses
    if wear is None:
        return []
    pieces = []
    for centre in eyes:
        side = np.sign(centre[0])
        turn = np.arange(36) / 36 * 2 * np.pi
        power = 2 / wear.squareness
        x = wear.width * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
        y = wear.height * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
        middle_x = side * max(abs(centre[0]), wear.width + 0.75)
        rim = np.stack([middle_x + x, centre[1] - 0.25 + y, brow_z + 0.75 - 0.045 * (middle_x + x) ** 2], 1)
        pieces.append(_tube(rim, wear.tube, look, closed=True))
        outer = rim[(rim[:, 0] * side).argmax()] + (0, 0.5, 0)
        ear = np.array([side * 8.0, centre[1] + 0.6, -0.5])
        temple = np.array([side * max(7.75, abs(outer[0]) + 0.3), outer[1] + 0.1, 3.8])
        arm = np.stack([outer, (outer + temple) / 2, temple, (temple + ear) / 2, ear])
        pieces.append(_tube(arm, wear.tube, look, closed=False))
    inner = max(abs(eyes[0, 0]), wear.width + 0.75) - wear.width
    span = np.linspace(-inner, inner, 7)
    arch = eyes[:, 1].mean() + 0.25 + 0.35 * (1 - (span / inner) ** 2)
    bridge = np.stack([span, arch, brow_z + 0.78 - 0.02 * span**2], 1)
    pieces.append(_tube(bridge, wear.tube, look, closed=False))
    return pieces


def _tube(path: np.ndarray, radius: float, look: Look, closed: bool) -> Part:
    """A hexagonal tube along path [P, 3]."""
    if closed:
        ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    else:
        ahead = np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    up = np.cross(ahead, (0.31, 0.17, 0.93) if closed else (0.2, 0.95, 0.2))
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    out = np.cross(ahead, up)
    turn = np.arange(6) / 6 * 2 * np.pi
    ring = up[:, None] * np.cos(turn)[:, None] + out[:, None] * np.sin(turn)[:, None]
    positions = (path[:, None] + radius * ring).reshape(-1, 3)
    count = len(path)
    triangles = grid_triangles(count + closed, 6, closed=True) % (count * 6)
    return part(positions, triangles, look.glasses.colour, gloss=0.3, two_sided=True)


def clothes(look: Look) -> list[Part]:
    """A garment over the bust, open at the neckline, that stays with the body; collars are a band of the accent."""
    wear, rng = look.clothes, np.random.default_rng(look.seed + 3)
    dip, sharpness = _NECKLINE[wear.neckline]
    columns, rows = 64, 18
    turn = np.arange(columns) / columns * 2 * np.pi
    front = (np.abs((turn + np.pi) % (2 * np.pi) - np.pi) / np.pi)[None]
    top = -10.6 + (dip + 10.6) * np.exp(-((front / (0.17 * sharpness + 0.08)) ** (1 + sharpness)))
    down = (np.linspace(0, 1, rows) ** 1.7)[:, None]
    height = top + (-44 - top) * down
    garment = _on_bust(height, turn, wear.build, 0.45)
    fold = Noise(rng, 6)(garment)
    shade = 1 + 0.1 * fold
    colour = np.tile(np.array(wear.colour), (len(garment), 1)) * shade[:, None]
    if wear.stripes:
        band = smoothstep(-0.2, 0.2, np.sin(garment[:, 1] * 2.2))[:, None]
        colour += (np.array(wear.accent) - colour) * band * wear.stripes
    pieces = [
        part(garment, grid_triangles(rows, columns, closed=True), np.clip(colour, 0, 1), follow=0.0, two_sided=True)
    ]
    if wear.neckline in ("shirt", "polo"):
        tall = np.linspace(1.5 if wear.neckline == "shirt" else 1.0, -1.6, 4)[:, None]
        collar = _on_bust(top + tall, turn, wear.build, np.interp(tall, (-1.6, 0, 1.5), (1.0, 0.7, 0.25)))
        shade = np.array(wear.accent if wear.neckline == "polo" else wear.colour) * 1.12
        band = part(collar, grid_triangles(4, columns, closed=True), np.clip(shade, 0, 1), follow=0.0, two_sided=True)
        pieces.append(band)
    turned = np.deg2rad(wear.turn)
    spin = np.array([[np.cos(turned), 0, np.sin(turned)], [0, 1, 0], [-np.sin(turned), 0, np.cos(turned)]])
    return [replace(piece, positions=piece.positions @ spin.T) for piece in pieces]


def _on_bust(height: np.ndarray, turn: np.ndarray, build: float, out) -> np.ndarray:
    """Points [R * C, 3] at heights [R, C] and turns [C] around the bust, `out` units off it."""
    level = -height
    width, depth, middle = (np.interp(level, -_BUST[:, 0], column) for column in _BUST[:, 1:].T)
    width = width * np.interp(level, (10, 16), (1, build)) + out
    x = width * np.sin(turn)
    z = middle + (depth + out) * np.cos(turn)
    return np.stack([x, height, z], -1).reshape(-1, 3)
