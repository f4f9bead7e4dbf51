"""From phonemes to a moving face: visemes, blinks, gaze, brows, breathing and a head that follows the words.

The mouth is a function of the phonemes and of a per-clip articulation style, nothing else, so that lips can be told
from sound. Every sound has a target for each lip and jaw channel and a strength (dominance) with which it claims it;
a curve is the dominance-weighted mean of the targets around a moment, under a kernel that looks further ahead than
back (after the dominance functions of Cohen and Massaro, "Modeling coarticulation in synthetic visual speech", 1993).
Lip closures (p b m) and lip-to-teeth contacts (f v) are laid over these curves as plateaus longer than a frame, so
that sampling at 16 fps cannot miss one.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields

import numpy as np

from livetalk.data.world.channels import EXPRESSIONS
from livetalk.data.world.prompts import Attributes
from livetalk.data.world.speech import Phone
from livetalk.geometry import FPS

OVERSAMPLING = 10  # grid points a frame on which curves are made before they are sampled at j / FPS
GRID = OVERSAMPLING * FPS
MARGIN = 0.5  # seconds of context on each side of a clip

# --- targets -----------------------------------------------------------------------------------------------------

MOUTH = ("jaw", "pucker", "funnel", "stretch", "lower", "upper")
# jaw, pucker, funnel, stretch, lower lip down, upper lip up; strength on the jaw, strength on the lips
_VISEMES = {
    "ɑ": (0.50, 0.00, 0.05, 0.00, 0.10, 0.05, 1.0, 0.8),
    "a": (0.50, 0.00, 0.00, 0.15, 0.15, 0.10, 1.0, 0.8),
    "æ": (0.44, 0.00, 0.00, 0.30, 0.20, 0.10, 1.0, 0.8),
    "ʌ": (0.36, 0.00, 0.00, 0.05, 0.10, 0.00, 0.9, 0.7),
    "ə": (0.20, 0.00, 0.03, 0.05, 0.10, 0.00, 0.6, 0.4),
    "ɜ": (0.22, 0.20, 0.15, 0.00, 0.10, 0.00, 0.9, 0.8),
    "ɛ": (0.30, 0.00, 0.00, 0.35, 0.15, 0.05, 1.0, 0.8),
    "e": (0.24, 0.00, 0.00, 0.45, 0.15, 0.05, 1.0, 0.8),
    "i": (0.12, 0.00, 0.00, 0.70, 0.20, 0.10, 1.0, 1.0),
    "ɪ": (0.17, 0.00, 0.00, 0.40, 0.15, 0.05, 0.8, 0.7),
    "ɔ": (0.38, 0.30, 0.30, 0.00, 0.05, 0.00, 1.0, 0.9),
    "o": (0.26, 0.55, 0.25, 0.00, 0.00, 0.00, 1.0, 1.0),
    "ʊ": (0.15, 0.60, 0.15, 0.00, 0.05, 0.00, 0.9, 0.9),
    "u": (0.10, 0.95, 0.10, 0.00, 0.00, 0.00, 1.0, 1.3),
    "w": (0.06, 1.00, 0.05, 0.00, 0.00, 0.00, 1.0, 2.2),
    "ɹ": (0.12, 0.40, 0.25, 0.00, 0.05, 0.05, 0.5, 0.5),
    "j": (0.12, 0.00, 0.00, 0.50, 0.15, 0.05, 0.5, 0.6),
    "l": (0.20, 0.00, 0.00, 0.10, 0.10, 0.05, 0.45, 0.25),
    "t": (0.11, 0.00, 0.00, 0.10, 0.15, 0.05, 0.6, 0.25),
    "s": (0.05, 0.00, 0.00, 0.30, 0.35, 0.15, 1.0, 0.6),
    "ʃ": (0.07, 0.35, 0.45, 0.00, 0.15, 0.10, 1.0, 1.0),
    "θ": (0.14, 0.00, 0.00, 0.10, 0.20, 0.05, 0.7, 0.35),
    "k": (0.17, 0.00, 0.00, 0.10, 0.10, 0.00, 0.35, 0.15),
    "h": (0.22, 0.00, 0.00, 0.00, 0.10, 0.00, 0.10, 0.05),
    "p": (0.06, 0.00, 0.00, 0.00, 0.00, 0.00, 0.8, 0.25),
    "f": (0.08, 0.00, 0.00, 0.05, 0.00, 0.15, 0.9, 0.35),
}
_SAME = {
    **{"ɐ": "ʌ", "ɒ": "ɔ", "ɚ": "ɜ", "ɝ": "ɜ", "ᵻ": "ɪ", "ɨ": "ɪ", "y": "u", "ʉ": "u", "ø": "o", "ʍ": "w", "r": "ɹ"},
    **{"d": "t", "n": "t", "ɾ": "t", "ɫ": "l", "z": "s", "ʒ": "ʃ", "ð": "θ", "ɡ": "k", "g": "k", "ŋ": "k", "x": "k"},
    **{"ʔ": "h", "b": "p", "m": "p", "v": "f", "c": "k", "ç": "h"},
}
_VOWELS = frozenset("ɑaæʌəɜɛeiɪɔoʊuɐɒɚɝᵻɨyʉø")
BILABIALS = frozenset("pbm")
LABIODENTALS = frozenset("fv")
_REST_STRENGTH = (0.9, 0.5)  # on the jaw, on the lips
_REST_AFTER = 0.09  # seconds: a shorter gap between sounds belongs to its neighbours

# seconds (standard deviation) that a sound reaches ahead of itself and behind itself
_REACH = {"jaw": (0.042, 0.036), "lips": (0.052, 0.038)}
_SHORTEST_CONTACT = 0.070  # more than the 62.5 ms of a frame
_CLOSING, _OPENING = 0.055, 0.045
_SEAL = 0.035  # mouthClose at rest: the neutral lips of many identities are a hair apart and show the teeth


@dataclass(frozen=True)
class Style:
    """How one speaker articulates: factors on the jaw, on spreading and on rounding, lips shown, strength of stress."""

    jaw: float = 1.0
    spread: float = 1.0
    rounding: float = 1.0
    lips: float = 1.0
    stress: float = 0.15

    @staticmethod
    def sample(rng: np.random.Generator) -> Style:
        return Style(*(float(v) for v in rng.uniform((0.85, 0.8, 0.8, 0.6, 0.08), (1.2, 1.2, 1.1, 1.3, 0.22))))


@dataclass(frozen=True)
class Motion:
    """A moving face, T frames at 16 fps, float32.

    expression: [T, 53] in [0, 1], columns as in channels.EXPRESSIONS; head_rotation: [T, 3] degrees (pitch: + nods
    down, yaw: + turns to the speaker's left, roll: + tilts to the speaker's left); head_shift: [T, 3] in face-model
    units; gaze: [T, 2] degrees (pitch: + down, yaw: + to the speaker's left) of both eyes relative to the head.
    """

    expression: np.ndarray
    head_rotation: np.ndarray
    head_shift: np.ndarray
    gaze: np.ndarray

    def __post_init__(self):
        frames = len(self.expression)
        for field in fields(self):
            array = getattr(self, field.name)
            assert array.dtype == np.float32 and len(array) == frames, f"{field.name}: {array.dtype} {array.shape}"


# --- mouth -------------------------------------------------------------------------------------------------------


def segments(phones: list[Phone] | tuple[Phone, ...]) -> list[tuple[float, float, str, float]]:
    """Phones cut into single sounds: (start, end, viseme symbol's IPA letter, stress 0 / 0.5 / 1).

    Diphthongs and affricates get one segment a letter; a length mark doubles the letter's share of the time. A letter
    that no table knows (another language) is treated like a neutral vowel.
    """
    pieces = []
    for phone in phones:
        stress = 1.0 if "ˈ" in phone.ipa else 0.5 if "ˌ" in phone.ipa else 0.0
        letters: list[list] = []
        for letter in unicodedata.normalize("NFD", phone.ipa):
            if letter in "ːˑ:" and letters:
                letters[-1][1] += 1.0
            elif letter.isalpha() and unicodedata.category(letter) != "Lm":
                letters.append([letter, 1.0])
        total, start = sum(weight for _, weight in letters), phone.start
        for letter, weight in letters:
            end = start + (phone.end - phone.start) * weight / total
            pieces.append((start, end, letter, stress if letter in _VOWELS else 0.0))
            start = end
    return pieces


def _targets(pieces: list, style: Style, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets [G, 6] and strengths [G, 2] (jaw, lips) on the grid, rest where nothing is said."""
    targets, strengths = np.zeros((len(seconds), 6)), np.tile(_REST_STRENGTH, (len(seconds), 1))
    scale = np.array([style.jaw, style.rounding, style.rounding, style.spread, style.lips, style.lips])
    previous = -np.inf
    for start, end, letter, stress in pieces:
        viseme = np.array(_VISEMES.get(_SAME.get(letter, letter), _VISEMES["ə"]))
        first, last = np.searchsorted(seconds, (start, end))
        accent = 1.0 + style.stress * (2.0 * stress - 0.5) if letter in _VOWELS else 1.0
        targets[first:last] = viseme[:6] * scale * accent
        strengths[first:last] = viseme[6:]
        if 0.0 < start - previous < _REST_AFTER:
            strengths[np.searchsorted(seconds, previous) : first] = 0.02
        previous = end
    return targets, strengths


def _blend(values: np.ndarray, strength: np.ndarray, reach: tuple[float, float]) -> np.ndarray:
    """Dominance-weighted mean of values [G, C] under a two-sided bell: reach[0] ahead, reach[1] behind, in seconds."""
    size = round(3.5 * max(reach) * GRID)
    lag = np.arange(-size, size + 1) / GRID  # output time minus the sound's time: negative is before the sound
    kernel = np.exp(-0.5 * np.square(lag / np.where(lag < 0, reach[0], reach[1])))
    stacked = np.concatenate([values * strength[:, None], strength[:, None]], axis=1)
    mixed = np.stack([np.convolve(column, kernel, mode="same") for column in stacked.T], axis=1)
    return mixed[:, :-1] / mixed[:, -1:]


def _contact(pieces: list, letters: frozenset, seconds: np.ndarray) -> np.ndarray:
    """[G] in [0, 1]: 1 while the lips are held by one of `letters`, at least _SHORTEST_CONTACT long, with ramps."""
    held = np.zeros(len(seconds))
    for start, end, letter, _ in pieces:
        if letter not in letters:
            continue
        # the lips part a little before the sound ends: the end of a stop is its release
        end = max(end - 0.012, start + _SHORTEST_CONTACT - 0.01)
        start = start - 0.01
        ramp = np.minimum((seconds - start) / _CLOSING, (end - seconds) / _OPENING) + 1.0
        ramp = np.clip(ramp, 0.0, 1.0)
        held = np.maximum(held, ramp * ramp * (3.0 - 2.0 * ramp))
    return held


def mouth_curves(phones, seconds: np.ndarray, style: Style) -> dict[str, np.ndarray]:
    """Channel curves of the mouth on an even grid of `seconds` [G] (GRID points a second): name -> [G] in [0, 1].

    Names are ARKit's; a name without _L/_R stands for both sides. Deterministic in (phones, style).
    """
    pieces = segments(phones)
    targets, strengths = _targets(pieces, style, seconds)
    jaw = _blend(targets[:, :1], strengths[:, 0], _REACH["jaw"])[:, 0]
    pucker, funnel, stretch, lower, upper = _blend(targets[:, 1:], strengths[:, 1], _REACH["lips"]).T
    lips, teeth = _contact(pieces, BILABIALS, seconds), _contact(pieces, LABIODENTALS, seconds)
    open_ = (1.0 - lips) * (1.0 - teeth)
    jaw = jaw * (1.0 - 0.8 * lips) * (1.0 - 0.7 * teeth) + 0.04 * lips + 0.05 * teeth
    curves = {
        "jawOpen": jaw,
        "mouthClose": jaw * np.maximum(lips, 0.6 * teeth) + _SEAL * np.clip(1.0 - jaw / 0.08, 0.0, 1.0),
        "mouthPucker": pucker * (1.0 - 0.3 * teeth),
        "mouthFunnel": funnel * open_,
        "mouthStretch": stretch * (1.0 - 0.4 * lips),
        "mouthLowerDown": lower * open_,
        "mouthUpperUp": upper * open_ + 0.15 * teeth,
        "mouthRollLower": 0.15 * lips + 0.6 * teeth,
        "mouthRollUpper": 0.12 * lips,
        "mouthPress": 0.35 * lips,
    }
    return {name: np.clip(curve, 0.0, 1.0) for name, curve in curves.items()}


# --- the rest of the face ----------------------------------------------------------------------------------------


def _wander(rng: np.random.Generator, points: int, cutoff: float) -> np.ndarray:
    """[points] smooth noise on the grid, below about `cutoff` Hz, mean 0 and deviation 1 over the clip."""
    sigma = GRID / (2.0 * np.pi * cutoff)
    size = round(3 * sigma)
    noise = np.convolve(
        rng.standard_normal(points + 2 * size), np.exp(-0.5 * (np.arange(-size, size + 1) / sigma) ** 2), mode="valid"
    )
    noise = noise - noise.mean()
    return noise / max(noise.std(), 1e-9)


def _bump(seconds: np.ndarray, peak: float, before: float, after: float) -> np.ndarray:
    x = (seconds - peak) / np.where(seconds < peak, before, after)
    return np.where(np.abs(x) < 1.0, np.cos(0.5 * np.pi * np.clip(x, -1.0, 1.0)) ** 2, 0.0)


def blinks(seconds: np.ndarray, often: bool, rng: np.random.Generator) -> np.ndarray:
    """[G] lids shut in [0, 1]: 10-21 blinks a minute, or 46-75; each 180-250 ms, wholly shut for more than a frame."""
    shut = np.zeros(len(seconds))
    low, high = (0.8, 1.3) if often else (2.8, 6.0)
    now = seconds[0] + rng.uniform(0.1, high)
    while now < seconds[-1]:
        closing, held, opening = rng.uniform((0.05, 0.065, 0.065), (0.07, 0.075, 0.105))
        ramp = np.minimum((seconds - now) / closing, (now + closing + held + opening - seconds) / opening)
        shut = np.maximum(shut, np.clip(ramp, 0.0, 1.0))
        now += rng.uniform(low, high)
    return shut


def _gaze(seconds: np.ndarray, head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[G, 2] degrees: the eyes stay on the viewer while the head moves around its pose, with saccades now and then."""
    glance = np.zeros((len(seconds), 2))
    now = seconds[0]
    while now < seconds[-1]:
        target = rng.normal(0.0, 1.0, 2) if rng.random() < 0.65 else rng.uniform((-5.0, -9.0), (5.0, 9.0))
        glance[seconds >= now] = target
        now += rng.uniform(0.4, 1.8)
    width = round(0.03 * GRID)
    kernel = np.ones(width) / width
    padded = np.pad(glance, ((width, width), (0, 0)), mode="edge")
    glance = np.stack([np.convolve(c, kernel, mode="same")[width:-width] for c in padded.T], axis=1)
    follow = head[:, :2] - np.median(head[:, :2], axis=0)
    return np.clip(glance - 0.7 * follow, -18.0, 18.0)


def _stresses(phones, gap: float) -> list[float]:
    """Moments of stressed vowels, at least `gap` seconds apart."""
    moments: list[float] = []
    for start, end, _, stress in segments(phones):
        middle = 0.5 * (start + end)
        if stress == 1.0 and (not moments or middle - moments[-1] >= gap):
            moments.append(middle)
    return moments


_SWAY = {"still": (0.15, 0.4), "gentle": (1.5, 2.3), "lively": (4.8, 6.5)}  # degrees of deviation of yaw over a clip
_POSE = {"centre": (-2.5, 2.5), "left": (15.0, 20.0), "right": (-20.0, -15.0)}


def _head(phones, seconds: np.ndarray, wanted: Attributes, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [G, 3] in degrees and shift [G, 3] in units: drift, pose, nods on stressed vowels, breathing."""
    points = len(seconds)
    sway = rng.uniform(*_SWAY[wanted.activity])
    speed = 0.55 if wanted.activity == "lively" else 0.35
    pitch, yaw, roll, x, y, z = (_wander(rng, points, speed) for _ in range(6))
    nods = np.zeros(points)
    nodding = wanted.nod == "nods"
    beat = 0.0 if wanted.activity == "still" else 0.8
    for moment in _stresses(phones, 0.42):
        depth = rng.uniform(8.0, 11.0) if nodding else beat * rng.uniform(0.2, 1.0)
        nods += depth * _bump(seconds, moment, 0.16, 0.24)
    breath = np.sin(2.0 * np.pi * (rng.uniform(0.22, 0.3) * seconds + rng.random()))
    rotation = np.stack([0.35 * sway * pitch + nods + 0.1 * breath, sway * yaw, 0.4 * sway * roll], axis=1)
    rotation += (rng.uniform(-2.0, 2.0), rng.uniform(*_POSE[wanted.pose]), rng.uniform(-1.5, 1.5))
    shift = 0.12 * sway * np.stack([x, 0.4 * y, 0.5 * z], axis=1)
    shift[:, 1] += 0.07 * breath
    return rotation, shift


def _upper_face(phones, seconds: np.ndarray, wanted: Attributes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    lids = blinks(seconds, wanted.blink == "often", rng)
    raised = rng.uniform(0.75, 0.95) if wanted.brows == "raised" else rng.uniform(0.0, 0.08)
    accents = np.zeros(len(seconds))
    for moment in _stresses(phones, 0.8):
        if rng.random() < 0.5:
            accents = np.maximum(accents, rng.uniform(0.1, 0.2) * _bump(seconds, moment, 0.18, 0.3))
    smile = rng.uniform(0.5, 0.7) if wanted.smile == "smiling" else rng.uniform(0.0, 0.06)
    frown = rng.uniform(0.0, 0.15) if wanted.smile == "serious" and wanted.brows == "neutral" else 0.0
    level = np.ones(len(seconds)) + 0.06 * _wander(rng, len(seconds), 0.3)
    return {
        "eyeBlink": lids,
        "eyeWide": (0.25 * raised) * (1.0 - lids),
        "eyeSquint": 0.3 * smile * level,
        "cheekSquint": 0.5 * smile * level,
        "browInnerUp": np.clip(raised + accents, 0.0, 1.0),
        "browOuterUp": np.clip(0.9 * raised + 0.8 * accents, 0.0, 1.0),
        "browDown": frown * np.ones(len(seconds)),
        "mouthSmile": smile * level,
    }


def make_motion(phones, frames: int, wanted: Attributes, rng: np.random.Generator) -> Motion:
    """The motion of a clip of `frames` frames in which `phones` (seconds from the clip's start) are said.

    Phones may start before 0 and end after the clip: they shape the lips at its edges. `rng` draws the articulation
    style and everything that the words leave open.
    """
    margin = round(MARGIN * FPS) * OVERSAMPLING
    seconds = (np.arange((frames - 1) * OVERSAMPLING + 1 + 2 * margin) - margin) / GRID
    mouth = mouth_curves(phones, seconds, Style.sample(rng))
    face = _upper_face(phones, seconds, wanted, rng)
    inside = slice(margin, len(seconds) - margin)
    rotation, shift = _head(phones, seconds[inside], wanted, rng)
    gaze = _gaze(seconds[inside], rotation, rng)
    # rounding pulls the corners in: a smile gives way to it
    face["mouthSmile"] = face["mouthSmile"] * (1.0 - 0.6 * mouth["mouthPucker"])
    expression = np.zeros((frames, len(EXPRESSIONS)), np.float32)
    for name, curve in {**mouth, **face}.items():
        sampled = np.clip(curve[inside][::OVERSAMPLING], 0.0, 1.0)
        columns = [i for i, channel in enumerate(EXPRESSIONS) if channel in (name, f"{name}_L", f"{name}_R")]
        assert columns, f"no channel {name}"
        expression[:, columns] = sampled[:, None]
    sampled = (array[::OVERSAMPLING].astype(np.float32) for array in (rotation, shift, gaze))
    return Motion(expression, *sampled)
