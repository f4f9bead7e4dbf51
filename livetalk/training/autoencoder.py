"""Training the nano VAE on clips of the synthetic world, and measuring its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from livetalk.geometry import TIME_STRIDE
from livetalk.models.vae import WanVAE
from livetalk.training.losses import moving_weight


@dataclass(frozen=True)
class AutoencoderConfig:
    """frames: clip length in training (4F - 3). kl: weight of the prior; edges: of the image gradients' error;
    moving: extra weight of what moves (losses.moving_weight).

    long_frames: length of the clips in every `long_every`-th step (0: never), a batch of about as many frames. The
    causal convolutions see some 110 frames back: a network that was trained on short clips alone has seen only zeros
    there, and fails from the first frame beyond their length.
    """

    frames: int = 17
    kl: float = 3e-4
    edges: float = 1.0
    moving: float = 1.0
    long_frames: int = 65
    long_every: int = 2


def to_unit(frames: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] to float video [B, 3, T, H, W] in [-1, 1]."""
    return rearrange(frames, "b t h w c -> b c t h w").float().div(127.5).sub(1)


def reconstruction_error(video: Tensor, decoded: Tensor, moving: float) -> Tensor:
    """Absolute plus twice the squared error, mean over everything. Places that move count more, and the first frame
    counts as much as the four frames of any later latent."""
    difference = decoded - video
    error = moving_weight(video, moving) * (difference.abs() + 2 * difference.square())
    return (TIME_STRIDE * error[:, :, :1].sum() + error[:, :, 1:].sum()) / error.numel()


def edge_error(video: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute error of horizontal and vertical pixel differences: keeps lips and lids sharp."""
    difference = decoded - video
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


class AutoencoderObjective:
    """clips: uint8 [N, T, H, W, 3] on the training device."""

    def __init__(self, vae: WanVAE, clips: Tensor, config: AutoencoderConfig) -> None:
        self.vae, self.clips, self.config = vae, clips, config

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        video = self._sample(self.kind(step), batch, generator)
        with torch.set_grad_enabled(self.vae.conv1.weight.requires_grad):
            mean, logvar = self.vae.posterior(video)
        logvar = logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = self.vae.decode_raw(mean + noise.to(mean) * (0.5 * logvar).exp().to(mean)).float()
        kl = 0.5 * (mean.float().square() + logvar.exp() - 1 - logvar).mean()
        error = reconstruction_error(video, decoded, self.config.moving)
        edges = edge_error(video, decoded)
        squared = F.mse_loss(decoded.clamp(-1, 1), video)
        loss = error + self.config.edges * edges + self.config.kl * kl
        return loss, {"psnr": psnr(squared.detach()), "kl": kl.detach(), "edges": edges.detach()}

    def kind(self, step: int) -> int:
        """Frames of the clips that a step shows."""
        config = self.config
        return config.long_frames if config.long_every and step % config.long_every == 0 else config.frames

    def _sample(self, frames: int, batch: int, generator: torch.Generator) -> Tensor:
        """Video [n, 3, frames, H, W] with about as many frames as `batch` clips of the short length."""
        clips, length = self.clips.shape[:2]
        frames = min(frames, length)
        batch = max(1, batch * self.config.frames // frames)
        device = self.clips.device
        chosen = torch.randint(clips, (batch,), generator=generator, device=device)
        start = torch.randint(length - frames + 1, (batch,), generator=generator, device=device)
        index = start[:, None] + torch.arange(frames, device=device)
        video = to_unit(self.clips[chosen[:, None], index])
        flip = torch.rand(batch, generator=generator, device=video.device) < 0.5
        return torch.where(flip[:, None, None, None, None], video.flip(-1), video)


def psnr(squared_error: Tensor) -> Tensor:
    """dB of a mean squared error on [-1, 1]."""
    return 10 * torch.log10(4 / squared_error.clamp_min(1e-10))


@torch.no_grad()
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
