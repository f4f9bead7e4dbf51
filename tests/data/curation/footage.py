"""Videos for the tests of curation, with faults planted in them.

`python -m tests.data.curation.footage FOLDER` renders clips of the synthetic world with ICT-FaceKit heads
(data/ict-facekit.npz) and writes them to FOLDER as ordinary videos, good ones and spoiled ones: see docs/own-data.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import soxr
from PIL import Image, ImageDraw, ImageFilter

from livetalk.data.world.clip import Clip, World
from livetalk.data.world.take import WorldConfig
from livetalk.geometry import FPS, SAMPLE_RATE

SECONDS = 8
TICKS = 90_000


def write_video(
    path: Path,
    pictures: np.ndarray,
    pcm: np.ndarray | None,
    stamps: np.ndarray | None = None,
    turned: int = 0,
    rate: int = 44_100,
    codecs: tuple[str, str] = ("libx264", "aac"),
    late: float = 0.0,
) -> Path:
    """pictures uint8 [n, H, W, 3] shown from `stamps` seconds on (default: at FPS), sound at SAMPLE_RATE as stereo.

    turned: 90, 180 or 270 degrees: pictures are stored turned clockwise, with the note to turn them back; late: seconds
    by which the sound begins after the picture, as its time stamps say.
    """
    import av

    stamps = np.arange(len(pictures)) / FPS if stamps is None else stamps
    pictures = np.rot90(pictures, -turned // 90, axes=(1, 2))
    options = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(codecs[0], rate=30)
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt, video.codec_context.time_base = "yuv420p", Fraction(1, TICKS)
        video.options = {"crf": "14", "g": "24"}
        if turned:
            video.set_display_rotation(turned)
        audio = None
        if pcm is not None:
            audio = container.add_stream(codecs[1], rate=rate, layout="stereo")
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(float(stamp) * TICKS), Fraction(1, TICKS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            sound = np.repeat(soxr.resample(pcm, SAMPLE_RATE, rate)[None], 2, axis=0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, round(late * rate), Fraction(1, rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def at_rate(pictures: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The same pictures as a video of another rate shows them, and its time stamps."""
    stamps = np.arange(int(len(pictures) / FPS * rate)) / rate
    return pictures[np.floor(stamps * FPS + 1e-9).astype(int)], stamps


