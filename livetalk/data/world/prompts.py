"""Motion attributes, the text that asks for them, and how they are found again in tracks.

Text follows one convention: an attribute that a prompt does not mention has its default (`Attributes()`), and every
other value is always mentioned. So a prompt says all there is to know about a clip's attributes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields

import numpy as np

from livetalk.geometry import FPS

VALUES = {
    "activity": ("gentle", "still", "lively"),
    "nod": ("none", "nods"),
    "pose": ("centre", "left", "right"),
    "smile": ("serious", "smiling"),
    "blink": ("normal", "often"),
    "brows": ("neutral", "raised"),
}
_CHANCES = {
    "activity": (0.4, 0.3, 0.3),
    "nod": (0.6, 0.4),
    "pose": (0.6, 0.2, 0.2),
    "smile": (0.5, 0.5),
    "blink": (0.7, 0.3),
    "brows": (0.7, 0.3),
}
_MENTION_DEFAULT = 0.35


@dataclass(frozen=True)
class Attributes:
    """What a prompt decides about the motion of a clip. Defaults are what an empty prompt means.

    activity: how much the head sways; nod: nods on stressed syllables; pose: where the head is turned, in the
    speaker's own left and right; smile; blink: how often; brows.
    """

    activity: str = "gentle"
    nod: str = "none"
    pose: str = "centre"
    smile: str = "serious"
    blink: str = "normal"
    brows: str = "neutral"

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in VALUES[field.name]:
                raise ValueError(f"{field.name} {value!r} is unknown: choose one of {', '.join(VALUES[field.name])}")

    @staticmethod
    def sample(rng: np.random.Generator, speaking: bool = True) -> Attributes:
        """Draws attributes. Nods follow words, so there are none without speech; a still head does not nod."""
        drawn = {name: str(rng.choice(VALUES[name], p=_CHANCES[name])) for name in VALUES}
        if not speaking or drawn["activity"] == "still":
            drawn["nod"] = "none"
        return Attributes(**drawn)


# --- text --------------------------------------------------------------------------------------------------------

_SUBJECTS = (
    "a person",
    "someone",
    "a speaker",
    "a talking head",
    "a presenter",
    "a face",
    "a person on a video call",
    "the speaker",
    "a portrait of a person",
    "one person",
)
_ANYWHERE = ("a person", "someone", "a speaker", "the speaker", "one person")
_SETTINGS = (
    "in front of a plain wall",
    "against a simple background",
    "in a quiet room",
    "facing the camera from the chest up",
    "in a close-up",
    "in soft light",
    "on a video call",
    "in a studio",
)
_PHRASES = {
    ("activity", "gentle"): ("moves gently", "moves the head a little", "with gentle head movement", "sways slightly"),
    ("activity", "still"): ("keeps still", "holds the head still", "hardly moves the head", "with a motionless head"),
    ("activity", "lively"): (
        *("moves the head a lot", "is lively", "with lively head movement", "moves energetically"),
        "sways the head widely",
    ),
    ("nod", "none"): ("does not nod", "without nodding", "never nods"),
    ("nod", "nods"): ("nods while speaking", "nods along with the words", "keeps nodding", "with clear nods"),
    ("pose", "centre"): ("looks straight ahead", "faces the camera", "looks at the camera", "with the head straight"),
    ("pose", "left"): (
        *("is turned to the left", "looks to the left", "with the head turned left", "faces the left side"),
        "turns the head towards their left",
    ),
    ("pose", "right"): (
        *("is turned to the right", "looks to the right", "with the head turned right", "faces the right side"),
        "turns the head towards their right",
    ),
    ("smile", "serious"): ("is serious", "with a serious face", "does not smile", "with a neutral mouth"),
    ("smile", "smiling"): ("smiles", "is smiling", "with a smile", "with a happy, smiling face", "looks cheerful"),
    ("blink", "normal"): ("blinks normally", "blinks now and then", "with calm eyes"),
    ("blink", "often"): ("blinks often", "blinks a lot", "with frequent blinking", "keeps blinking"),
    ("brows", "neutral"): ("with relaxed brows", "keeps the brows relaxed", "with neutral eyebrows"),
    ("brows", "raised"): ("raises the eyebrows", "with raised eyebrows", "has raised brows", "holds the brows up"),
}


def _pick(rng: np.random.Generator, options) -> str:
    return options[int(rng.integers(len(options)))]


def describe(attributes: Attributes, rng: np.random.Generator, unknown: Collection[str] = ()) -> str:
    """One of many wordings of `attributes`: defaults may go unmentioned, order and style are drawn. unknown: names of
    attributes of which nothing is said, and "setting" where that is not known either."""
    default = Attributes()
    phrases = []
    for name, value in asdict(attributes).items():
        if name in unknown:
            continue
        if value != getattr(default, name) or rng.random() < _MENTION_DEFAULT:
            phrases.append(_pick(rng, _PHRASES[name, value]))
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    if "setting" in unknown:
        subject = _pick(rng, _ANYWHERE)
    else:
        subject = _pick(rng, _SUBJECTS) + (" " + _pick(rng, _SETTINGS) if rng.random() < 0.4 else "")
    style = rng.random()
    if not phrases:
        text = f"{subject}."
    elif style < 0.25:
        text = ", ".join(phrases) + "."
    elif style < 0.6:
        text = ", ".join([f"{subject} {phrases[0]}", *phrases[1:]]) + "."
    else:
        # phrases with a verb follow "who", phrases with "with" or "without" follow the subject itself
        plain = [p for p in phrases if p.startswith("with")]
        verbs = [p for p in phrases if not p.startswith("with")]
        text = " ".join([subject, *([" and ".join(plain)] if plain else [])])
        text += (" who " if plain or rng.random() < 0.3 else " ") + _join(verbs) + "." if verbs else "."
    return text[0].upper() + text[1:] if rng.random() < 0.85 else text.lower().rstrip(".")


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


# --- finding attributes in tracks --------------------------------------------------------------------------------

# Halfway between what make_motion draws for neighbouring values; degrees, blinks a minute, channel values.
_SWAY_STILL, _SWAY_LIVELY = 0.9, 3.4
_TURNED = 8.5
_NOD = 2.2
_SMILING = 0.28
_BLINKS_OFTEN = 29.0
_BROWS_RAISED = 0.45


def blink_count(blink: np.ndarray) -> int:
    """Blinks in a track [T] of lids (0 open, 1 shut): rises through 0.5."""
    shut = np.asarray(blink) > 0.5
    return int(np.sum(shut[1:] & ~shut[:-1]) + shut[0])


def nod_strength(pitch: np.ndarray) -> float:
    """Deviation in degrees of a pitch track [T] after taking its mean over 1.2 s around each frame away."""
    width = min(len(pitch), round(1.2 * FPS) | 1)
    padded = np.pad(np.asarray(pitch, float), width // 2, mode="edge")
    slow = np.convolve(padded, np.ones(width) / width, mode="valid")[: len(pitch)]
    return float(np.std(pitch - slow))


def measure(tracks: dict[str, np.ndarray]) -> dict[str, str]:
    """Attribute values found in a clip's tracks: yaw, pitch in degrees, blink, smile, brow in [0, 1], each [T].

    Attributes whose track is missing are left out. Made for clips of about 81 frames and more: blinks are counted.
    """
    found = {}
    if "yaw" in tracks:
        yaw = np.asarray(tracks["yaw"])
        sway, mean = float(np.std(yaw)), float(np.mean(yaw))
        found["activity"] = "still" if sway < _SWAY_STILL else "lively" if sway > _SWAY_LIVELY else "gentle"
        found["pose"] = "left" if mean > _TURNED else "right" if mean < -_TURNED else "centre"
    if "pitch" in tracks:
        found["nod"] = "nods" if nod_strength(tracks["pitch"]) > _NOD else "none"
    if "smile" in tracks:
        found["smile"] = "smiling" if float(np.median(tracks["smile"])) > _SMILING else "serious"
    if "blink" in tracks:
        rate = 60.0 * FPS * blink_count(tracks["blink"]) / len(tracks["blink"])
        found["blink"] = "often" if rate > _BLINKS_OFTEN else "normal"
    if "brow" in tracks:
        found["brows"] = "raised" if float(np.median(tracks["brow"])) > _BROWS_RAISED else "neutral"
    return found
