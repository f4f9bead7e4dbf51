"""The Wan 2.1 video autoencoder (arXiv 2503.20314, section 4.1): 8x8 in space, 4x in time, causal in time.

Parameter names are those of the published Wan2.1_VAE.pth.

Shapes: video [B, 3, T, H, W] in [-1, 1] with T = 4F - 3 frames; latents [B, z, F, H/8, W/8].
`encode` and `decode` take whole clips; `encode_step` and `decode_step` take the same clips in pieces, with a
state that the caller holds, and give the same result.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from livetalk.checks import at_least
from livetalk.models.vae_layers import (
    CausalConv3d,
    ChannelNorm,
    Down,
    FrameAttention,
    Past,
    ResidualBlock,
    Tails,
    Up,
)

# Statistics of the published latents, channel by channel.
PUBLISHED_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
PUBLISHED_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are the published ones.

    `multipliers` times `base_dim` are the widths from full size downwards, with a halving of height and width
    between neighbours; `temporal_downsample` says which halvings take the frames along.
    """

    base_dim: int = 96
    z_dim: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = PUBLISHED_MEAN
    latents_std: tuple[float, ...] = PUBLISHED_STD

    def __post_init__(self):
        at_least(1, self, "base_dim", "z_dim", "multipliers", "res_blocks")
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal_downsample {self.temporal_downsample} needs one entry fewer than multipliers "
                f"{self.multipliers}: one a halving"
            )
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim:
                raise ValueError(f"{name} has {len(values)} values; give one a latent channel: {self.z_dim}")
        if min(self.latents_std) <= 0:
            raise ValueError(f"latents_std {self.latents_std} must be positive")

    @classmethod
    def from_published(cls, settings: dict) -> "VAEConfig":
        """Read the published code's argument names; ValueError for names or values this model does not have."""
        names = {
            "dim": "base_dim",
            "z_dim": "z_dim",
            "dim_mult": "multipliers",
            "num_res_blocks": "res_blocks",
            "temperal_downsample": "temporal_downsample",
            "latents_mean": "latents_mean",
            "latents_std": "latents_std",
        }
        settings = dict(settings)
        # Attention inside the stages and dropout exist in the published code, but no published weights use them.
        for name in ("attn_scales", "dropout"):
            if value := settings.pop(name, None):
                raise ValueError(f"{name}={value!r} is not supported; leave it empty or zero")
        if unknown := sorted(settings.keys() - names.keys()):
            raise ValueError(f"unknown VAE settings {unknown}; known: {', '.join(names)}, attn_scales, dropout")
        values = {names[name]: value for name, value in settings.items()}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def spatial_factor(self) -> int:
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        return 2 ** sum(self.temporal_downsample)


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] -> features [B, 2z, F, H/8, W/8]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.base_dim * m for m in config.multipliers]
        self.conv1 = CausalConv3d(3, widths[0])
        layers = []
        for stage, (width_in, width) in enumerate(pairwise([widths[0], *widths])):
            layers += [ResidualBlock(width_in if n == 0 else width, width) for n in range(config.res_blocks)]
            if stage < len(config.temporal_downsample):
                layers.append(Down(width, config.temporal_downsample[stage]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last_3d), past)
        for layer in [*self.downsamples, *self.middle]:
            x = layer(x, past)
        return self.head["2"](F.silu(self.head["0"](x)), past)