def each(pictures: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def covered(picture: Image.Image) -> Image.Image:
    """A hand with a sheet of paper in front of the mouth: the lower part of the world's head."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    draw.rectangle((0.3 * width, 0.53 * height, 0.72 * width, 0.78 * height), fill=(205, 210, 215))
    return picture


def on_canvas(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """In the middle of a larger grey picture."""
    canvas = np.full((len(pictures), height, width, 3), 96, np.uint8)
    top, left = (height - pictures.shape[1]) // 2, (width - pictures.shape[2]) // 2
    canvas[:, top : top + pictures.shape[1], left : left + pictures.shape[2]] = pictures
    return canvas


def shifted(pcm: np.ndarray, seconds: float) -> np.ndarray:
    """Sound that comes later, of the same length."""
    count = round(abs(seconds) * SAMPLE_RATE)
    silence = np.zeros(count, np.float32)
    return np.concatenate([silence, pcm[:-count]] if seconds > 0 else [pcm[count:], silence])


def uneven(count: int) -> np.ndarray:
    """Time stamps of a variable rate: pictures come up to 25 ms early or late, and now and then one is left out."""
    rng = np.random.default_rng(3)
    stamps = np.arange(count) / FPS + rng.uniform(-0.025, 0.025, count)
    stamps[0] = 0.0
    return stamps


def truncated(path: Path, share: float) -> Path:
    """Cuts the end of a file off."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def plant(folder: Path, clips: list[Clip]) -> None:
    """Eight clips of SECONDS as good and as spoiled videos; the file's name says what is wrong, or `good`."""
    folder.mkdir(parents=True, exist_ok=True)
    a, b, c, d, e, f, g, h = clips
    write_video(folder / "good-16fps.mp4", a.frames, a.pcm)
    write_video(
        folder / "good-25fps.mkv", *swap(at_rate(b.frames, 25), b.pcm), codecs=("libx264", "libopus"), rate=48_000
    )
    write_video(
        folder / "good-30fps.webm", *swap(at_rate(c.frames, 30), c.pcm), codecs=("libvpx", "libopus"), rate=48_000
    )
    write_video(folder / "good-wide.mp4", on_canvas(d.frames, 320, 640), d.pcm)
    write_video(folder / "good-sound-begins-late.mp4", e.frames, e.pcm[4800:], late=0.3)
    write_video(folder / "good-portrait-rotated.mp4", on_canvas(f.frames, 384, 256), f.pcm, turned=90)
    kept = np.random.default_rng(1).random(len(g.frames)) > 0.12
    kept[0] = True
    write_video(folder / "good-variable-rate.mp4", g.frames[kept], g.pcm, uneven(len(g.frames))[kept])
    write_video(folder / "bad-blur.mp4", each(a.frames, lambda one: one.filter(ImageFilter.GaussianBlur(2.5))), a.pcm)
    write_video(folder / "bad-black.mp4", np.zeros_like(b.frames), b.pcm)
    blinking = b.frames.copy()
    blinking[60:62] = 0
    write_video(folder / "bad-black-frames.mp4", blinking, b.pcm)
    write_video(folder / "bad-dark.mp4", (c.frames * 0.12).astype(np.uint8), c.pcm)
    write_video(folder / "bad-two-faces.mp4", np.concatenate([c.frames, d.frames], axis=2), c.pcm)
    write_video(folder / "bad-silence.mp4", d.frames, np.zeros_like(d.pcm))
    write_video(folder / "bad-no-sound.mp4", e.frames, None)
    write_video(folder / "bad-sync-200ms-late.mp4", f.frames, shifted(f.pcm, 0.2))
    write_video(folder / "bad-sync-200ms-early.mp4", g.frames, shifted(g.pcm, -0.2))
    write_video(folder / "bad-sync-other-speech.mp4", h.frames, a.pcm)
    half = len(g.frames) // 2
    write_video(folder / "bad-cut.mp4", np.concatenate([g.frames[:half], h.frames[half:]]), g.pcm)
    skip = FPS
    jump = np.concatenate([h.frames[: half - skip // 2], h.frames[half + skip // 2 :]])
    sound = np.concatenate([h.pcm[: (half - skip // 2) * 1000], h.pcm[(half + skip // 2) * 1000 :]])
    write_video(folder / "bad-jump-cut.mp4", jump, sound)
    write_video(folder / "bad-mouth-covered.mp4", each(a.frames, covered), a.pcm)
    small = each(b.frames, lambda one: one.resize((96, 96), Image.Resampling.LANCZOS))
    write_video(folder / "bad-small-face.mp4", on_canvas(small, 192, 256), b.pcm)
    write_video(folder / "bad-frozen.mp4", np.repeat(c.frames[:1], len(c.frames), axis=0)[:9], c.pcm, np.arange(9.0))
    truncated(write_video(folder / "bad-truncated.mp4", d.frames, d.pcm), 0.5)
    (folder / "bad-no-video.mp4").write_bytes(b"this is no video" * 100)


def swap(shown: tuple[np.ndarray, np.ndarray], pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return shown[0], pcm, shown[1]


def world_clips(face_model: str = "data/ict-facekit.npz", size: int = 256) -> list[Clip]:
    """Eight clips of people who speak."""
    with World(WorldConfig(face_model=face_model, size=size, silent=0.0)) as world:
        return world.batch("dev", range(8), SECONDS * FPS)


if __name__ == "__main__":
    plant(Path(sys.argv[1]), world_clips())
