"""A drawn head: an ellipse with eyes and a mouth, whose tracks are known exactly: for judges in tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SIZE = 64


@dataclass(frozen=True)
class ToyClip:
    frames: np.ndarray
    reference: np.ndarray
    tracks: dict
    prompt: str
    identity: int


def ellipse(x: np.ndarray, y: np.ndarray, rx: np.ndarray, ry: np.ndarray) -> np.ndarray:
    """Soft masks [T, S, S] of ellipses with centres and radii [T] in pixels."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    x, y, rx, ry = (np.asarray(v, dtype=np.float64).reshape(-1, 1, 1) for v in (x, y, rx, ry))
    distance = np.sqrt(((columns - x) / rx) ** 2 + ((rows - y) / np.maximum(ry, 0.3)) ** 2)
    return 1 / (1 + np.exp(np.minimum(rx, np.maximum(ry, 0.3)) * 2 * (distance - 1)))


def smooth(rng: np.random.Generator, frames: int, width: int = 5) -> np.ndarray:
    """A smooth random curve [T] in about [0, 1]."""
    noise = np.convolve(rng.uniform(0, 1, frames + 2 * width), np.ones(width) / width, mode="same")[width:-width]
    return np.clip((noise - 0.5) * 2.5 + 0.5, 0, 1)


def toy_tracks(rng: np.random.Generator, frames: int, nods: bool) -> dict[str, np.ndarray]:
    speech = np.ones(frames)
    speech[: frames // 4] = 0
    eye = np.ones(frames)
    eye[rng.integers(0, frames, 2)] = 0.1
    swing = 12.0 if nods else 2.0
    return {
        "mouth_open": smooth(rng, frames) * speech,
        "mouth_width": 0.7 + 0.3 * smooth(rng, frames),
        "eye_open": eye,
        "pitch": swing * (2 * smooth(rng, frames) - 1),
        "yaw": 10 * (2 * smooth(rng, frames) - 1),
        "roll": 5 * (2 * smooth(rng, frames) - 1),
        "blink": 1 - eye,
        "smile": np.full(frames, rng.uniform()),
        "speech": speech,
    }


def draw(tracks: dict[str, np.ndarray], identity: int) -> np.ndarray:
    """uint8 [T, S, S, 3]: pitch and yaw move the features over the face, roll slants the eyes, smile tints a cheek."""
    person = np.random.default_rng(1000 + identity)
    skin, back, hair = (person.uniform(*span, 3) for span in ((0.45, 0.95), (0.1, 0.9), (0.0, 0.5)))
    width = person.uniform(15, 20)
    x, y = 32 + tracks["yaw"] * 0.4, 33 + tracks["pitch"] * 0.3
    slant = tracks["roll"] * 0.4
    flat = np.full_like(x, 1.0)
    image = np.broadcast_to(back, (len(x), SIZE, SIZE, 3)).copy()
    layers = [
        (ellipse(x, y - 5, (width + 2) * flat, 23 * flat), hair),
        (ellipse(x, y + 2, width * flat, 20 * flat), skin),
        (ellipse(x - 7, y - 4 - slant, 3.5 * flat, 3 * tracks["eye_open"]), np.array([0.05, 0.1, 0.4])),
        (ellipse(x + 7, y - 4 + slant, 3.5 * flat, 3 * tracks["eye_open"]), np.array([0.05, 0.1, 0.4])),
        (ellipse(x, y + 6, 8 * flat, 1.5 * flat), np.array([1.0, 0.3, 0.3])),
        (ellipse(x, y + 12, 8 * tracks["mouth_width"], 1 + 4.5 * tracks["mouth_open"]), np.array([0.3, 0.0, 0.05])),
    ]
    for index, (mask, colour) in enumerate(layers):
        mask = mask * (tracks["smile"].reshape(-1, 1, 1) if index == 4 else 1)
        image = image * (1 - mask[..., None]) + colour * mask[..., None]
    return (image * 255).round().astype(np.uint8)


def toy_clip(index: int, identity: int, frames: int = 16) -> ToyClip:
    rng = np.random.default_rng(index)
    nods = bool(index // 8 % 2)  # independent of identity = index % 8
    tracks = toy_tracks(rng, frames, nods)
    drawn = draw(tracks, identity)
    return ToyClip(drawn, drawn[0], tracks, "nods" if nods else "keeps still", identity)


def toy_batch(clips: list[ToyClip]) -> dict:
    """Clips in the form JudgesObjective takes, with one attribute: nods."""
    names = clips[0].tracks.keys()
    return {
        "frames": torch.from_numpy(np.stack([clip.frames for clip in clips])),
        "tracks": {n: torch.from_numpy(np.stack([clip.tracks[n] for clip in clips])).float() for n in names},
        "identity": torch.tensor([clip.identity for clip in clips]),
        "attributes": torch.tensor([[float(clip.prompt == "nods")] for clip in clips]),
    }