class Decoder(nn.Module):
    """Features [B, z, F, h, w] -> video [B, 3, T, 8h, 8w]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.base_dim * m for m in reversed(config.multipliers)]
        temporal = config.temporal_downsample[::-1]
        self.conv1 = CausalConv3d(config.z_dim, widths[0])
        self.middle = middle(widths[0])
        layers = []
        width_in = widths[0]
        for stage, width in enumerate(widths):
            # One block more than in the encoder.
            layers += [ResidualBlock(width_in if n == 0 else width, width) for n in range(config.res_blocks + 1)]
            if stage < len(temporal):
                layers.append(Up(width, temporal[stage]))
                width_in = width // 2
        self.upsamples = nn.ModuleList(layers)
        self.head = head(widths[-1], 3)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last_3d), past)
        for layer in [*self.middle, *self.upsamples]:
            x = layer(x, past)
        return self.head["2"](F.silu(self.head["0"](x)), past)


def middle(width: int) -> nn.ModuleList:
    """The layers at the smallest size."""
    return nn.ModuleList([ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)])


def head(width: int, channels: int) -> nn.ModuleDict:
    """The last norm and convolution; "1" is the activation."""
    return nn.ModuleDict({"0": ChannelNorm(width), "2": CausalConv3d(width, channels)})


class CausalState:
    """Where a stream stands: what each causal layer keeps of the frames so far. None before the first frame."""

    def __init__(self):
        self._tails: Tails | None = None

    def snapshot(self) -> Tails | None:
        """What `restore` takes to come back to here. It shares the tensors, which are never written in place."""
        return self._tails

    def restore(self, snapshot: Tails | None) -> None:
        """Go to where `snapshot` was taken."""
        self._tails = snapshot

    def reset(self) -> None:
        """Go to before the first frame."""
        self._tails = None

    def begin(self) -> Past:
        """The past for one more pass; nothing changes until `commit`."""
        return Past(self._tails, record=True)

    def commit(self, past: Past) -> None:
        """Move on to after the pass."""
        self._tails = past.tails


class EncoderState(CausalState):
    """The state of `WanVAE.encode_step`."""


class DecoderState(CausalState):
    """The state of `WanVAE.decode_step`."""


class WanVAE(nn.Module):
    """Video autoencoder; see the module for shapes.

    Latents go in and out standardised with the mean and deviation of the config; `posterior` and `decode_raw`
    work on them as the network has them.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.set_statistics()

    def set_statistics(self) -> None:
        """Fill the latent statistics from the config. Call it after `to_empty`, since no weight file has them."""
        like = self.conv2.weight
        for name, values in (("latents_mean", self.config.latents_mean), ("latents_std", self.config.latents_std)):
            values = torch.tensor(values, dtype=like.dtype, device=like.device)
            self.register_buffer(name, values.view(1, -1, 1, 1, 1), persistent=False)

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the raw latents, each [B, z, F, h, w], of a whole clip."""
        self._check_video(video, first=True)
        mean, logvar = self.conv1(self.encoder(video, Past())).chunk(2, dim=1)
        return mean, logvar

    def encode(self, video: Tensor) -> Tensor:
        """Whole clip [B, 3, T, H, W] in [-1, 1] -> standardised posterior mean [B, z, F, h, w].

        Raises ValueError unless T = 4F - 3 and H and W are multiples of 8.
        """
        return self._standardise(self.posterior(video)[0])

    def decode_raw(self, z: Tensor) -> Tensor:
        """Raw latents [B, z, F, h, w] of a whole clip -> video [B, 3, T, H, W], not clamped."""
        return self.decoder(self.conv2(z), Past())

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents [B, z, F, h, w] of a whole clip -> video [B, 3, T, H, W], not clamped."""
        return self.decode_raw(self._raw(latents))

    def encoder_state(self) -> EncoderState:
        """A state before the first frame."""
        return EncoderState()

    def decoder_state(self, first: Tensor | None = None) -> DecoderState:
        """A state before the first latent, which some decoders make more of where it is known (small_decoder.py)."""
        return DecoderState()

    def encode_step(self, frames: Tensor, state: EncoderState) -> Tensor:
        """The next frames of a clip -> their standardised latents; advances `state`.

        The first call takes 1 + 4k frames, later ones 4k. ValueError for other counts or sizes.
        """
        assert isinstance(state, EncoderState)
        past = state.begin()
        self._check_video(frames, past.first)
        mean = self.conv1(self.encoder(frames, past))[:, : self.config.z_dim]
        state.commit(past)
        return self._standardise(mean)

    def decode_step(self, latents: Tensor, state: DecoderState) -> Tensor:
        """The next k standardised latents -> their frames: 4k - 3 at the first call, 4k later; advances `state`."""
        assert isinstance(state, DecoderState)
        past = state.begin()
        video = self.decoder(self.conv2(self._raw(latents)), past)
        state.commit(past)
        return video

    def _standardise(self, mean: Tensor) -> Tensor:
        return (mean - self.latents_mean) / self.latents_std

    def _raw(self, latents: Tensor) -> Tensor:
        return latents * self.latents_std + self.latents_mean

    def _check_video(self, video: Tensor, first: bool) -> None:
        time, space = self.config.temporal_factor, self.config.spatial_factor
        frames, height, width = video.shape[2:]
        if frames < 1 or frames % time != (1 % time if first else 0):
            wanted = f"1 + {time}k" if first else f"{time}k"
            raise ValueError(f"{frames} frames cannot be encoded here; give {wanted} of them")
        if height % space or width % space:
            raise ValueError(f"video of {height}x{width} pixels: height and width must be multiples of {space}")
