"""Faces in pictures and their landmarks, behind one small interface.

A finder is anything with the two methods of Finder. DlibFaces is the one that comes along; `named` also takes one that
a user names as module:function. Landmarks are the usual 68 of a face, each (x, y) in pixels of the picture.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

DEBIAN_MODEL = Path("/usr/share/dlib/shape_predictor_68_face_landmarks.dat")
MODELS = "face_recognition_models"  # a package that holds dlib's networks as files
INNER_LIPS = ((61, 67), (62, 66), (63, 65))  # upper and lower points of the inner lips
MOUTH = slice(48, 68)
MOUTH_CORNERS = (48, 54)
NOSE_BRIDGE, CHIN = 27, 8
EYES = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))  # corner, two above, corner, two below
FITTED = 200  # pixels of a face's side at which dlib fits landmarks, which it gives in whole pixels


class Finder(Protocol):
    """Finds faces in pictures uint8 [H, W, 3]."""

    def find(self, picture: np.ndarray) -> np.ndarray:
        """Boxes of the faces, float [n, 4]: left, top, right, bottom, from brows to chin; the largest first."""

    def points(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The landmarks, float [68, 2], of the face in a box [4]."""


class DlibFaces:
    """dlib's frontal detector, which wants faces of some 80 pixels, and its 68 landmarks.

    Raises ValueError, with the remedy, where dlib or its model is missing.
    """

    def __init__(self, model: Path = DEBIAN_MODEL) -> None:
        self.dlib = require_dlib()
        self.detector = self.dlib.get_frontal_face_detector()
        self.predictor = self.dlib.shape_predictor(str(landmark_model(model)))

    def find(self, picture: np.ndarray) -> np.ndarray:
        found = self.detector(np.ascontiguousarray(picture), 0)
        boxes = [(face.left(), face.top(), face.right() + 1, face.bottom() + 1) for face in found]
        boxes.sort(key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), reverse=True)
        return np.asarray(boxes, float).reshape(-1, 4)

    def points(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Fits on an enlarged or reduced face, so that the precision does not depend on its size."""
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        # What surrounds the box belongs to it: landmarks reach beyond.
        area = (left - width / 2, top - height / 2, right + width / 2, bottom + height / 2)
        scale = FITTED / max(width, height)
        size = (max(1, round(2 * width * scale)), max(1, round(2 * height * scale)))
        part = Image.fromarray(picture).transform(size, Image.Transform.EXTENT, area, Image.Resampling.BILINEAR)
        inner = self.dlib.rectangle(size[0] // 4, size[1] // 4, 3 * size[0] // 4 - 1, 3 * size[1] // 4 - 1)
        fitted = np.array([(point.x, point.y) for point in self.predictor(np.asarray(part), inner).parts()], float)
        return (fitted + 0.5) * (2 * width / size[0], 2 * height / size[1]) + area[:2] - 0.5


class DlibIdentity:
    """dlib's 128 numbers of a face; two pictures of one person are nearer than SAME to each other.

    Raises ValueError, with the remedy, where dlib or the network is missing.
    """

    def __init__(self) -> None:
        self.dlib = require_dlib()
        # The package's own import needs parts of setuptools that are gone: only its folder is asked for.
        spec = importlib.util.find_spec(MODELS)
        if spec is None:
            raise ValueError(
                "the network that tells people apart is not installed: pip install face-recognition-models"
            )
        folder = Path(spec.submodule_search_locations[0]) / "models"
        network = str(folder / "dlib_face_recognition_resnet_model_v1.dat")
        self.network = self.dlib.face_recognition_model_v1(network)

    def __call__(self, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        """[128] of the face with the landmarks [68, 2] in a picture uint8 [H, W, 3]."""
        dlib = self.dlib
        left, top, right, bottom = *points.min(axis=0), *points.max(axis=0)
        box = dlib.rectangle(round(left), round(top), round(right), round(bottom))
        parts = dlib.points([dlib.point(round(x), round(y)) for x, y in points])
        shape = dlib.full_object_detection(box, parts)
        return np.asarray(self.network.compute_face_descriptor(np.ascontiguousarray(picture), shape))


SAME = 0.6
"""Distance of two faces' numbers below which dlib's authors take them for one person."""


def require_dlib() -> Any:
    """The module dlib. Raises ValueError, with the remedy, where it is not installed."""
    try:
        import dlib
    except ImportError as error:
        raise ValueError("dlib is not installed: pip install dlib-bin") from error
    return dlib


def landmark_model(model: Path = DEBIAN_MODEL) -> Path:
    """The file of the landmarks' model: `model`, else the one of the package MODELS. Raises ValueError for neither."""
    if model.is_file():
        return model
    spec = importlib.util.find_spec(MODELS)
    if spec is None:
        raise ValueError(f"{model} is missing: apt-get install libdlib-data, or pip install face-recognition-models")
    return Path(spec.submodule_search_locations[0]) / "models" / DEBIAN_MODEL.name


def named(name: str, what: str, known: dict[str, Callable[[], Any]]) -> Any:
    """What a setting names: one of `known`, made now, or an object of a user's own, as module:name; a
    class is called once.

    Raises ValueError, in one line, for what is neither or cannot be imported.
    """
    if name in known:
        return known[name]()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"{what}={name} is not known: use {' or '.join(known)}, or name your own as module:function")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        remedy = "it must be importable, for example with PYTHONPATH=FOLDER before the command"
        raise ValueError(f"{what}={name} cannot be imported ({error}): {remedy}") from error
    return found() if isinstance(found, type) else found


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """Gap between the inner lips over the length from nose bridge to chin, of landmarks [..., 68, 2]."""
    length = np.linalg.norm(points[..., CHIN, :] - points[..., NOSE_BRIDGE, :], axis=-1)
    gaps = [np.linalg.norm(points[..., a, :] - points[..., b, :], axis=-1) for a, b in INNER_LIPS]
    return np.mean(gaps, axis=0) / np.maximum(length, 1e-6)
