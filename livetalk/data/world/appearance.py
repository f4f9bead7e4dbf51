"""Who is in the picture and where: everything about a person and a scene, drawn at random from plausible ranges.

Colours are sRGB triples in [0, 1] as people pick them; lengths are face-model units; angles are degrees.
"""

from dataclasses import dataclass

import numpy as np

from livetalk.data.world.face_model import FaceModel

Colour = tuple[float, float, float]

SKINS = (
    *((240, 210, 190), (234, 196, 170), (222, 177, 145), (198, 149, 114)),
    *((166, 117, 84), (126, 84, 60), (92, 62, 48)),
)
DARK_SKIN = 3.4  # index into SKINS from which hair and eyes are mostly dark
HAIRS = ((28, 24, 24), (52, 36, 28), (84, 56, 38), (118, 80, 50), (142, 74, 42), (196, 158, 98), (226, 200, 144))
GREYS = ((142, 140, 138), (206, 204, 200), (86, 84, 86))
DYES = ((150, 74, 104), (72, 92, 140), (150, 120, 130))
IRISES = ((70, 44, 28), (96, 62, 34), (120, 92, 48), (92, 112, 70), (82, 120, 152), (104, 128, 146))
CLOTHES = (
    *((40, 46, 60), (222, 220, 214), (150, 46, 50), (52, 92, 140), (62, 110, 82), (206, 160, 62)),
    *((110, 76, 130), (210, 130, 140), (84, 84, 88), (60, 130, 140), (180, 110, 70), (24, 24, 28)),
)
WALLS = (
    *((212, 206, 196), (186, 198, 208), (176, 190, 172), (206, 184, 168), (150, 160, 178)),
    *((108, 122, 132), (228, 222, 206), (132, 112, 108), (92, 104, 96), (190, 172, 196)),
)

HAIR_STYLES = ("bald", "buzz", "short", "swept", "fringe", "bob", "long", "curly", "bun")
HAIR_ODDS = (0.07, 0.09, 0.2, 0.14, 0.1, 0.13, 0.13, 0.09, 0.05)
NECKLINES = ("crew", "v", "shirt", "polo", "scoop")
BACKDROPS = ("gradient", "window", "shelf", "lamps", "panels", "picture")


@dataclass(frozen=True)
class Hair:
    style: str
    colour: Colour
    thickness: float
    line: float  # height of the hairline above its usual place
    part: float  # side of the parting, -1 .. 1
    wave: float


@dataclass(frozen=True)
class Face:
    """Colours and marks of the face; weights in [0, 1] unless said otherwise."""

    skin: Colour
    lips: Colour
    brows: Colour
    iris: Colour
    blush: float
    stubble: float
    liner: float
    gloss: float
    brow_width: float  # units
    brow_weight: float
    iris_size: float  # radians of the eyeball


@dataclass(frozen=True)
class Glasses:
    colour: Colour
    width: float
    height: float
    tube: float
    squareness: float  # exponent of the rim's superellipse


@dataclass(frozen=True)
class Clothes:
    neckline: str
    colour: Colour
    accent: Colour
    stripes: float
    build: float  # scale of the shoulders
    turn: float


@dataclass(frozen=True)
class Light:
    key_direction: tuple[float, float, float]  # towards the light
    key: Colour  # linear
    fill: Colour
    ambient: Colour
    ground: Colour


@dataclass(frozen=True)
class Camera:
    distance: float
    scale: float  # frame height in units, in the plane of the head's axis
    shift: tuple[float, float]
    pose: tuple[float, float, float]  # the speaker's habitual pitch, yaw, roll


@dataclass(frozen=True)
class Look:
    """One person in one scene. `identity` [K] weighs FaceModel.identity; `seed` drives the noise of details."""

    identity: np.ndarray
    face: Face
    hair: Hair
    glasses: Glasses | None
    clothes: Clothes
    backdrop: str
    backdrop_colours: tuple[Colour, Colour, Colour]
    light: Light
    camera: Camera
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, model: FaceModel) -> "Look":
        """Draw a person and a scene for `model`; equal generators give equal looks."""
        count = len(model.identity)
        identity = np.clip(rng.standard_normal(count), -2.2, 2.2).astype(np.float32) * 0.9
        tone = float(rng.uniform(0, len(SKINS) - 1))
        hair = _hair(rng, tone)
        face = _face(rng, hair, tone)
        wall = _jitter(rng, WALLS[rng.integers(len(WALLS))], 0.05)
        accents = [_jitter(rng, CLOTHES[rng.integers(len(CLOTHES))], 0.05) for _ in range(2)]
        return cls(
            identity=identity,
            face=face,
            hair=hair,
            glasses=_glasses(rng) if rng.random() < 0.28 else None,
            clothes=_clothes(rng),
            backdrop=str(rng.choice(BACKDROPS)),
            backdrop_colours=(wall, accents[0], accents[1]),
            light=_light(rng),
            camera=_camera(rng),
            seed=int(rng.integers(1 << 31)),
        )


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int], amount: float) -> Colour:
    shade = 1 + amount * rng.standard_normal()
    tint = 1 + 0.5 * amount * rng.standard_normal(3)
    return _triple(np.clip(np.array(colour) / 255 * shade * tint, 0.02, 0.98))


