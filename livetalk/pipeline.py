"""A picture, a voice and a text become a talking video: the whole chain for people, offline.

`LiveTalkPipeline.from_pretrained("nano")` assembles the parts; calling it renders a Video, and `stream` yields the
frames as they are decoded, so that memory does not grow with length. What turns conditions into latents is an
argument, the sampler: a bidirectional teacher over windows or a causal student block by block.

T video frames, F latent frames, h w latent height and width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from livetalk.conditions import Conditions, group_audio
from livetalk.geometry import (
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Geometry,
    clip_frames,
    frames_of_latents,
    latents_of_frames,
    samples_of_seconds,
)
from livetalk.media import MAX_HOURS, VideoWriter, clean_audio, fit_image, read_audio, read_image, to_pixels, to_rgb

if TYPE_CHECKING:
    from livetalk.streaming.pace import StreamConfig
    from livetalk.streaming.performer import Performer

log = logging.getLogger(__name__)

EXAMPLE = Path(__file__).parent / "assets" / "example"
EXAMPLE_IMAGE, EXAMPLE_AUDIO, EXAMPLE_PROMPT = (EXAMPLE / name for name in ("face.png", "speech.wav", "prompt.txt"))
MAX_SEED = 2**63 - 1

Picture = str | Path | Image.Image | np.ndarray
Sound = str | Path | np.ndarray | tuple[np.ndarray, int]
Progress = Callable[[str, int, int], None]
"""Called with the stage ("denoising", "decoding"), the steps done and the steps in all."""


class Sampler(Protocol):
    """What makes latents from conditions."""

    def whole(self, latents: int) -> int:
        """The latent frames it makes when `latents` are wanted: whole blocks or windows, never fewer."""

    def __call__(self, conditions: Conditions, generator: torch.Generator, progress: Progress) -> Iterator[Tensor]:
        """Yields the clip's latents [1, 16, n, h, w] in order, in pieces of any n; conditions.audio covers all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: shows nothing."""


@dataclass(frozen=True)
class Request:
    """What a video is made of, checked: picture, sound [T * SAMPLES_PER_FRAME] float32, text, seed."""

    image: Image.Image
    audio: np.ndarray
    prompt: str
    seed: int
    example: bool

    @property
    def frames(self) -> int:
        return clip_frames(len(self.audio))


