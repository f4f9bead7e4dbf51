"""The video transformer of Wan2.1 with OmniAvatar's audio conditioning: teacher, critic and student alike.

One forward, `forward(x, t, conditions, attend)`. Causality is the `attend` object (attention.py, kv_cache.py); what
stays the same over the passes of a block is computed once by `prepare`. Parameter names are the published ones.

Shapes: B batch, F latent frames, N tokens of a frame (rows x columns), D width, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from livetalk.checks import at_least
from livetalk.conditions import Conditions
from livetalk.geometry import LATENT_CHANNELS, PATCH, TIME_STRIDE
from livetalk.models.attention import Attend, Grid, Turn, View, attention
from livetalk.models.rope import rotate

MODULATIONS = 6


@dataclass(frozen=True)
class DiTConfig:
    """Sizes. in_channels: 16 noisy latents, + 16 reference + 1 mask where there is an image; audio_dim: channels of
    one video frame's audio features, 0 for a network without audio."""

    dim: int = 1536
    ffn_dim: int = 8960
    heads: int = 12
    layers: int = 30
    in_channels: int = 33
    out_channels: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    audio_dim: int = 10752
    audio_hidden: int = 32
    eps: float = 1e-6

    def __post_init__(self) -> None:
        at_least(1, self, "dim", "ffn_dim", "heads", "layers", "out_channels", "text_dim", "text_len", "freq_dim")
        at_least(0, self, "audio_dim", "audio_hidden")
        if self.in_channels not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS + 1):
            raise ValueError(
                f"in_channels={self.in_channels}: {LATENT_CHANNELS} of noisy latents, or "
                f"{2 * LATENT_CHANNELS + 1} with the reference image and its mask"
            )
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(f"width {self.dim} does not split into {self.heads} heads of even width")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def audio_layers(self) -> range:
        """Layers before which the audio vector is added: 2 .. layers / 2 inclusive."""
        return range(2, self.layers // 2 + 1) if self.audio_dim else range(0)

    @staticmethod
    def wan_1_3b() -> DiTConfig:
        return DiTConfig()

    @staticmethod
    def wan_14b() -> DiTConfig:
        return DiTConfig(dim=5120, ffn_dim=13824, heads=40, layers=40)

    @staticmethod
    def nano() -> DiTConfig:
        return DiTConfig(
            dim=192, ffn_dim=768, heads=6, layers=8, text_dim=64, text_len=48, audio_dim=768, audio_hidden=64
        )

    @staticmethod
    def from_published(settings: dict) -> DiTConfig:
        """From the keyword names of the published code (dim, in_dim, ffn_dim, ...). Raises ValueError on others."""
        if tuple(settings["patch_size"]) != (1, PATCH, PATCH) or settings["has_image_input"]:
            raise ValueError(f"patch size {settings['patch_size']} or CLIP image input is not supported")
        return DiTConfig(
            dim=settings["dim"],
            ffn_dim=settings["ffn_dim"],
            heads=settings["num_heads"],
            layers=settings["num_layers"],
            in_channels=settings["in_dim"],
            out_channels=settings["out_dim"],
            text_dim=settings["text_dim"],
            text_len=settings["text_len"],
            freq_dim=settings["freq_dim"],
            audio_dim=settings["audio_input_dim"] if settings["use_audio"] else 0,
            audio_hidden=settings["audio_hidden_size"] if settings["use_audio"] else 0,
            eps=settings["eps"],
        )


@dataclass(frozen=True)
class TimeEmbedding:
    """e [B, F or 1, D] for the head and its projection [B, F or 1, 6, D] for the blocks."""

    head: Tensor
    blocks: Tensor


@dataclass(frozen=True)
class Prepared:
    """What the passes over the same frames share. `times` holds the embedding of each level prepared."""

    first: int
    text: list[tuple[Tensor, Tensor]]
    audio: dict[int, Tensor]
    reference: Tensor | None
    times: dict[float, TimeEmbedding]


class RMSNorm(nn.Module):
    """Over the last axis, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Reads its weights in the type of x: sharded ones are gathered in that of the other weights of their block."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Projections with RMS-normalised queries and keys; who attends to whom is the caller's business."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def queries(self, x: Tensor) -> Tensor:
        return self._split(self.norm_q(self.q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.norm_k(self.k(x))), self._split(self.v(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, MODULATIONS, dim) / math.sqrt(dim))
        self.self_attn = Attention(config)
        self.norm3 = LayerNorm(dim, eps=config.eps)
        self.cross_attn = Attention(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def forward(
        self, x: Tensor, time: Tensor, text: tuple[Tensor, Tensor], layer: int, view: View, parts: Parts
    ) -> Tensor:
        """x [B, F, N, D], time [B, F or 1, 6, D], text keys and values [B, L, heads, d]."""
        shift, scale, gate, shift2, scale2, gate2 = (self.modulation + time).unsqueeze(-2).unbind(-3)
        q, k, v = parts.before(self, x, shift, scale)
        x, q = parts.between(self, x, view(layer, q, k, v), gate)
        return parts.after(self, x, attention(q, *text), shift2, scale2, gate2)

    def _modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


def before(block: Block, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Up to self-attention: x [B, F, N, D] to queries, keys and values [B, F * N, heads, d]."""
    y = block._modulate(x, shift, scale).flatten(1, 2)
    return block.self_attn.queries(y), *block.self_attn.keys_values(y)


def between(block: Block, x: Tensor, seen: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """From what self-attention saw to x with it, and to the queries of the text, both [B, F * N, heads, d]."""
    x = x + gate * block.self_attn.o(seen.flatten(2)).unflatten(1, x.shape[1:3])
    return x, block.cross_attn.queries(block.norm3(x).flatten(1, 2))


def after(block: Block, x: Tensor, told: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    """From what the text told [B, F * N, heads, d] to the end of the block."""
    x = x + block.cross_attn.o(told.flatten(2)).unflatten(1, x.shape[1:3])
    return x + gate * block.ffn(block._modulate(x, shift, scale))


class Parts(NamedTuple):
    """The work of a block around its two attentions. Nothing in it depends on the layer or on who sees whom, so that
    compiled forms serve all layers (livetalk/training/compiled.py)."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor]] = before
    between: Callable[..., tuple[Tensor, Tensor]] = between
    after: Callable[..., Tensor] = after
    turn: Turn = rotate


class Head(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.out_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time.unsqueeze(-2)).unsqueeze(-2).unbind(-3)
        return self.head(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


class AudioPack(nn.Module):
    """Four video frames' features [B, F, 4C] to one vector a latent frame [B, F, hidden]."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(TIME_STRIDE * config.audio_dim, config.audio_hidden)
        self.norm_out = nn.LayerNorm(config.audio_hidden, eps=1e-5)

    def forward(self, audio: Tensor) -> Tensor:
        return self.norm_out(self.proj(audio))


class WanDiT(nn.Module):
    """recompute: keep none of the blocks' activations for the backward pass, which runs the blocks again instead (Chen
    et al., arXiv:1604.06174); not where `attend` cannot be repeated. parts: what blocks run around their attentions."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.parts = Parts()
        dim = config.dim
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, MODULATIONS * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        if config.audio_dim:
            self.audio_proj = AudioPack(config)
            self.audio_cond_projs = nn.ModuleList(nn.Linear(config.audio_hidden, dim) for _ in config.audio_layers)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        conditions: Conditions | Prepared,
        attend: Attend,
        skip: int | None = None,
    ) -> Tensor:
        """Predicts the flow [B, 16, F, h, w] of noisy latents x of that shape.

        t: timestep in [0, 1000], one for all (float), a clip [B] or a latent frame [B, F]. skip: a layer to leave out
        (flow.SkipLayer). Differentiable.
        """
        batch, _, frames, height, width = x.shape
        prepared = conditions if isinstance(conditions, Prepared) else self._prepare(conditions, frames)
        grid = Grid(prepared.first, frames, height // PATCH, width // PATCH, self.parts.turn)
        view = attend.open(grid, self.config.head_dim, x.device)
        time = prepared.times[t] if isinstance(t, float) and t in prepared.times else self._time(t, batch, x)
        tokens = self._patches(x, 0, bias=True)
        if prepared.reference is not None:
            tokens = tokens + prepared.reference
        # As wide as what the first layer adds to them makes them, so that all layers see the same type.
        gates = torch.promote_types(self.blocks[0].modulation.dtype, time.blocks.dtype)
        tokens = tokens.to(torch.promote_types(tokens.dtype, gates))
        for layer, (block, text) in enumerate(zip(self.blocks, prepared.text, strict=True)):
            if layer in prepared.audio:
                tokens = tokens + prepared.audio[layer]
            if layer == skip:
                continue
            if self.recompute and attend.repeatable and torch.is_grad_enabled():
                again = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a block is random
                tokens = checkpoint(block, tokens, time.blocks, text, layer, view, self.parts, **again)
            else:
                tokens = block(tokens, time.blocks, text, layer, view, self.parts)
        out = self.head(tokens, time.head)
        return rearrange(
            out, "b f (r w) (p q c) -> b c f (r p) (w q)", r=grid.rows, p=PATCH, q=PATCH, c=self.config.out_channels
        )

    def prepare(self, conditions: Conditions, frames: int, levels: Sequence[float] = ()) -> Prepared:
        """Everything that the passes over `frames` latent frames share; levels: timesteps whose embeddings to keep."""
        return self._prepare(conditions, frames, levels)

    def _prepare(self, conditions: Conditions, frames: int, levels: Sequence[float] = ()) -> Prepared:
        """prepare() itself: a sharded network has hooks around that, which must not run inside those of forward."""
        text = self.text_embedding(conditions.text)
        batch = text.shape[0]
        return Prepared(
            first=conditions.first,
            text=[block.cross_attn.keys_values(text) for block in self.blocks],
            audio=self._audio(conditions, frames),
            reference=self._reference(conditions, frames),
            times={float(level): self._time(level, batch, text) for level in levels},
        )

    def _audio(self, conditions: Conditions, frames: int) -> dict[int, Tensor]:
        if not self.config.audio_dim:
            return {}
        if conditions.audio is None or conditions.audio.shape[1] != frames:
            found = None if conditions.audio is None else conditions.audio.shape[1]
            raise ValueError(f"audio for {found} latent frames, the pass has {frames}: use conditions.block()")
        packed = self.audio_proj(conditions.audio)
        pairs = zip(self.config.audio_layers, self.audio_cond_projs, strict=True)
        return {layer: projection(packed).unsqueeze(2) for layer, projection in pairs}

    def _reference(self, conditions: Conditions, frames: int) -> Tensor | None:
        if self.config.in_channels == LATENT_CHANNELS:
            return None
        if conditions.reference is None:
            raise ValueError(f"a network with {self.config.in_channels} input channels needs a reference image")
        latent = conditions.reference.expand(-1, -1, frames, -1, -1)
        mask = conditions.mask(frames, latent.device).to(latent.dtype)[None, None, :, None, None]
        mask = mask.expand(latent.shape[0], 1, frames, *latent.shape[-2:])
        return self._patches(torch.cat([latent, mask], dim=1), LATENT_CHANNELS, bias=False)

    def _patches(self, x: Tensor, channel: int, bias: bool) -> Tensor:
        """The part of the patch embedding that reads x as input channels `channel` on: tokens [B, F, N, D]."""
        weight = self.patch_embedding.weight[:, channel : channel + x.shape[1]].flatten(1)
        patches = rearrange(x, "b c f (r p) (w q) -> b f (r w) (c p q)", p=PATCH, q=PATCH)
        return F.linear(patches, weight, self.patch_embedding.bias if bias else None)

    def _time(self, t: Tensor | float, batch: int, like: Tensor) -> TimeEmbedding:
        if isinstance(t, float):
            # Filled in on the device: a copy from the host's memory would wait for it.
            t = torch.full((), t, dtype=torch.float64, device=like.device)
        t = t.to(like.device, torch.float64)
        t = t.expand(batch, 1) if t.ndim == 0 else t.reshape(batch, -1)
        weight = self.time_embedding[0].weight
        e = self.time_embedding(timestep_features(t, self.config.freq_dim).to(weight.dtype))
        return TimeEmbedding(e, self.time_projection(e).unflatten(-1, (MODULATIONS, -1)))


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids [..., width] of timesteps, cosines first, base 10000, in float64."""
    half = width // 2
    rates = 10_000.0 ** -(torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angle = t.double()[..., None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def initialise(dit: WanDiT, generator: torch.Generator | None = None) -> None:
    """Weights to start a training from: Xavier for the projections, small embeddings, a silent head."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.view(dit.config.dim, -1), generator=generator)
    nn.init.zeros_(dit.patch_embedding.bias)
    for linear in (dit.text_embedding[0], dit.text_embedding[2], dit.time_embedding[0], dit.time_embedding[2]):
        nn.init.normal_(linear.weight, std=0.02, generator=generator)
    for block in dit.blocks:
        nn.init.normal_(block.modulation, std=dit.config.dim**-0.5, generator=generator)
    nn.init.normal_(dit.head.modulation, std=dit.config.dim**-0.5, generator=generator)
    nn.init.zeros_(dit.head.head.weight)


SIZES = {"nano": DiTConfig.nano, "1.3b": DiTConfig.wan_1_3b, "14b": DiTConfig.wan_14b}
"""Sizes by the names that people give them."""