def _triple(values: np.ndarray) -> Colour:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _mix(a: Colour, b: Colour, weight: float) -> Colour:
    return _triple(np.array(a) * (1 - weight) + np.array(b) * weight)


def _hair(rng: np.random.Generator, tone: float) -> Hair:
    kind = rng.random()
    natural = HAIRS[:3] if tone > DARK_SKIN else HAIRS
    palette = DYES if kind < 0.05 else GREYS if kind < 0.16 else natural
    style = str(rng.choice(HAIR_STYLES, p=HAIR_ODDS))
    thickness = {"buzz": 0.22, "curly": rng.uniform(1.6, 2.6)}.get(style, rng.uniform(0.7, 1.5))
    return Hair(
        style=style,
        colour=_jitter(rng, palette[rng.integers(len(palette))], 0.08),
        thickness=float(thickness),
        line=float(rng.uniform(-0.6, 0.7)),
        part=float(rng.uniform(-1, 1)),
        wave=float(rng.uniform(0, 1)),
    )


def _face(rng: np.random.Generator, hair: Hair, tone: float) -> Face:
    lower = min(int(tone), len(SKINS) - 2)
    skin = np.array(SKINS[lower]) * (lower + 1 - tone) + np.array(SKINS[lower + 1]) * (tone - lower)
    skin = _jitter(rng, tuple(skin), 0.03)
    rose = _triple(np.array([rng.uniform(0.56, 0.74), rng.uniform(0.2, 0.34), rng.uniform(0.24, 0.36)]))
    lips = _mix(_mix(skin, (0.3, 0.1, 0.1), 0.12), rose, float(rng.uniform(0.5, 0.95)))
    dark = _mix(hair.colour, (0.1, 0.07, 0.06), 0.5)
    irises = IRISES[:2] if tone > DARK_SKIN else IRISES
    bearded = hair.style not in ("bob", "long", "bun") and rng.random() < 0.3
    return Face(
        skin=skin,
        lips=lips,
        brows=dark if hair.style != "bald" else _mix(dark, (0.12, 0.09, 0.08), 0.6),
        iris=_jitter(rng, irises[rng.integers(len(irises))], 0.08),
        blush=float(rng.uniform(0.1, 0.5)),
        stubble=float(rng.uniform(0.15, 0.5)) if bearded else 0.0,
        liner=float(rng.uniform(0.45, 0.95)),
        gloss=float(rng.uniform(0.05, 0.3)),
        brow_width=float(rng.uniform(0.26, 0.44)),
        brow_weight=float(rng.uniform(0.65, 0.95)),
        iris_size=float(rng.uniform(0.47, 0.54)),
    )


def _glasses(rng: np.random.Generator) -> Glasses:
    frames = ((24, 22, 24), (70, 44, 30), (120, 40, 44), (60, 66, 74), (176, 150, 90), (40, 60, 90))
    return Glasses(
        colour=_jitter(rng, frames[rng.integers(len(frames))], 0.05),
        width=float(rng.uniform(2.1, 2.5)),
        height=float(rng.uniform(1.55, 2.1)),
        tube=float(rng.uniform(0.13, 0.26)),
        squareness=float(rng.uniform(2, 4)),
    )


def _clothes(rng: np.random.Generator) -> Clothes:
    main, accent = rng.choice(len(CLOTHES), 2, replace=False)
    return Clothes(
        neckline=str(rng.choice(NECKLINES)),
        colour=_jitter(rng, CLOTHES[main], 0.06),
        accent=_jitter(rng, CLOTHES[accent], 0.06),
        stripes=float(rng.uniform(0.6, 1)) if rng.random() < 0.2 else 0.0,
        build=float(rng.uniform(0.9, 1.12)),
        turn=float(rng.uniform(-10, 10)),
    )


def _light(rng: np.random.Generator) -> Light:
    side = np.deg2rad(rng.uniform(-60, 60))
    height = np.deg2rad(rng.uniform(10, 50))
    direction = np.array([np.sin(side) * np.cos(height), np.sin(height), np.cos(side) * np.cos(height)])
    warmth = rng.uniform(-1, 1)
    tint = np.array([1 + 0.07 * warmth, 1.0, 1 - 0.09 * warmth])
    strength = rng.uniform(0.48, 0.74)
    ambient = rng.uniform(0.32, 0.44)
    return Light(
        key_direction=_triple(direction),
        key=_triple(tint * strength),
        fill=_triple((2 - tint) * rng.uniform(0.1, 0.22)),
        ambient=_triple((2 - tint) * ambient),
        ground=_triple(np.array([1.04, 1.0, 0.96]) * ambient * rng.uniform(0.5, 0.75)),
    )


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        distance=float(rng.uniform(52, 66)),
        scale=float(rng.uniform(33, 36)),
        shift=(float(rng.uniform(-1.6, 1.6)), float(rng.uniform(-0.7, 0.7))),
        pose=(float(rng.uniform(-4, 4)), float(rng.uniform(-9, 9)), float(rng.uniform(-2.5, 2.5))),
    )
