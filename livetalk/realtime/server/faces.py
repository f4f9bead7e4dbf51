"""Faces: the bundled ones, and uploaded ones that are kept in memory for a while."""

from __future__ import annotations

import io
import secrets
import struct
import warnings
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from livetalk.media import read_image, to_rgb
from livetalk.realtime.server.protocol import Refused

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
LEAST_SIDE, MOST_RATIO = 32, 8
KEPT_SIDE = 1024
"""The shorter side of what is kept of a picture."""
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True)
class Bundled:
    """A face that comes with the package; label: what a screen reader says of it."""

    name: str
    file: Path
    label: str


BUNDLED = (
    Bundled("robin", ASSETS / "example" / "face.png", "Robin, short brown hair, orange shirt"),
    Bundled("lin", ASSETS / "faces" / "lin.jpg", "Lin, long dark hair, orange shirt"),
    Bundled("amara", ASSETS / "faces" / "amara.jpg", "Amara, short black hair, yellow shirt"),
    Bundled("ruth", ASSETS / "faces" / "ruth.jpg", "Ruth, grey curls, glasses, black jacket"),
)


class Faces:
    """Pictures by name; `most` uploaded ones are kept, the oldest go. An uploaded one's name is known to its uploader
    alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._uploaded: OrderedDict[str, Image.Image] = OrderedDict()

    def add(self, picture: Image.Image) -> str:
        """Keeps a picture; returns its name."""
        name = "own-" + secrets.token_urlsafe(16)
        self._uploaded[name] = picture
        while len(self._uploaded) > self._most:
            self._uploaded.popitem(last=False)
        return name

    def find(self, name: str) -> Image.Image:
        """The picture of that name. Raises Refused if there is none."""
        for face in BUNDLED:
            if face.name == name:
                return read_image(face.file)
        if name not in self._uploaded:
            raise Refused("unknown_face", "there is no such face any more: choose another, or upload it again", 404)
        self._uploaded.move_to_end(name)
        return self._uploaded[name]


def decode(data: bytes, kind: str, most_pixels: int) -> Image.Image:
    """An uploaded picture of media type `kind`: RGB, upright, without anything of the file but its pixels, at most
    KEPT_SIDE on its shorter side. Raises Refused for what is none, or too large."""
    if kind not in TYPES:
        raise Refused("bad_type", "a face is a JPEG, PNG or WebP picture", 415)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Of no other format than the one that was said, so that no other decoder sees the data.
            with Image.open(io.BytesIO(data), formats=[TYPES[kind]]) as opened:
                _check_size(*opened.size, most_pixels)
                # A JPEG is decoded at the smallest size that will do.
                opened.draft("RGB", (KEPT_SIDE, KEPT_SIDE))
                opened.load()
                picture = to_rgb(opened)
    except Image.DecompressionBombError as error:
        raise Refused("too_many_pixels", f"at most {most_pixels / 1e6:g} million pixels are taken", 413) from error
    except UnidentifiedImageError as error:
        raise Refused("bad_picture", f"this is not a {TYPES[kind]} picture", 422) from error
    except Refused:
        raise
    except _DAMAGED as error:
        raise Refused("bad_picture", "the picture is damaged: save it again as PNG or JPEG", 422) from error
    scale = KEPT_SIDE / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return Image.frombytes("RGB", picture.size, picture.tobytes())


def _check_size(width: int, height: int, most: int) -> None:
    size = f"the picture is {width}x{height} pixels"
    if width * height > most:
        raise Refused("too_many_pixels", f"{size}: at most {most / 1e6:g} million are taken", 413)
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_RATIO * min(width, height):
        raise Refused("bad_shape", f"{size}: give at least {LEAST_SIDE} each way, and no strip", 422)
