"""One clip: framed, its reference chosen, measured, and judged by the limits.

The reference picture of a clip is its first frame, which the networks are given clean; so the picture is chosen by
choosing where the clip begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from livetalk.data.curation import motion, picture, sync
from livetalk.data.curation.footage import DamagedError, frames
from livetalk.data.curation.framing import Crop, crop_of, cropped, faults, steady
from livetalk.data.curation.limits import Limits
from livetalk.data.curation.motion import Captioner
from livetalk.data.curation.scan import Scan, Voice
from livetalk.data.curation.stretches import Stretch
from livetalk.faces import Finder, mouth_opening
from livetalk.geometry import SAMPLES_PER_FRAME

LOOKED_AT = 12  # frames of a clip at which what costs time is measured
COMPARED = 4  # frames that the reference is compared with

Identity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A picture uint8 [H, W, 3] and landmarks [68, 2] -> numbers that are near to each other for one person."""


@dataclass(frozen=True)
class Tools:
    """What looks and listens. identity: None: it is not compared; captioner: None: prompts are of measured motion."""

    finder: Finder
    voice: Voice
    identity: Identity | None = None
    captioner: Captioner | None = None


@dataclass(frozen=True)
class Examined:
    """A clip of T frames from frame `start` of its source. reasons: why it is not kept, as (reason, detail); none: it
    is kept, and has a prompt. frames: uint8 [T, H, W, 3]; pcm: [T * 1000]."""

    start: int
    crop: Crop
    frames: np.ndarray
    pcm: np.ndarray
    reasons: tuple[tuple[str, str], ...]
    figures: dict[str, float] = field(default_factory=dict)
    prompt: str = ""


def examine(
    found: Scan, stretch: Stretch, length: int, shape: tuple[int, int], tools: Tools, limits: Limits, seed: list[int]
) -> Examined:
    """A clip of `length` frames, cropped to `shape` (height, width). seed: of the wording of its prompt.

    Raises DamagedError where the source gives fewer frames than when it was scanned.
    """
    stop = stretch.start + length + stretch.room
    boxes = steady(found.boxes[stretch.start : stop])
    crop = crop_of(boxes, found.video.size, shape, limits)
    shown = cropped((one.picture for one in frames(found.video, stretch.start, stop)), crop, shape)
    if len(shown) != len(boxes):
        raise DamagedError(f"gives {len(shown)} frames where there were {len(boxes)}")
    inside = crop.moved(boxes, shape[0])
    points = np.stack([tools.finder.points(one, box) for one, box in zip(shown, inside, strict=True)])
    first = int(motion.calm(points)[: stretch.room + 1].argmax())
    part, start = slice(first, first + length), stretch.start + first
    shown, points, inside = shown[part], points[part], inside[part]
    pcm = found.pcm[start * SAMPLES_PER_FRAME : (start + length) * SAMPLES_PER_FRAME]
    figures = {
        "face": crop.face,
        "enlarged": shape[0] / crop.height,
        "moving": float(found.fresh[start : start + length].mean()),
        "speech": float(found.speech[start : start + length].mean()),
        **seen(shown, points, inside, tools, limits),
        **vars(sync.measure(mouth_opening(points), pcm)),
    }
    reasons = (*faults(crop, boxes[part], shape, limits), *judged(figures, limits))
    prompt = "" if reasons else prompt_of(shown, pcm, points, tools, seed)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    return Examined(start, crop, shown, pcm, reasons, rounded, prompt)


def seen(shown: np.ndarray, points: np.ndarray, boxes: np.ndarray, tools: Tools, limits: Limits) -> dict[str, float]:
    """Figures of the pictures uint8 [T, H, W, 3] with landmarks [T, 68, 2] and boxes [T, 4] of the face."""
    chosen = np.linspace(0, len(shown) - 1, LOOKED_AT).round().astype(int)
    faces = [picture.face_of(shown[i], points[i]) for i in chosen]
    light, burnt = np.array([picture.exposure(face) for face in faces]).T
    figures = {
        "blur": float(np.median([picture.blur(face) for face in faces])),
        "blur of the reference": picture.blur(faces[0]),
        "light": float(np.median(light)),
        "burnt": float(np.median(burnt)),
        "turned": float(np.median(np.abs(motion.angles(points)[:, 1]))),
    }
    detail = np.array([picture.mouth_detail(shown[i], points[i]) for i in chosen])
    trembles = np.array([picture.mouth_trembles(tools.finder, shown[i], boxes[i], points[i]) for i in chosen])
    hidden = (detail < limits.mouth_detail) | (trembles > limits.mouth_trembles)
    figures |= {"mouth detail": float(np.median(detail)), "mouth trembles": float(np.median(trembles))}
    figures["mouth hidden"] = float(hidden.mean())
    if tools.identity is not None:
        others = np.linspace(0, len(shown) - 1, COMPARED + 1).round().astype(int)[1:]
        own, *rest = (tools.identity(shown[i], points[i]) for i in (0, *others))
        figures["identity"] = float(max(np.linalg.norm(own - one) for one in rest))
    return figures


def judged(figures: dict[str, float], limits: Limits) -> Iterator[tuple[str, str]]:
    """What the figures of a clip break, as reason and detail."""
    checks = (
        ("frozen", "moving", "at least", limits.moving),
        ("blur", "blur", "at most", limits.blur),
        ("blur", "blur of the reference", "at most", limits.blur),
        ("dark", "light", "at least", limits.dark),
        ("bright", "light", "at most", limits.bright),
        ("burnt", "burnt", "at most", limits.burnt),
        ("turned", "turned", "at most", limits.turned),
        ("mouth", "mouth hidden", "at most", limits.mouth_hidden),
        ("silence", "speech", "at least", limits.speech),
        ("sync", "correlation", "at least", limits.sync),
        ("sync", "confidence", "at least", limits.confidence),
        ("identity", "identity", "at most", limits.identity),
    )
    for reason, name, side, limit in checks:
        if name in figures and (figures[name] < limit if side == "at least" else figures[name] > limit):
            yield reason, f"{name} {figures[name]:.2f}, {side} {limit:g} is wanted"
    if abs(figures["lag"]) > limits.lag:
        late = "late" if figures["lag"] > 0 else "early"
        yield (
            "sync",
            f"the sound is {1000 * abs(figures['lag']):.0f} ms too {late} (confidence {figures['confidence']:.2f})",
        )


def prompt_of(shown: np.ndarray, pcm: np.ndarray, points: np.ndarray, tools: Tools, seed: list[int]) -> str:
    """One line without the mark that separates the parts of a condition."""
    if tools.captioner is not None:
        said = tools.captioner(shown, pcm)
    else:
        said = motion.prompt_of(motion.tracks_of(points), np.random.default_rng(seed))
    return " ".join(said.replace("@@", " ").split())
