"""Judges: small networks that read a talking head's tracks, identity and features from pixels.

They are trained on the synthetic world (objective.py), whose truth is exact, and frozen before any generator, so that
lip-sync, pose, blinks, identity and Frechet distances are measured the same way for every generator.

Shapes: B clips, T frames, S the side judges work at, R tracks, K prompt attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from livetalk.checks import at_least, read_json
from livetalk.media import to_unit

# The world's tracks that judges read. The mouth's opening stands first: losses count it more.
TRACKS = ("mouth_open", "mouth_width", "eye_open", "pitch", "yaw", "roll", "smile", "blink", "brow")
NEEDED = ("mouth_open", "eye_open", "pitch", "yaw", "roll")  # what the measures cannot do without
WEIGHTS_FILE, CONFIG_FILE = "judges.safetensors", "config.json"


@dataclass(frozen=True)
class JudgesConfig:
    """Sizes of the judges. Widths are channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of `size`, multiples of 4.

    `tracks` names what is read and `attributes` the columns of a batch's prompt attributes, in order.
    """

    size: int = 128
    face_widths: tuple[int, ...] = (16, 24, 40, 56, 64)
    identity_widths: tuple[int, ...] = (12, 20, 32, 44, 56)
    face_features: int = 32
    identity_features: int = 32
    embedding: int = 64
    video_width: int = 64
    video_features: int = 64
    tracks: tuple[str, ...] = TRACKS
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, widths in (("face_widths", self.face_widths), ("identity_widths", self.identity_widths)):
            if len(widths) != 5 or any(width % 4 for width in widths):
                raise ValueError(f"judges.{name} must be five multiples of 4, got {widths}")
        if not set(NEEDED) <= set(self.tracks) or self.tracks[0] != NEEDED[0]:
            raise ValueError(f"judges.tracks must begin with {NEEDED[0]} and hold {NEEDED}, got {self.tracks}")
        at_least(4, self, "face_widths", "identity_widths")
        at_least(1, self, "face_features", "identity_features", "embedding", "video_width", "video_features")
        if self.size < 32 or self.size % 32:
            raise ValueError(f"judges.size must be a multiple of 32, got size={self.size}")

    @property
    def frame_features(self) -> int:
        return self.face_features + self.identity_features


@dataclass(frozen=True)
class Readings:
    """What the judges read from B clips of T frames.

    tracks: each of the config's [B, T] in the world's units; identity [B, T, embedding] of unit norm; frame_features
    [B, T, D] and video_features [B, D'] for Frechet distances; attributes [B, K] and speech [B, T] as logits.
    """

    tracks: dict[str, torch.Tensor]
    identity: torch.Tensor
    frame_features: torch.Tensor
    video_features: torch.Tensor
    attributes: torch.Tensor
    speech: torch.Tensor


def prepare(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] or float [B, T, 3, H, W] in [-1, 1] -> float32 [B, T, 3, size, size].

    What is not square is cropped at the centre; another size is resampled with antialiasing.
    """
    if frames.ndim == 5 and frames.dtype == torch.uint8 and frames.shape[-1] == 3:
        x = to_unit(frames).transpose(1, 2).flatten(0, 1)
    elif frames.ndim == 5 and frames.is_floating_point() and frames.shape[2] == 3:
        x = rearrange(frames, "b t c h w -> (b t) c h w").float().clamp(-1, 1)
    else:
        raise ValueError(
            f"judges read uint8 [B, T, H, W, 3] or float [B, T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}"
        )
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = x[..., top : top + side, left : left + side]
    if side != size:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return rearrange(x, "(b t) c h w -> b t c h w", b=frames.shape[0])


class Stage(nn.Module):
    """Halves the resolution, then one residual convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.down_norm = nn.GroupNorm(4, after)
        self.mix = nn.Conv2d(after, after, 3, padding=1)
        self.mix_norm = nn.GroupNorm(4, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.down_norm(self.down(x)))
        return x + F.silu(self.mix_norm(self.mix(x)))


class FrameNet(nn.Module):
    """Frames [N, 3, S, S] in [-1, 1] -> features [N, features]: a stride-2 stem, four stages, one linear layer."""

    def __init__(self, widths: tuple[int, ...], features: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.stem_norm = nn.GroupNorm(4, widths[0])
        # Lids and lips are a few pixels wide: they are looked at once more before the resolution falls again.
        self.mix = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.mix_norm = nn.GroupNorm(4, widths[0])
        self.stages = nn.ModuleList(Stage(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.project = nn.Linear(widths[-1] * (size // 32) ** 2, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.stem_norm(self.stem(x)))
        x = x + F.silu(self.mix_norm(self.mix(x)))
        for stage in self.stages:
            x = stage(x)
        return self.project(x.flatten(1))


class FaceJudge(nn.Module):
    """Reads the tracks from one frame. Predictions are standardised; the buffers bring them into the world's units."""

    def __init__(self, config: JudgesConfig) -> None:
        super().__init__()
        self.net = FrameNet(config.face_widths, config.face_features, config.size)
        self.tracks = config.tracks
        self.head = nn.Linear(config.face_features, len(config.tracks))
        self.register_buffer("track_mean", torch.zeros(len(config.tracks)))
        self.register_buffer("track_scale", torch.ones(len(config.tracks)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 3, S, S] -> standardised tracks [N, R] in the config's order, features [N, face_features]."""
        features = self.net(x)
        return self.head(F.silu(features)), features

    def standardise(self, tracks: dict[str, torch.Tensor]) -> torch.Tensor:
        """Tracks [B, T] in the world's units -> targets [B, T, R]."""
        missing = [name for name in self.tracks if name not in tracks]
        if missing:
            raise ValueError(f"tracks lack {missing}; they hold {sorted(tracks)}")
        stacked = torch.stack([tracks[name].float() for name in self.tracks], dim=-1)
        return (stacked - self.track_mean) / self.track_scale

    def units(self, standardised: torch.Tensor) -> torch.Tensor:
        """Standardised tracks [..., R] -> the world's units."""
        return standardised.float() * self.track_scale + self.track_mean


class IdentityJudge(nn.Module):
    """Embeds one frame so that the cosine of two frames says whether they show one person."""

    def __init__(self, config: JudgesConfig) -> None:
        super().__init__()
        self.net = FrameNet(config.identity_widths, config.identity_features, config.size)
        self.head = nn.Linear(config.identity_features, config.embedding)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 3, S, S] -> embeddings [N, embedding] of unit norm, features [N, identity_features]."""
        features = self.net(x)
        return F.normalize(self.head(F.silu(features)).float(), dim=-1), features


class VideoJudge(nn.Module):
    """Reads per-frame features and tracks over time: speech per frame, prompt attributes, features of the clip."""

    def __init__(self, config: JudgesConfig) -> None:
        super().__init__()
        inputs, width = config.frame_features + len(config.tracks), config.video_width
        self.norm = nn.LayerNorm(config.frame_features)
        self.first = nn.Conv1d(inputs, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.third = nn.Conv1d(width, width, 5, stride=2, padding=2)
        self.project = nn.Linear(2 * width, config.video_features)
        self.speech = nn.Linear(width, 1)
        self.attributes = nn.Linear(config.video_features, len(config.attributes)) if config.attributes else None

    def forward(self, features: torch.Tensor, tracks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frame features [B, T, D], standardised tracks [B, T, R] -> features of the clips [B, D'], then logits:
        attributes [B, K] and speech [B, T].
        """
        x = torch.cat([self.norm(features), tracks], dim=-1)
        x = F.silu(self.first(rearrange(x, "b t d -> b d t")))
        speech = self.speech(rearrange(x, "b d t -> b t d")).squeeze(-1)
        x = F.silu(self.third(F.silu(self.second(x)))).float()
        # Motion is variation: the deviation over time stands beside the mean. The floor keeps its gradient finite.
        pooled = torch.cat([x.mean(-1), (x.var(-1, unbiased=False) + 1e-5).sqrt()], dim=-1)
        video = self.project(pooled)
        attributes = video.new_zeros(len(video), 0) if self.attributes is None else self.attributes(F.silu(video))
        return video, attributes, speech


class Judges(nn.Module):
    """The family: face, identity and video judges, under 1 MiB in bfloat16."""

    def __init__(self, config: JudgesConfig) -> None:
        super().__init__()
        self.config = config
        self.face = FaceJudge(config)
        self.identity = IdentityJudge(config)
        self.video = VideoJudge(config)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, T, 3, S, S] -> standardised tracks [B, T, R], embeddings [B, T, E], features [B, T, D]."""
        flat = rearrange(x, "b t c h w -> (b t) c h w")
        tracks, face = self.face(flat)
        identity, person = self.identity(flat)
        features = torch.cat([face, person], dim=-1)
        return tuple(rearrange(y, "(b t) d -> b t d", b=len(x)) for y in (tracks, identity, features))

    def _pieces(self, frames: torch.Tensor, chunk: int) -> Iterator[torch.Tensor]:
        """Prepared clips of about `chunk` frames at a time, on the judges' device."""
        clips = max(1, chunk // frames.shape[1])
        for start in range(0, len(frames), clips):
            yield prepare(frames[start : start + clips].to(self.face.track_mean.device), self.config.size)

    @torch.no_grad()
    def read(self, frames: torch.Tensor, chunk: int = 1024) -> Readings:
        """Reads clips (what `prepare` takes, on any device), about `chunk` frames at a time, in float32 under autocast
        too."""
        parts = []
        for piece in self._pieces(frames, chunk):
            with torch.autocast(piece.device.type, enabled=False):
                tracks, identity, features = self(piece)
                parts.append((self.face.units(tracks), identity, features, *self.video(features, tracks)))
        tracks, identity, features, video, attributes, speech = (torch.cat(part) for part in zip(*parts, strict=True))
        return Readings(self._named(tracks), identity, features, video, attributes, speech)

    @torch.no_grad()
    def read_tracks(self, frames: torch.Tensor, chunk: int = 1024) -> dict[str, torch.Tensor]:
        """`read`'s tracks alone, in less than half its time."""
        parts = []
        for piece in self._pieces(frames, chunk):
            with torch.autocast(piece.device.type, enabled=False):
                tracks, _ = self.face(piece.flatten(0, 1))
            parts.append(self.face.units(tracks).unflatten(0, piece.shape[:2]))
        return self._named(torch.cat(parts))

    def _named(self, tracks: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tracks[..., i] for i, name in enumerate(self.config.tracks)}


def save_judges(judges: Judges, folder: str | Path) -> Path:
    """Writes config.json and judges.safetensors (bfloat16 weights, float32 scales) -> path of the weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scales = {name for name, _ in judges.named_buffers()}
    state = {
        name: (value.float() if name in scales else value.to(torch.bfloat16)).detach().cpu().contiguous()
        for name, value in judges.state_dict().items()
    }
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(judges.config), indent=2) + "\n")
    save_file(state, folder / WEIGHTS_FILE)
    return folder / WEIGHTS_FILE


def load_judges(folder: str | Path, device: str | torch.device = "cpu") -> Judges:
    """Frozen float32 judges from a folder (config.json, *.safetensors). Raises ValueError naming what is missing."""
    folder = Path(folder)
    pieces = sorted(folder.glob("*.safetensors"))
    if not pieces or not (folder / CONFIG_FILE).is_file():
        missing = WEIGHTS_FILE if (folder / CONFIG_FILE).is_file() else CONFIG_FILE
        raise ValueError(f"no judges in {folder}: {missing} is missing; train them or give their folder")
    stored = read_json(folder / CONFIG_FILE, "export the judges again")
    odd = set(stored) ^ {field.name for field in fields(JudgesConfig)}
    if odd:
        raise ValueError(f"{folder / CONFIG_FILE} does not fit these judges: {sorted(odd)} missing or unknown")
    config = JudgesConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
    judges = Judges(config)
    state = {name: value.float() for piece in pieces for name, value in load_file(piece).items()}
    expected = {name: tuple(value.shape) for name, value in judges.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        lines = [f"{name}: expected {expected.get(name)}, found {found.get(name)}" for name in names]
        raise ValueError(f"the weights in {folder} do not fit their config: " + "; ".join(lines))
    judges.load_state_dict(state, strict=True)
    return judges.to(device).eval().requires_grad_(False)