def read_request(image: Picture, audio: Sound, prompt: str, seed: int = 0, duration: float | None = None) -> Request:
    """Reads and checks everything a user gives. Raises ValueError, in one line with the remedy, for what cannot be.

    image: a path, a PIL image, or uint8 [H, W, 3 or 4]. audio: a path, samples at SAMPLE_RATE, or (samples, rate).
    duration: seconds; a shorter one cuts the sound, a longer one adds silence. The sound is never stretched.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('prompt is empty: describe the movement, for example prompt="nods while speaking, smiling"')
    if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
        raise ValueError(f"prompt {prompt!r} holds bytes that are no letters: write it in UTF-8")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed!r} is not a whole number from 0 to {MAX_SEED}")
    samples = None if duration is None else _samples(duration)
    picture = _picture(image)
    sound = _sound(audio)
    example = isinstance(image, str | Path) and Path(image).resolve() == EXAMPLE_IMAGE.resolve()
    return Request(picture, fit_sound(sound, samples), " ".join(prompt.split()), int(seed), example)


def fit_sound(sound: np.ndarray, samples: int | None = None) -> np.ndarray:
    """Cuts sound to `samples`, or adds silence up to it, then adds silence up to a whole number of video frames."""
    sound = sound[:samples]
    whole = clip_frames(len(sound) if samples is None else samples) * SAMPLES_PER_FRAME
    return np.pad(sound, (0, whole - len(sound)))


def _samples(duration: float) -> int:
    samples = samples_of_seconds(duration)
    if samples > MAX_HOURS * 3600 * SAMPLE_RATE:
        raise ValueError(f"duration {duration} s is over {MAX_HOURS} hours: render it in pieces")
    return samples


def _picture(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
            raise ValueError(
                f"image array {image.dtype} {image.shape} is not a picture: give uint8 [height, width, 3 or 4]"
            )
        image = Image.fromarray(image)
    return to_rgb(image) if isinstance(image, Image.Image) else read_image(image)


def _sound(audio: Sound) -> np.ndarray:
    if isinstance(audio, tuple):
        return clean_audio(*audio)
    return clean_audio(audio, SAMPLE_RATE) if isinstance(audio, np.ndarray) else read_audio(audio)


@dataclass(frozen=True)
class Video:
    """A rendered clip: frames uint8 [T, H, W, 3] at FPS, sound float32 [T * SAMPLES_PER_FRAME], and a report of how."""

    frames: np.ndarray
    audio: np.ndarray
    report: dict = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return len(self.frames) / FPS

    def save(self, path: str | Path) -> Path:
        """Writes an MP4 with sound, and the report beside it as JSON. Raises ValueError for an impossible path."""
        with VideoWriter(path, self.frames.shape[1:3], self.audio) as writer:
            writer.write(self.frames)
            writer.report = self.report
        return Path(path)

    def _repr_html_(self) -> str:
        """How a notebook shows it: a player that holds the whole video."""
        import base64
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            data = self.save(Path(folder) / "video.mp4").read_bytes()
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        return f'<video controls loop width="{max(256, self.frames.shape[2])}" src="{source}"></video>'

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames of {width}x{height}, {self.seconds:.2f} s)"


class LiveTalkPipeline:
    """Renders videos with given parts; one object serves any number of videos.

    vae: WanVAE, which encodes the picture. audio: AudioEncoder. text: TextEncoder. sampler: see Sampler. notice: a line
    logged for any picture but the bundled example, for families that do not know every kind of picture. settings: put
    into every report. decoder: what turns latents into frames, by default the vae.
    """

    def __init__(
        self,
        vae: nn.Module,
        audio: nn.Module,
        text: nn.Module,
        sampler: Sampler,
        geometry: Geometry,
        notice: str = "",
        settings: dict | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        self.vae = vae
        self.decoder = vae if decoder is None else decoder
        self.audio = audio
        self.text = text
        self.sampler = sampler
        self.geometry = geometry
        self.notice = notice
        self.settings = settings or {}

    @classmethod
    def from_pretrained(cls, model: str | Path = "nano", **settings) -> LiveTalkPipeline:
        """Assembles a family of weights: "nano" (shipped), a name of published weights, or a folder of parts.

        settings: keys of configs/inference.yaml, such as device, precision, sampler. Raises ValueError if there are no
        such weights, with how to get them.
        """
        from livetalk.families import load_pipeline, run_of

        return load_pipeline(run_of(model, settings))

    def __call__(
        self,
        image: Picture = EXAMPLE_IMAGE,
        audio: Sound = EXAMPLE_AUDIO,
        prompt: str | None = None,
        seed: int = 0,
        duration: float | None = None,
        progress: Progress = no_progress,
    ) -> Video:
        """Renders ceil(16 * seconds of sound) frames. The same arguments give the same frames. See read_request."""
        request = read_request(image, audio, example_prompt() if prompt is None else prompt, seed, duration)
        timings: dict[str, float] = {}
        frames = np.concatenate(list(self.stream(request, progress, timings)))
        return Video(frames, request.audio, self.report(request, timings))

    def performer(self, config: StreamConfig | None = None) -> Performer:
        """The same parts for live streams: push sound, take blocks of frames. ValueError unless causal."""
        from livetalk.families import performer_of

        return performer_of(self, config)

    def report(self, request: Request, timings: dict[str, float]) -> dict:
        """What is written beside a video: settings, seed, sizes and seconds per stage."""
        return {
            "synthetic": True,
            "prompt": request.prompt,
            "seed": request.seed,
            "frames": request.frames,
            "fps": FPS,
            "height": self.geometry.height,
            "width": self.geometry.width,
            "seconds_of_sound": len(request.audio) / SAMPLE_RATE,
            "decoder": "vae" if self.decoder is self.vae else "small",
            "settings": self.settings,
            "timings": {stage: round(seconds, 3) for stage, seconds in timings.items()},
        }

    @torch.inference_mode()
    def stream(
        self, request: Request, progress: Progress = no_progress, timings: dict[str, float] | None = None
    ) -> Iterator[np.ndarray]:
        """Yields frames uint8 [n, H, W, 3], `request.frames` in all, decoded piece by piece.

        timings, if given, is filled with the seconds spent on each stage.
        """
        if self.notice and not request.example:
            log.warning(self.notice)
        timings = {} if timings is None else timings
        generator = torch.Generator("cpu").manual_seed(request.seed)
        wanted = latents_of_frames(request.frames)
        with self._timed("encoding", timings):
            conditions = self.conditions(request, self.sampler.whole(wanted))
        state = self.decoder.decoder_state()
        pieces = self.sampler(conditions, generator, progress)
        latents, frames = 0, 0
        progress("decoding", 0, request.frames)
        while latents < wanted:
            with self._timed("denoising", timings):
                piece = next(pieces)[:, :, : wanted - latents]
            latents += piece.shape[2]
            for part in piece.split(self.geometry.block, dim=2):
                with self._timed("decoding", timings):
                    decoded = to_pixels(self.decoder.decode_step(part.to(self._dtype), state))
                decoded = decoded[: request.frames - frames]
                frames += len(decoded)
                progress("decoding", frames, request.frames)
                yield decoded

    def conditions(self, request: Request, latents: int) -> Conditions:
        """Text features, the picture's latent and audio features for `latents` latent frames, silence at the end."""
        device, dtype = self._device, self._dtype
        picture = fit_image(request.image, self.geometry.height, self.geometry.width)
        sound = torch.from_numpy(request.audio)[None].to(device, dtype)
        features = self.audio.features(sound, frames_of_latents(latents))
        return Conditions(
            text=self.text.encode([request.prompt]).to(device, dtype),
            reference=self.vae.encode(picture[None, :, None].to(device, dtype)),
            audio=group_audio(features).to(dtype),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start


def example_prompt() -> str:
    """The bundled example's. Raises ValueError where this copy of the package lacks the example."""
    if not EXAMPLE_PROMPT.is_file():
        raise ValueError(f"the bundled example {EXAMPLE_PROMPT} is missing: give image, audio and prompt of your own")
    return EXAMPLE_PROMPT.read_text(encoding="utf-8")
