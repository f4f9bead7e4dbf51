"""A second opinion on the mouth: dlib's 68 landmarks against the judge, where dlib and its model are installed.

dlib is no requirement: `dlib-bin` from PyPI and Debian's `libdlib-data` bring it and the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livetalk.evaluation.metrics import MIN_SPEECH, Estimate, masked_pearson, mean_interval, plain
from livetalk.faces import DEBIAN_MODEL, mouth_opening


@dataclass(frozen=True)
class Agreement:
    """Correlation within a clip of dlib's inner-lip gap with the judge's opening, and the share of frames dlib found.

    `available` is false where dlib or its model is missing; `reason` then says which.
    """

    available: bool
    reason: str
    correlation: Estimate
    found: float

    def __str__(self) -> str:
        if not self.available:
            return f"dlib agreement: not available ({self.reason})"
        return f"dlib agreement: {self.correlation}, face found in {self.found:.0%} of the frames"


def lip_gaps(frames: np.ndarray, model: Path, scale: int = 3) -> np.ndarray:
    """Inner-lip gap over face length by dlib of frames uint8 [N, H, W, 3] -> [N]; nan where no face is found.

    Frames are enlarged `scale` times with bilinear weights: the detector wants faces of 80 pixels or more.
    """
    import dlib
    from PIL import Image

    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model))
    gaps = np.full(len(frames), np.nan)
    for index, frame in enumerate(frames):
        height, width = frame.shape[:2]
        large = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.BILINEAR)
        image = np.ascontiguousarray(large)
        faces = detector(image, 0)
        if not faces:
            continue
        shape = predictor(image, max(faces, key=lambda box: box.area()))
        points = np.asarray([(point.x, point.y) for point in shape.parts()], dtype=np.float64)
        gaps[index] = mouth_opening(points)
    return gaps


def landmark_agreement(frames: np.ndarray, judged_open: np.ndarray, model: Path = DEBIAN_MODEL) -> Agreement:
    """Agreement of the judged mouth opening [B, T] with dlib's on frames uint8 [B, T, H, W, 3].

    Clips in which dlib finds fewer than MIN_SPEECH faces do not count.
    """
    nothing = plain(float("nan"), 0)
    try:
        import dlib  # noqa: F401
    except ImportError:
        return Agreement(False, "dlib is not installed: pip install dlib-bin", nothing, 0.0)
    if not model.is_file():
        return Agreement(False, f"{model} is missing: apt-get install libdlib-data, or give its path", nothing, 0.0)
    gaps = lip_gaps(frames.reshape(-1, *frames.shape[2:]), model).reshape(judged_open.shape)
    found = ~np.isnan(gaps)
    per_clip = masked_pearson(judged_open, np.nan_to_num(gaps), found)
    assert found.shape[1] >= MIN_SPEECH, found.shape
    return Agreement(True, "", mean_interval(per_clip), float(found.mean()))
