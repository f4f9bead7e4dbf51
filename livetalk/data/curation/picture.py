"""Measures of a face in pictures: sharpness, exposure, whether the mouth is to be seen."""

from __future__ import annotations

import numpy as np
from PIL import Image

from livetalk.faces import EYES, MOUTH, Finder

LUMA = np.array([0.299, 0.587, 0.114])
SIDE = 128  # pixels of a face's height at which it is looked at, if it has as many
SMEAR = 9  # pixels of the blur that tells a sharp picture from a smeared one
NUDGE = 0.05  # of a face's height
DEEP, HIGH = 8 / 255, 247 / 255  # beyond these nothing is drawn


def face_of(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face with landmarks [68, 2] of a picture uint8 [H, W, 3], at most SIDE pixels high: luma [h, w] from 0 to
    1."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(right, picture.shape[1]), min(bottom, picture.shape[0])
    if right - left < 2 or bottom - top < 2:
        return np.zeros((SIDE, SIDE))
    height = min(SIDE, round(bottom - top))
    width = max(2, round(height * (right - left) / (bottom - top)))
    face = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(face) @ LUMA / 255


def blur(luma: np.ndarray) -> float:
    """How smeared a picture [H, W] is, from 0 (sharp) to 1: the share of the change from pixel to pixel that stays when
    it is smeared once more, in the worse direction (after Crete et al., "The blur effect", 2007)."""
    worst = 0.0
    for axis in (0, 1):
        kernel = np.ones(SMEAR) / SMEAR
        smeared = np.apply_along_axis(np.convolve, axis, luma, kernel, mode="valid")
        cut = slice(SMEAR // 2, luma.shape[axis] - SMEAR // 2)
        own = np.abs(np.diff(luma[(slice(None),) * axis + (cut,)], axis=axis))
        lost = np.maximum(own - np.abs(np.diff(smeared, axis=axis)), 0)
        worst = max(worst, 1 - float(lost.sum()) / max(float(own.sum()), 1e-9))
    return worst


def exposure(luma: np.ndarray) -> tuple[float, float]:
    """Mean brightness of a face [H, W], and the share of it that is black or white without any detail."""
    return float(luma.mean()), float(((luma < DEEP) | (luma > HIGH)).mean())


def mouth_trembles(finder: Finder, picture: np.ndarray, box: np.ndarray, points: np.ndarray) -> float:
    """How far the mouth's landmarks move, over the face's height, when the box [4] they are sought in is nudged: much
    where they find nothing to hold on to, since something lies over the mouth."""
    height = box[3] - box[1]
    nudges = np.array([(1, 0, 1, 0), (0, 1, 0, 1), (-1, 0, -1, 0), (0, -1, 0, -1)]) * NUDGE * height
    moved = [finder.points(picture, box + nudge)[MOUTH] - points[MOUTH] for nudge in nudges]
    return float(np.linalg.norm(moved, axis=-1).mean() / height)


def mouth_detail(picture: np.ndarray, points: np.ndarray) -> float:
    """Edges in the mouth over those in the eyes: next to nothing where something smooth lies over the mouth."""
    eyes = [edges(picture, points[list(eye)]) for eye in EYES]
    return edges(picture, points[MOUTH]) / max(np.mean(eyes), 1e-6)


def edges(picture: np.ndarray, points: np.ndarray) -> float:
    """Mean change from row to row of the luma in the box around some landmarks, from 0 to 1."""
    left, top = np.floor(points.min(axis=0) - 1).astype(int).clip(0)
    right, bottom = np.ceil(points.max(axis=0) + 2).astype(int)
    luma = picture[top:bottom, left:right] @ LUMA / 255
    return float(np.abs(np.diff(luma, axis=0)).mean()) if luma.shape[0] > 1 and luma.shape[1] > 0 else 0.0
