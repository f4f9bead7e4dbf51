"""Training the nano VAE on clips of the synthetic world, and measuring its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from livetalk.checks import at_least
from livetalk.geometry import SPACE_STRIDE, TIME_STRIDE, frames_of_latents, latents_of_frames
from livetalk.media import to_unit
from livetalk.models.vae import WanVAE
from livetalk.training.losses import moving_weight


@dataclass(frozen=True)
class AutoencoderConfig:
    """frames: clip length in training (4F - 3). kl: weight of the prior; edges: of the image gradients' error;
    moving: extra weight of what moves (losses.moving_weight); motion: of the error in frame differences, without which
    a latent's four frames come out as their average.

    long_frames: length of the clips in every `long_every`-th step (0: never), a batch of about as many frames. The
    causal convolutions see some 110 frames back: a network that was trained on short clips alone has seen only zeros
    there, and fails from the first frame beyond their length.

    crop: side of the squares that the other steps show, more clips of them, taken where pictures move (0: whole
    pictures). Lips and lids are a few pixels of a picture that takes as long to compute as they do.
    """

    frames: int = 17
    crop: int = 0
    kl: float = 3e-4
    edges: float = 1.0
    moving: float = 1.0
    motion: float = 0.0
    long_frames: int = 65
    long_every: int = 2

    def __post_init__(self) -> None:
        at_least(0, self, "crop", "kl", "edges", "moving", "motion", "long_every")
        for name in ("frames", "long_frames"):
            frames = getattr(self, name)
            if frames < 1 or frames != frames_of_latents(latents_of_frames(frames)):
                raise ValueError(f"autoencoder.{name}={frames}: give 1, 5, 9 or so on, whole latents")


def reconstruction_error(
    video: Tensor, decoded: Tensor, moving: float, begins: bool = True, weight: Tensor | None = None
) -> Tensor:
    """Absolute plus twice the squared error, mean over everything. Places that move count more, and the first frame of
    a clip, where the video `begins` with that, counts as much as the four frames of any later latent. weight
    [B, 1, 1, H, W]: how much more places count besides, here and in the errors below."""
    difference = decoded - video
    error = _weighted(difference.abs() + 2 * difference.square(), weight) * moving_weight(video, moving)
    first = TIME_STRIDE if begins else 1
    return (first * error[:, :, :1].sum() + error[:, :, 1:].sum()) / error.numel()


def edge_error(video: Tensor, decoded: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of horizontal and vertical pixel differences: keeps lips and lids sharp."""
    difference = decoded - video
    return sum(_weighted(difference.diff(dim=side).abs(), weight).mean() for side in (-1, -2))


