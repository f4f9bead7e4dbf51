"""Settings of `scripts/prepare_data.sh`."""

from __future__ import annotations

from dataclasses import dataclass, field

from livetalk.checks import at_least, known_name, known_part
from livetalk.data.curation.limits import Limits
from livetalk.geometry import Geometry, bucket, frames_of_latents


@dataclass(frozen=True)
class PrepareRun:
    """`scripts/prepare_data.sh FOLDER`: clips out of people's own videos, to runs/NAME.

    folder: the videos, at any depth; they are only read. model: whose encoders encode the clips: nano, a family's
    folder, or a published model. height, width: of the pictures; aspect: across:down, such as 9:16, for another shape
    of as many pixels. clip_latents: length in latent frames; longer than a training's window, so that windows can
    continue others. held_out: at least so many of the clips, of videos of their
    own, are kept for judging. features: folder for the features of the prompts (data/features.py), "" for none. shard:
    clips a file, chunk: clips a pass. workers: processes that look at videos. part of parts: with parts > 1 the process
    looks at its part of the videos only, so that several machines can share the work; a later call with parts=1 lists
    and encodes.

    faces: dlib, identity: dlib or "" (not compared), voice: silero or energy (loudness alone); or a user's own, as
    module:name. improve: a folder of a diffusers pipeline or module:name, picture -> picture, for the reference
    pictures; prompts: "motion", or module:name, (frames, sound) -> text. sheet: clips kept and rejected that the
    contact sheet shows of each.
    """

    run: str = "prepare_data"
    name: str = "own"
    folder: str = ""
    model: str = "nano"
    device: str = "auto"
    height: int = 128
    width: int = 128
    aspect: str = ""
    clip_latents: int = 25
    held_out: int = 0
    features: str = ""
    shard: int = 64
    chunk: int = 4
    workers: int = 4
    part: int = 0
    parts: int = 1
    faces: str = "dlib"
    identity: str = "dlib"
    voice: str = "silero"
    improve: str = ""
    prompts: str = "motion"
    sheet: int = 40
    seed: int = 0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        Geometry(*self.shape)
        known_name(self.name)
        at_least(2, self, "clip_latents")
        at_least(1, self, "shard", "chunk", "workers")
        at_least(0, self, "held_out", "sheet", "seed")
        known_part(self.part, self.parts)

    @property
    def frames(self) -> int:
        """Of a clip."""
        return frames_of_latents(self.clip_latents)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the clips."""
        if not self.aspect:
            return self.height, self.width
        across, colon, down = self.aspect.partition(":")
        if not (colon and across.isdigit() and down.isdigit()):
            raise ValueError(f"aspect={self.aspect} is no shape: write across:down, for example 9:16")
        return bucket(int(across), int(down), self.height * self.width)
