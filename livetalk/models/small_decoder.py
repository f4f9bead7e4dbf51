"""A small decoder of the Wan VAE's latents, for machines where the VAE's own is too slow. Same calls, same latents.

Plain convolutions over each frame. Time is mixed at the latents' resolution alone, where every layer also sees what the
latent before had there; then a latent becomes its four frames, each with features of its own, which are enlarged step
by step. The idea is that of TAEHV and other tiny autoencoders: distil the decoder, keep the latents.

Shapes: latents [B, z, F, h, w]; video [B, 3, T, 8h, 8w] in [-1, 1] with T = 4F - 3 frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from livetalk.geometry import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE, frames_of_latents
from livetalk.models.vae import DecoderState, WanVAE
from livetalk.models.vae_layers import Past

SHUFFLE = 2
"""The last enlargement is a rearrangement of channels."""


@dataclass(frozen=True)
class SmallDecoderConfig:
    """dim: width at the latents' resolution, where `mixes` layers mix time; widths: of the frames, from the latents'
    resolution upwards, each twice the size of the one before, with `depth` residual layers."""

    z_dim: int = LATENT_CHANNELS
    dim: int = 88
    mixes: int = 3
    widths: tuple[int, ...] = (64, 48, 32)
    depth: int = 2

    def __post_init__(self) -> None:
        if min(self.z_dim, self.dim, self.mixes, self.depth, *self.widths) < 1:
            raise ValueError(f"{self}: every size is at least 1")
        if len(self.widths) != 3:
            raise ValueError(f"widths {self.widths}: three, for 8 times the size with the last enlargement")


class Residual(nn.Module):
    """Two rounds of SiLU and convolution beside a shortcut: [N, C, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Mix(nn.Module):
    """A residual layer that sees each latent beside the one before, and its mean over the picture: [B, C, F, h, w] ->
    the same. Without the mean, colours are lost: the VAE attends over the whole picture and keeps them anywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * width, width, 1)
        self.mean = nn.Conv2d(width, width, 1, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = F.silu(x)
        seen = per_frame(self.join, with_previous(y, past)) + per_frame(self.mean, y.mean(dim=(3, 4), keepdim=True))
        return x + per_frame(self.conv, F.silu(seen))


class Enlarge(nn.Module):
    """Twice the size: [N, C, H, W] -> [N, C', 2H, 2W]."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(F.silu(x), scale_factor=2.0, mode="nearest"))


class LatentDecoder(nn.Module):
    """The calls of a decoder, whole and in pieces, from one pass."""

    def video(self, latents: Tensor, past: Past) -> Tensor:
        """One pass over consecutive latents, with what came before in `past`."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of a whole clip -> its video, not clamped."""
        return self.video(latents, Past())

    def decoder_state(self, first: Tensor | None = None) -> DecoderState:
        """A state before the first latent [B, z, 1, h, w], which may be known already."""
        return DecoderState()

    def decode_step(self, latents: Tensor, state: DecoderState) -> Tensor:
        """The next k latents -> their frames: 4k - 3 at the first call, 4k later; advances `state`."""
        past = state.begin()
        video = self.video(latents, past)
        state.commit(past)
        return video


class SmallDecoder(LatentDecoder):
    """Decodes the standardised latents of the VAE that it was trained beside; see the module for shapes."""

    def __init__(self, config: SmallDecoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.enter = nn.Conv2d(2 * config.z_dim, config.dim, 3, padding=1)
        self.mixes = nn.ModuleList(Mix(config.dim) for _ in range(config.mixes))
        self.split = nn.Conv2d(config.dim, TIME_STRIDE * widths[0], 1)
        self.stages = nn.ModuleList(nn.Sequential(*(Residual(width) for _ in range(config.depth))) for width in widths)
        self.enlarge = nn.ModuleList(Enlarge(*pair) for pair in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], 3 * SHUFFLE**2, 3, padding=1)

    @property
    def reach(self) -> int:
        """How many latents before its own a frame depends on."""
        return 1 + self.config.mixes

    def decode_last(self, latents: Tensor, count: int) -> Tensor:
        """The frames of the last `count` latents of a clip: what is seen of those before costs little."""
        return self.video(latents, Past(), count)

    def video(self, latents: Tensor, past: Past, count: int = 0) -> Tensor:
        """count: frames of the last so many latents alone, 0: of all."""
        x = per_frame(self.enter, with_previous(latents, past))
        for mix in self.mixes:
            x = mix(x, past)
        x, begins = x[:, :, -count:], past.first and not 0 < count < latents.shape[2]
        x = rearrange(per_frame(self.split, F.silu(x)), "b (n c) f h w -> b (f n) h w c", n=TIME_STRIDE)
        if begins:
            x = x[:, TIME_STRIDE - 1 :]  # latent 0 stands for one frame
        clips = len(x)
        x = x.flatten(0, 1).movedim(-1, 1)  # channels stay last in memory, where convolutions are quickest
        for index, stage in enumerate(self.stages):
            x = stage(self.enlarge[index - 1](x) if index else x)
        x = F.pixel_shuffle(self.leave(F.silu(x)), SHUFFLE)
        return rearrange(x, "(b t) c h w -> b c t h w", b=clips)


class ColouredState(DecoderState):
    """missing: what `_missing` said of the stream's first latent, None: to be found out with the first frames."""

    def __init__(self, missing: Tensor | None) -> None:
        super().__init__()
        self.missing = missing

    def reset(self) -> None:
        super().reset()
        self.missing = None  # the next picture may be another


class TrueColours(LatentDecoder):
    """A small decoder with the colours of a large one.

    A decoder that sees a few latents at a time gets the tints of a still background wrong, always by the same once it
    no longer sees the start of the stream, and by something else before. Which by what, a still picture tells: the
    first latent, which is one frame, decoded by `vae`, and that frame for as long as the start is seen, encoded and
    decoded small. What the frame has more of in each square of a latent is added to the frames of the stream. That
    takes longer than the frames of a block, so it is done beforehand where the first latent is known, as that of a
    reference picture is.
    """

    def __init__(self, small: SmallDecoder, vae: WanVAE) -> None:
        super().__init__()
        self.small, self.vae = small, vae

    def decoder_state(self, first: Tensor | None = None) -> ColouredState:
        return ColouredState(None if first is None else self._missing(first))

    def decode_step(self, latents: Tensor, state: ColouredState) -> Tensor:
        past = state.begin()
        video = self.video(latents, past, state.missing)
        state.commit(past)
        return video

    def video(self, latents: Tensor, past: Past, missing: Tensor | None = None) -> Tensor:
        """missing: what `_missing` said of the stream's first latent, None: not asked yet."""
        video = self.small.video(latents, past)
        frames = video.shape[2]
        first = latents[:, :, :1]

        def rest(added: Tensor) -> Tensor:
            return added[:, :, min(frames, added.shape[2] - 1) :].clone()

        added = past.keep(lambda: self._missing(first) if missing is None else missing, rest)[:, :, :frames]
        smooth = rearrange(added, "b c t h w -> (b t) c h w")
        smooth = F.interpolate(smooth, size=video.shape[-2:], mode="bilinear", align_corners=False)
        smooth = rearrange(smooth, "(b t) c h w -> b c t h w", b=len(video))
        last = smooth[:, :, -1:].expand(-1, -1, frames - smooth.shape[2], -1, -1)
        return video + torch.cat([smooth, last], dim=2)

    def _missing(self, latent: Tensor) -> Tensor:
        """[B, 3, T, h, w], square by square, of the first T frames of a stream; the last one is for all later."""
        frame = self.vae.decode(latent)
        still = frame.clamp(-1, 1).expand(-1, -1, frames_of_latents(self.small.reach + 1), -1, -1)
        difference = frame - self.small.decode(self.vae.encode(still).to(latent))
        squares = F.avg_pool2d(rearrange(difference, "b c t h w -> (b t) c h w"), SPACE_STRIDE)
        return rearrange(squares, "(b t) c h w -> b c t h w", b=len(latent))


def with_previous(x: Tensor, past: Past) -> Tensor:
    """[B, C, F, h, w] -> [B, 2C, F, h, w]: every frame beside the one before, zeros before the first."""
    return torch.cat([past.join(x, 1)[:, :, :-1], x], dim=1)


def per_frame(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 2-D convolution over each frame of [B, C, F, h, w]."""
    frames = rearrange(x, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
    return rearrange(conv(frames), "(b f) c h w -> b c f h w", b=len(x))


def initialise(decoder: SmallDecoder, generator: torch.Generator | None = None) -> None:
    """Weights to start a training from: signals keep their size, residual layers begin almost silent."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in decoder.modules():
        if isinstance(module, Residual | Mix):
            last = module.second if isinstance(module, Residual) else module.conv
            last.weight.data.mul_(0.1)
        if isinstance(module, Mix):
            nn.init.zeros_(module.mean.weight)
    decoder.leave.weight.data.mul_(0.3)
