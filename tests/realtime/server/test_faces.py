"""Uploaded pictures: what is taken, what is refused and why, and that nothing of the file but its pixels stays."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from livetalk.realtime.server.faces import BUNDLED, KEPT_SIDE, TYPES, Faces, decode
from livetalk.realtime.server.protocol import Refused

MOST = 2_000_000


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def code(data: bytes, kind: str = "image/png", most: int = MOST) -> str:
    with pytest.raises(Refused) as caught:
        decode(data, kind, most)
    assert 400 <= caught.value.status < 500
    return caught.value.code


FACE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))


@pytest.mark.parametrize("kind", TYPES)
def test_each_kind_is_taken(kind):
    picture = decode(saved(FACE, TYPES[kind]), kind, MOST)
    assert picture.mode == "RGB" and picture.size == (50, 60) and not picture.info


def test_it_is_upright_opaque_and_not_too_large():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"
    turned = decode(saved(FACE, "JPEG", exif=exif.tobytes()), "image/jpeg", MOST)
    assert turned.size == (60, 50) and not turned.info and not turned.getexif()
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert decode(saved(clear), "image/png", MOST).getpixel((3, 3)) == (255, 255, 255)
    large = Image.new("RGB", (1300, 1500))
    assert min(decode(saved(large), "image/png", MOST).size) == KEPT_SIDE


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is that large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "kind", "wanted"),
    [
        (b"", "image/png", "bad_picture"),
        (b"not a picture", "image/png", "bad_picture"),
        (saved(FACE), "image/gif", "bad_type"),
        (saved(FACE), "text/html", "bad_type"),
        (saved(FACE, "GIF"), "image/png", "bad_picture"),
        (saved(FACE, "TIFF"), "image/jpeg", "bad_picture"),
        (saved(FACE)[:-900], "image/png", "bad_picture"),
        (saved(FACE, "WEBP")[:200], "image/webp", "bad_picture"),
        (bomb(60_000, 60_000), "image/png", "too_many_pixels"),
        (bomb(2000, 1500), "image/png", "too_many_pixels"),
        (bomb(1000, 1000), "image/png", "bad_picture"),
        (saved(Image.new("RGB", (20, 20))), "image/png", "bad_shape"),
        (saved(Image.new("RGB", (40, 900))), "image/png", "bad_shape"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "image/png", "bad_picture"),
    ],
    ids=range(14),
)
def test_what_is_refused(data, kind, wanted):
    assert code(data, kind) == wanted


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(TYPES)),
    at=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=40),
    cut=st.booleans(),
)
def test_damaged_pictures_are_taken_or_refused(kind, at, noise, cut):
    data = bytearray(saved(FACE, TYPES[kind]))
    start = int(at * len(data))
    data[start : start + len(noise)] = noise
    try:
        picture = decode(bytes(data[: start + len(noise)] if cut else data), kind, MOST)
    except Refused:
        return
    assert picture.mode == "RGB" and min(picture.size) >= 32


@given(data=st.binary(max_size=500), kind=st.sampled_from(list(TYPES)))
def test_bytes_of_any_kind(data, kind):
    assert code(data, kind) in ("bad_picture", "too_many_pixels", "bad_shape")


def test_only_the_latest_are_kept():
    faces = Faces(2)
    names = [faces.add(FACE) for _ in range(3)]
    assert len(set(names)) == 3 and all(len(name) > 20 for name in names)
    assert faces.find(names[1]) is FACE and faces.find(names[2]) is FACE
    for name in (names[0], "", "../face.png", "own-"):
        with pytest.raises(Refused) as caught:
            faces.find(name)
        assert caught.value.code == "unknown_face"


def test_bundled_faces_are_there_and_small():
    assert len(BUNDLED) == 4 and len({face.name for face in BUNDLED}) == 4
    assert sum(face.file.stat().st_size for face in BUNDLED) < 120_000
    for face in BUNDLED:
        assert Faces(1).find(face.name).size == (256, 256) and face.label
