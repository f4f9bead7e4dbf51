"""What a clip must be like to be kept. Every limit is a key that users can set, `limits.NAME=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times are seconds, brightness is from 0 to 1, lengths are over those of the picture or of the face.

    While the source is scanned:
    cut: change of a picture, from 0 to 1, from which it may be a cut, and cut_ratio: how many times the largest change
    of its neighbours it then is. black, white: mean brightness of a picture that shows nothing. frozen: how long one
    picture may stand. second_face: height of another face over the first one's from which it counts. faces_gap: how
    long a face may be missing, or a second one be there. pause: how long nobody may speak.

    Of a clip:
    face_share: height of the face, brows to chin, in the cropped picture; face_most: in a source that is framed more
    tightly. enlarge: how much a crop may be enlarged. moving: share of its frames that are pictures of their own.
    blur: from 0 to 1 (picture.blur). dark, bright: mean brightness of the face; burnt: share of it without any detail.
    mouth_detail, mouth_trembles: see picture.py; mouth_hidden: share of the frames in which the mouth may be covered by
    these signs; turned: degrees to the side.
    speech: share of its frames. lag: between mouth and sound, sync: their correlation at that lag, confidence: how far
    that stands above the median over all lags (sync.py). identity: distance of the reference to frames of the clip.
    """

    cut: float = 0.05
    cut_ratio: float = 3.0
    black: float = 0.04
    white: float = 0.96
    frozen: float = 0.5
    second_face: float = 0.4
    faces_gap: float = 0.25
    pause: float = 2.0
    face_share: float = 0.5
    face_most: float = 0.75
    enlarge: float = 1.5
    moving: float = 0.6
    blur: float = 0.5
    dark: float = 0.12
    bright: float = 0.9
    burnt: float = 0.25
    mouth_detail: float = 0.25
    mouth_trembles: float = 0.025
    mouth_hidden: float = 0.2
    turned: float = 40.0
    speech: float = 0.4
    lag: float = 0.1
    sync: float = 0.35
    confidence: float = 0.2
    identity: float = 0.45

    def __post_init__(self) -> None:
        if not 0 < self.face_share <= self.face_most <= 1:
            raise ValueError(
                f"limits.face_share={self.face_share} and limits.face_most={self.face_most}: give shares of the "
                "picture's height, the first no larger than the second"
            )
        for name in ("enlarge", "cut_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name}={getattr(self, name)}: give a number of at least 1")
        for name in ("moving", "blur", "speech", "sync", "confidence", "second_face", "mouth_hidden"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"limits.{name}={getattr(self, name)}: give a number from 0 to 1")