def motion_error(video: Tensor, decoded: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of the differences between neighbouring frames: keeps lips that move within a latent. 0 of
    one frame."""
    if video.shape[2] < 2:
        return decoded.new_zeros(())
    return _weighted((decoded - video).diff(dim=2).abs(), weight).mean()


def _weighted(error: Tensor, weight: Tensor | None) -> Tensor:
    return error if weight is None else error * weight[..., : error.shape[-2], : error.shape[-1]]


class AutoencoderObjective:
    """clips: uint8 [N, T, H, W, 3] on the training device."""

    def __init__(self, vae: WanVAE, clips: Tensor, config: AutoencoderConfig) -> None:
        side = min(clips.shape[2:4])
        if config.crop % SPACE_STRIDE or not 0 <= config.crop <= side:
            raise ValueError(
                f"autoencoder.crop={config.crop}: choose a multiple of {SPACE_STRIDE} up to {side}, or 0 for none"
            )
        self.vae, self.clips, self.config = vae, clips, config
        self.places = moving_places(clips) if config.crop else None

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        kind = self.kind(step)
        video = self._sample(kind, batch, generator)
        # Compiling takes a minute a shape: only the one that most steps have is worth it.
        with torch.compiler.set_stance("default" if kind == self.usual else "force_eager"):
            with torch.set_grad_enabled(self.vae.conv1.weight.requires_grad):
                mean, logvar = self.vae.posterior(video)
            logvar = logvar.float().clamp(-20, 10)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            decoded = self.vae.decode_raw(mean + noise.to(mean) * (0.5 * logvar).exp().to(mean)).float()
        kl = 0.5 * (mean.float().square() + logvar.exp() - 1 - logvar).mean()
        error = reconstruction_error(video, decoded, self.config.moving)
        edges, motion = edge_error(video, decoded), motion_error(video, decoded)
        squared = F.mse_loss(decoded.clamp(-1, 1), video)
        loss = error + self.config.edges * edges + self.config.motion * motion + self.config.kl * kl
        seen = {"kl": kl, "edges": edges, "motion": motion}
        return loss, {"psnr": psnr(squared.detach()), **{name: value.detach() for name, value in seen.items()}}

    @property
    def usual(self) -> int:
        """The kind of most steps."""
        return self.config.long_frames if self.config.long_every == 1 else self.config.frames

    def kind(self, step: int) -> int:
        """Frames of the clips that a step shows."""
        config = self.config
        return config.long_frames if config.long_every and step % config.long_every == 0 else config.frames

    def _sample(self, frames: int, batch: int, generator: torch.Generator) -> Tensor:
        """Video [n, 3, frames, H, W] with about as many pixels as `batch` whole clips of the short length."""
        clips, length, height, width = self.clips.shape[:4]
        crop = self.config.crop if frames == self.config.frames else 0
        size = (crop, crop) if crop else (height, width)
        batch = max(1, batch * self.config.frames * height * width // (min(frames, length) * size[0] * size[1]))
        frames = min(frames, length)
        device = self.clips.device
        chosen = torch.randint(clips, (batch,), generator=generator, device=device)
        start = torch.randint(length - frames + 1, (batch,), generator=generator, device=device)
        corner = moving_corners(self.places[chosen], size, generator) if crop else chosen.new_zeros(batch, 2)
        index = (start[:, None] + torch.arange(frames, device=device))[:, :, None, None]
        rows, columns = (corner[:, i, None] + torch.arange(size[i], device=device) for i in range(2))
        shown = self.clips[chosen[:, None, None, None], index, rows[:, None, :, None], columns[:, None, None, :]]
        video = to_unit(shown)
        flip = torch.rand(batch, generator=generator, device=device) < 0.5
        return torch.where(flip[:, None, None, None, None], video.flip(-1), video)


def moving_corners(places: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Top left [n, 2], in pixels, of windows of `size` whose middles are drawn from where clips move: places
    [n, H', W'] as moving_places gives them."""
    uniform = torch.rand(places.shape, generator=generator, device=places.device)
    place = (places.clamp_min(1e-9).log() - (-uniform.clamp_min(1e-20).log()).log()).flatten(1).argmax(1)  # Gumbel
    middle = torch.stack([place // places.shape[2], place % places.shape[2]], dim=1)
    within = torch.rand(middle.shape, generator=generator, device=middle.device)
    corner = ((middle + within) * SPACE_STRIDE).long()
    limits = [(SPACE_STRIDE * full - side, side) for full, side in zip(places.shape[1:], size, strict=True)]
    return torch.stack([(corner[:, i] - side // 2).clamp(0, most) for i, (most, side) in enumerate(limits)], dim=1)


def moving_places(clips: Tensor) -> Tensor:
    """Share of a clip's motion in each square of SPACE_STRIDE pixels: uint8 [N, T, H, W, 3] -> [N, H', W'], sum 1."""
    maps = []
    for clip in clips.split(16):
        grey = clip[:, ::2].float().mean(-1)
        maps.append(F.avg_pool2d(grey.diff(dim=1).abs().mean(1, keepdim=True), SPACE_STRIDE).squeeze(1))
    change = torch.cat(maps) + 1e-6
    return change / change.sum((1, 2), keepdim=True)


def psnr(squared_error: Tensor) -> Tensor:
    """dB of a mean squared error on [-1, 1]."""
    return 10 * torch.log10(4 / squared_error.clamp_min(1e-10))


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # another shape than in training, once
def latent_statistics(vae: WanVAE, clips: Tensor, chunk: int = 8) -> tuple[list[float], list[float]]:
    """Mean and deviation of each raw latent channel, drawn from the posterior, over uint8 clips [N, T, H, W, 3].

    The deviation counts the posterior's own variance: a channel that the prior has emptied has means near zero, and
    dividing by their deviation would blow up what the decoder ignores for every network that works on the latents.
    """
    total, squares, count = 0.0, 0.0, 0
    for part in clips.split(chunk):
        mean, logvar = (rearrange(x.double(), "b c f h w -> c (b f h w)") for x in vae.posterior(to_unit(part)))
        second = mean.square() + logvar.clamp(-20, 10).exp()
        total, squares, count = total + mean.sum(1), squares + second.sum(1), count + mean.shape[1]
    centre = total / count
    return centre.tolist(), (squares / count - centre.square()).sqrt().tolist()
