"""Clips of the synthetic talking-head world: pictures, sound, prompt and exact tracks, deterministic by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from multiprocessing.pool import Pool

import numpy as np
import torch

from livetalk.data.world.appearance import Look
from livetalk.data.world.channels import CHANNEL
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.prompts import Attributes
from livetalk.data.world.render import Renderer
from livetalk.data.world.speech import Phone
from livetalk.data.world.take import PERSON, SCENE, Take, WorldConfig, generator, prepare_many
from livetalk.geometry import FPS, TIME_STRIDE

SHUT = 0.3  # of the track of lids (0 open, 1 shut): what is more is part of a blink


@dataclass(frozen=True)
class Clip:
    """T frames of one talking person.

    frames: uint8 [T, H, W, 3]; reference: frame 0; pcm: float32 [T * 1000] at 16 kHz; tracks: float32 [T] each for
    mouth_open, mouth_width, eye_open (Renderer.tracks), pitch, yaw, roll (degrees), blink, smile, brow ([0, 1]),
    bool [T] for speech, and phonemes, a list of (start, end, IPA) in seconds within the clip.
    """

    frames: np.ndarray
    reference: np.ndarray
    pcm: np.ndarray
    prompt: str
    attributes: Attributes
    text: str
    tracks: dict
    identity: int
    split: str
    index: int


@dataclass(frozen=True)
class Batch:
    """Clips rendered together: takes, frames uint8 [B, T, H, W, 3] on the world's device, tracks a clip (see Clip)."""

    takes: list[Take]
    frames: torch.Tensor
    tracks: list[dict]


class World:
    """The synthetic world on one device.

    Clip (split, index) is the same whatever it is rendered with and however many processes prepare it. Splits
    "train", "dev" and "test" share no person, voice or sentence; "test-voice2" is "test" spoken by the second engine.
    workers: processes that prepare sound and motion (0: this one); close() or a `with` block ends them.
    """

    def __init__(self, config: WorldConfig, device: str | torch.device = "cpu", workers: int = 0):
        self.config = config
        self.model = FaceModel.tiny() if config.face_model == "tiny" else FaceModel.load(config.face_model)
        self.renderer = Renderer(self.model, size=config.size, device=device, supersample=config.supersample)
        self.workers = workers
        self._pool: Pool | None = None

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None

    def look(self, take: Take) -> Look:
        """The take's person (the same in all takes of an identity) in a scene of its own."""
        person = Look.sample(generator(self.config, take.split, PERSON, take.identity), self.model)
        scene = Look.sample(generator(self.config, take.split, SCENE, take.index), self.model)
        # Where the head points is motion, and the prompt's to decide: the scene adds no pose of its own.
        camera = replace(scene.camera, pose=(0.0, 0.0, 0.0))
        return replace(
            person,
            clothes=scene.clothes,
            backdrop=scene.backdrop,
            backdrop_colours=scene.backdrop_colours,
            light=scene.light,
            camera=camera,
        )

    def takes(self, split: str, indices: Sequence[int], frames: int = 81) -> Iterator[Take]:
        """Sound, prompt and motion without pictures."""
        if self.workers > 1 and self._pool is None:
            self._pool = get_context("spawn").Pool(self.workers)
        return prepare_many(self.config, split, indices, frames, pool=self._pool)

    def stream(
        self, split: str, indices: Sequence[int], frames: int = 81, size: int = 64, pictures: bool = True
    ) -> Iterator[Batch]:
        """Batches of `size` clips whose frames stay on the device; the workers prepare ahead while it renders.

        Without pictures nothing is drawn: frames are [B, 0, H, W, 3], tracks are whole.
        """
        takes = self.takes(split, indices, frames)
        while group := list(islice(takes, size)):
            looks, motions = [self.look(take) for take in group], [take.motion for take in group]
            side = self.config.size
            shown = torch.empty(len(group), 0, side, side, 3, dtype=torch.uint8)
            if pictures:
                shown = self.renderer.render(looks, motions)
            geometry = self.renderer.tracks(looks, motions)
            tracks = [take_tracks(t) | {k: v[i] for k, v in geometry.items()} for i, t in enumerate(group)]
            yield Batch(group, shown, tracks)

    def batch(self, split: str, indices: Sequence[int], frames: int = 81) -> list[Clip]:
        """Clips rendered together, in the order of `indices`."""
        clips = []
        for group in self.stream(split, indices, frames):
            for take, pictures, tracks in zip(group.takes, group.frames.cpu().numpy(), group.tracks, strict=True):
                clips.append(_clip(take, pictures, tracks))
        return clips

    def clip(self, split: str, index: int, frames: int = 81) -> Clip:
        return self.batch(split, [index], frames)[0]


def take_tracks(take: Take) -> dict:
    """The tracks of a take that need no geometry: head, lids, smile, brows, phonemes, speech."""
    expression, rotation = take.motion.expression, take.motion.head_rotation
    end = len(rotation) / FPS
    inside = [Phone(max(p.start, 0.0), min(p.end, end), p.ipa) for p in take.phones if p.end > 0 and p.start < end]
    both = {"blink": "eyeBlink", "smile": "mouthSmile", "brow": "browInnerUp"}
    return {
        **{name: rotation[:, axis] for axis, name in enumerate(("pitch", "yaw", "roll"))},
        **{track: expression[:, [CHANNEL[f"{name}_L"], CHANNEL[f"{name}_R"]]].mean(1) for track, name in both.items()},
        "phonemes": inside,
        "speech": take.speech,
    }


def shut_latents(blink: torch.Tensor) -> torch.Tensor:
    """Boolean [N, F] of tracks of lids [N, 4F - 3] (0 open, 1 shut): latent frames that hold a frame of a blink."""
    shut = blink > SHUT
    return torch.cat([shut[:, :1], shut[:, 1:].unflatten(1, (-1, TIME_STRIDE)).any(2)], dim=1)


def _clip(take: Take, pictures: np.ndarray, tracks: dict) -> Clip:
    return Clip(
        frames=pictures,
        reference=pictures[0],
        pcm=take.pcm,
        prompt=take.prompt,
        attributes=take.attributes,
        text=take.text,
        tracks=tracks,
        identity=take.identity,
        split=take.split,
        index=take.index,
    )
