"""Seconds, frames, latents, blocks and tokens: every derived number has its one home here.

Time. A frame j is shown at j / FPS seconds and hears the sound at j / FPS seconds; a clip of T frames therefore owns
T / FPS seconds of sound. Latent 0 stands for frame 0 alone, latent i > 0 for the frames 4i-3 .. 4i, so F latents are
T = 4F - 3 frames.

Space. The VAE divides height and width by 8, the patch embedding by 2 again: a token covers 16 x 16 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, log

FPS = 16
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
TIME_STRIDE = 4
SPACE_STRIDE = 8
PATCH = 2
LATENT_CHANNELS = 16


def frames_of_latents(latents: int) -> int:
    """Video frames that `latents` latent frames (at least one) decode to: 4F - 3."""
    assert latents >= 1
    return TIME_STRIDE * (latents - 1) + 1


def latents_of_frames(frames: int) -> int:
    """The fewest latent frames that cover `frames` video frames."""
    assert frames >= 1
    return (frames + 2 * TIME_STRIDE - 2) // TIME_STRIDE


def clip_frames(samples: int) -> int:
    """Frames of a clip with `samples` samples of sound: ceil(FPS * seconds), at least one."""
    return max(1, ceil(samples / SAMPLES_PER_FRAME))


def samples_of_seconds(seconds: float) -> int:
    """Samples in `seconds` of sound. Raises ValueError unless the duration is positive and finite."""
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(f"duration {seconds} s is not possible: give a positive number of seconds")
    return max(1, round(seconds * SAMPLE_RATE))


def tokens_of(frames: int, height: int, width: int) -> int:
    """Tokens of latents of so many frames, rows and columns."""
    return frames * (height // PATCH) * (width // PATCH)


def frame_span(latent: int) -> tuple[int, int]:
    """First and one-past-last video frame of a latent frame."""
    return (0, 1) if latent == 0 else (TIME_STRIDE * latent - 3, TIME_STRIDE * latent + 1)


def bucket(across: int, down: int, pixels: int) -> tuple[int, int]:
    """Height and width of about `pixels` for pictures of the shape across : down, whole tokens both.

    Of the sizes around it the one nearest in shape, then in size. Raises ValueError for what is no shape.
    """
    if min(across, down, pixels) < 1:
        raise ValueError(f"shape {across}:{down} of {pixels} pixels is none: give positive numbers, such as 9:16")
    token, shape = SPACE_STRIDE * PATCH, across / down
    ideal = (pixels / shape) ** 0.5
    heights = [max(1, int(ideal / token) + step) * token for step in range(-1, 3)]
    sizes = [(height, max(1, round(height * shape / token)) * token) for height in heights]

    def badness(size: tuple[int, int]) -> tuple[float, float, float]:
        more, longer = abs(log(size[0] * size[1] / pixels)), abs(log(size[1] / size[0] / shape))
        return max(0.1, more), longer, more  # a tenth of the pixels more or less is as good

    return min(sizes, key=badness)


@dataclass(frozen=True)
class Geometry:
    """Picture size in pixels; block, window, anchors and training clip in latent frames."""

    height: int = 512
    width: int = 512
    block: int = 3
    window: int = 15
    anchors: int = 9
    clip_latents: int = 21

    def __post_init__(self) -> None:
        token = SPACE_STRIDE * PATCH
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < token or size % token:
                raise ValueError(
                    f"{name} {size} is not a positive multiple of {token} pixels: use {_near(size, token)}"
                )
        if self.block < 1 or self.clip_latents < 1 or self.clip_latents % self.block:
            raise ValueError(
                f"a clip of {self.clip_latents} latents is not a whole number of blocks of {self.block}: make "
                "clip_latents a multiple of block"
            )
        if not 0 <= self.anchors <= self.window - self.block:
            raise ValueError(
                f"window {self.window} cannot hold {self.anchors} anchors and a block of {self.block} latents: "
                "anchors + block must fit into the window"
            )

    @property
    def latent_height(self) -> int:
        return self.height // SPACE_STRIDE

    @property
    def latent_width(self) -> int:
        return self.width // SPACE_STRIDE

    @property
    def rows(self) -> int:
        return self.latent_height // PATCH

    @property
    def columns(self) -> int:
        return self.latent_width // PATCH

    @property
    def tokens_per_frame(self) -> int:
        return self.rows * self.columns

    @property
    def clip_frames(self) -> int:
        return frames_of_latents(self.clip_latents)

    def blocks(self, frames: int) -> int:
        """Whole blocks needed for `frames` video frames."""
        return ceil(latents_of_frames(frames) / self.block)

    def block_frames(self, index: int) -> range:
        """Video frames of block `index` of a clip: 4 * block of them, 3 fewer in block 0."""
        first = index * self.block
        return range(frame_span(first)[0], frame_span(first + self.block - 1)[1])

    def block_of(self, frame: int) -> int:
        """The block that video frame `frame` of a clip belongs to."""
        return self.blocks(frame + 1) - 1

    @property
    def block_seconds(self) -> float:
        """How long a block is shown (all but block 0, which is shorter)."""
        return self.block * TIME_STRIDE / FPS


def _near(size: int, step: int) -> int:
    return max(step, round(size / step) * step)
