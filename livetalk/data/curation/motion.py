"""Head, lids and smile of a person, read from landmarks, and the prompt that describes them.

The tracks are in the units of the synthetic world, whose words and limits (data/world/prompts.py) serve here too. How
high brows are depends more on the person than on the moment, so nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from livetalk.data.world.prompts import VALUES, Attributes, describe, measure
from livetalk.faces import EYES, MOUTH_CORNERS, NOSE_BRIDGE, mouth_opening

Captioner = Callable[[np.ndarray, np.ndarray], str]
"""Frames uint8 [T, H, W, 3] and sound [T * 1000] -> a prompt."""

# What does not move in a face: bridge and wings of the nose, corners of the eyes. Centimetres on the average head of
# ICT-FaceKit: to the speaker's left, up, forward.
RIGID = (27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45)
HEAD = np.array(
    [
        *((0.0, 3.74, 10.73), (0.0, 2.63, 11.52), (0.0, 1.61, 12.31), (0.0, 0.41, 13.07)),
        *((-1.25, -1.14, 10.87), (0.0, -1.2, 11.57), (1.25, -1.14, 10.87)),
        *((-4.46, 3.43, 8.6), (-1.84, 3.25, 9.2), (1.84, 3.25, 9.2), (4.46, 3.43, 8.6)),
    ]
)
# Fitted to clips of the world, whose truth is known: a camera near the face exaggerates turns, smoothing lessens nods.
YAW_GAIN, PITCH_GAIN = 1.17, 0.9
SMOOTH = 3  # frames
OPEN, CLOSED = 0.8, 0.6  # quantile of the lids' gap that is an open eye; share of it that a blink takes away
SERIOUS = 0.38  # width of a serious mouth over that of the eyes, less twice the height of its corners


def angles(points: np.ndarray) -> np.ndarray:
    """Pitch, yaw and roll in degrees [T, 3] of landmarks [T, 68, 2]: the head under a camera that is far away."""
    model = HEAD - HEAD.mean(axis=0)
    found = []
    for shown in points[:, list(RIGID)]:
        flat = (shown - shown.mean(axis=0)) * (1, -1)
        seen = np.linalg.lstsq(model, flat, rcond=None)[0].T
        left, _, right = np.linalg.svd(seen, full_matrices=False)
        across, up = left @ right
        forward = np.cross(across, up)
        pitch, yaw = np.arcsin(np.clip(-up[2], -1, 1)), np.arctan2(across[2], forward[2])
        found.append((pitch / PITCH_GAIN, yaw / YAW_GAIN, -np.arctan2(up[0], up[1])))
    return np.degrees(found)


def smooth(track: np.ndarray) -> np.ndarray:
    """A track [T] without the trembling of landmarks."""
    window = np.hanning(SMOOTH + 2)
    padded = np.pad(track, (len(window) // 2,) * 2, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")


def lids(points: np.ndarray) -> np.ndarray:
    """Gap between the lids over the eye's width [T], mean of both eyes."""
    gaps = []
    for eye in EYES:
        outer, high1, high2, inner, low2, low1 = (points[:, index] for index in eye)
        heights = np.linalg.norm(high1 - low1, axis=1) + np.linalg.norm(high2 - low2, axis=1)
        gaps.append(heights / (2 * np.linalg.norm(outer - inner, axis=1)))
    return np.mean(gaps, axis=0)


def smiles(points: np.ndarray) -> np.ndarray:
    """[T] from 0 to 1: a wide mouth with high corners."""
    across = points[:, 45] - points[:, 36]
    width = np.linalg.norm(across, axis=1)
    down = np.stack([-across[:, 1], across[:, 0]], axis=1) / width[:, None]

    def height(*index: int) -> np.ndarray:
        middle = points[:, list(index)].mean(axis=1) - points[:, NOSE_BRIDGE]
        return (middle * down).sum(axis=1) / width

    mouth = np.linalg.norm(points[:, MOUTH_CORNERS[0]] - points[:, MOUTH_CORNERS[1]], axis=1) / width
    raised = height(*MOUTH_CORNERS) - height(51, 57, 62, 66)
    return np.clip(mouth - 2 * raised - SERIOUS, 0, 1)


def tracks_of(points: np.ndarray) -> dict[str, np.ndarray]:
    """yaw, pitch, roll in degrees, blink and smile from 0 to 1, each [T], of landmarks [T, 68, 2]."""
    pitch, yaw, roll = (smooth(track) for track in angles(points).T)
    gap = lids(points)
    open_eye = np.quantile(gap, OPEN)
    blink = np.clip((open_eye - gap) / (CLOSED * open_eye), 0, 1)
    return {"pitch": pitch, "yaw": yaw, "roll": roll, "blink": blink, "smile": smiles(points)}


def prompt_of(tracks: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    """What the tracks of a clip show, in one of many wordings."""
    found = measure(tracks)
    return describe(Attributes(**found), rng, unknown={"setting", *(VALUES.keys() - found.keys())})


def calm(points: np.ndarray) -> np.ndarray:
    """How well each frame would do as a reference picture [T], the higher the better: looking ahead, eyes open, mouth
    not wide open. In parts of what spoils a picture, so that the best of a row is clear."""
    tracks = tracks_of(points)
    turned = np.hypot(tracks["yaw"], tracks["pitch"] - np.median(tracks["pitch"])) / 20
    return -(turned + 2 * tracks["blink"] + 4 * mouth_opening(points))
