"""The VAE's decoder for a stream: every causal convolution reads from a place that keeps the two frames before.

The same as WanVAE.decode_step. Norm, SiLU, the sum before them and the join with earlier frames are one kernel; the
bias of a convolution is added by whoever reads its result. Activations are [T, H, W, C], contiguous: channels last.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from livetalk.graphs import Captured
from livetalk.media import pixels_of
from livetalk.models.vae import WanVAE
from livetalk.models.vae_layers import CausalConv3d, FrameAttention, ResidualBlock, Up, convolve
from livetalk.streaming.engine.undo import host_bytes, places_of

PAST = 2
"""Frames that a causal convolution sees before the current one."""
SHAPES = 64
"""Forms of one function that may be compiled: sizes of pictures, and numbers of frames."""
EARLY = 2
"""Latents at the start of a stream that are decoded before the rest of their block: the picture itself, and that of
the first new frames, which are waited for."""
NARROW = 8
"""Fewer channels than this have no quick convolution on a GPU, so the last one gets zeros beside its three."""


@dataclass
class Sum:
    """An activation as its parts: x [T, H, W, C], bias [C], other [T, H, W, C]. The largest take 0.6 GB each, so
    whoever adds them up lets go of them, but where pictures are smallest."""

    x: Tensor | None
    bias: Tensor | None = None
    other: Tensor | None = None

    def made(self) -> Tensor:
        return added(self.x, self.bias, self.other)

    def let_go(self) -> None:
        """The sum has been written elsewhere: its parts are not needed any more."""
        self.x = self.other = None


def added(x: Tensor, bias: Tensor | None, other: Tensor | None) -> Tensor:
    total = x if bias is None else x + bias
    return total if other is None else total + other


def halves(x: Tensor, bias: Tensor) -> Tensor:
    """Two frames in one, [T, H, W, 2C] -> [2T, H, W, C], the first half of the channels earlier."""
    return rearrange(x + bias, "t h w (pair c) -> (t pair) h w c", pair=2)


def folded(large: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution of a picture enlarged to twice its size, as a 2x2 one of the small picture for `woven`.

    Once every pixel has become four, two of the three rows under a kernel are copies of one: an even row sees the row
    before once and its own twice, an odd row its own twice and the next once. Columns likewise. So it is 4/9 of the
    arithmetic, and the enlarged input is never written. Output channels: those of even rows and columns, of even rows
    and odd columns, then of odd rows.
    """
    weight = large.weight.double()
    parity = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [even or odd, small, large]
    parts = torch.einsum("aih,bjw,ochw->abocij", parity, parity, weight).flatten(0, 2)
    with torch.device(weight.device):
        small = nn.Conv2d(*parts.shape[1::-1], 2, padding=1, bias=False).to(large.weight.dtype)
    small.weight.data.copy_(parts)
    return small.to(memory_format=torch.channels_last).requires_grad_(False)


def woven(x: Tensor) -> Tensor:
    """What the folded convolution, padded by one all round, makes of [T, H, W, I] -> the large picture.

    [T, H + 1, W + 1, 4 C] -> [T, 2 H, 2 W, C]: place i of an even row was seen from i - 1 on, of an odd row from i on.
    """
    t, h, w, c = x.shape
    square = x.reshape(t, h, w, 2, 2, c // 4)
    rows = torch.stack([square[:, :-1, :, 0], square[:, 1:, :, 1]], dim=2)
    both = torch.stack([rows[:, :, :, :-1, 0], rows[:, :, :, 1:, 1]], dim=4)
    return both.reshape(t, 2 * (h - 1), 2 * (w - 1), c // 4)


def pixels(x: Tensor, bias: Tensor) -> Tensor:
    """[T, H, W, 3 or more] -> uint8 [T, H, W, 3]."""
    return pixels_of((x + bias)[..., :3].permute(3, 0, 1, 2)[None])[0].contiguous()


def plain_norm_silu(
    x: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    gamma: Tensor,
    total: Tensor | None,
    out: Tensor,
    kept: Tensor,
) -> None:
    """What norm_triton.norm_silu does, in PyTorch's words."""
    value = Sum(x, bias, other).made()
    if total is not None:
        total.copy_(value)
    wide = torch.promote_types(value.dtype, torch.float32)
    length = torch.linalg.vector_norm(value, dim=-1, keepdim=True, dtype=wide)
    scale = math.sqrt(value.shape[-1]) / length.clamp_min(1e-12)
    joined(F.silu(value * scale.to(value.dtype) * gamma), out, kept)


def joined(x: Tensor, out: Tensor, kept: Tensor) -> None:
    """out = kept, then x; kept = the last of out."""
    out[: len(kept)].copy_(kept)
    out[len(kept) :].copy_(x)
    kept.copy_(out[len(x) :])


def _norm_of(device: torch.device):
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return plain_norm_silu
    from livetalk.streaming.engine.norm_triton import norm_silu

    return norm_silu


class Past:
    """The input of one causal convolution: the frames before, which it keeps, then those of this pass, in memory
    [PAST + T, H, W, C] that convolutions of one size share, since they run one after the other."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self.tail = torch.zeros_like(memory[:PAST])

    def now(self, frames: int) -> Tensor:
        """All that the convolution reads in a pass over so many frames. Whoever writes it puts `tail` first, and keeps
        its end there."""
        return self._memory[: PAST + frames]


class Places:
    """The places of a stream's convolutions, in the order they are asked for."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._new = {"dtype": dtype, "device": device}
        self._shared: dict[tuple[int, ...], Tensor] = {}
        self.pasts: list[Past] = []

    def add(self, frames: int, height: int, width: int, conv: nn.Conv3d) -> None:
        """For a convolution of at most so many frames."""
        shape = (PAST + frames, height, width, conv.in_channels)
        if shape not in self._shared:
            self._shared[shape] = torch.zeros(shape, **self._new)
        self.pasts.append(Past(self._shared[shape]))

    def nbytes(self) -> tuple[int, int]:
        """Of what is shared, and of what is kept from pass to pass."""
        return sum(value.nbytes for value in self._shared.values()), sum(past.tail.nbytes for past in self.pasts)


def conv(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The convolution of [T, H, W, C], without its bias."""
    video = x.permute(3, 0, 1, 2)[None]
    out = convolve(layer, video, bias=False)
    return out[0].permute(1, 2, 3, 0).contiguous()


class FusedDecoder:
    """The decoder of `vae`, a copy in another precision if `dtype` is not its own, for latents of height x width."""

    @torch.inference_mode()
    def __init__(self, vae: WanVAE, dtype: torch.dtype | None = None, compiled: bool = False) -> None:
        like = vae.conv2.weight
        self.dtype, self.device = like.dtype if dtype is None else dtype, like.device
        self.enter, self.net = vae.conv2, vae.decoder
        if self.dtype != like.dtype:
            from copy import deepcopy

            self.enter, self.net = (deepcopy(part).to(self.dtype) for part in (vae.conv2, vae.decoder))
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for weight in self.net.parameters():
            if weight.ndim in formats:
                weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])
        self.mean, self.std = vae.latents_mean, vae.latents_std
        self.norm = _norm_of(self.device)
        self.leave = self._widened(self.net.head["2"])
        self.folded = {up: folded(up.resample["1"]) for up in self.net.upsamples if isinstance(up, Up)}
        acts = (added, halves, woven, pixels)
        if compiled:
            acts = tuple(torch.compile(act, fullgraph=True, dynamic=False) for act in acts)
        self._added, self._halves, self._woven, self._pixels = acts

    def _widened(self, last: CausalConv3d) -> CausalConv3d:
        """The last convolution, with zero channels beside its own on a GPU."""
        if self.device.type != "cuda":
            return last
        with torch.device(self.device):
            wide = CausalConv3d(last.in_channels, NARROW).to(self.dtype)
        wide.weight.data.zero_()[: last.out_channels] = last.weight
        wide.bias.data.zero_()[: last.out_channels] = last.bias
        return wide.to(memory_format=torch.channels_last_3d).requires_grad_(False)

    def places(self, frames: int, height: int, width: int, device: torch.device | str | None = None) -> Places:
        """Of a stream, for passes of at most `frames` latents; on the decoder's device unless another is given."""
        out = Places(self.dtype, self.device if device is None else device)
        out.add(frames, height, width, self.net.conv1)
        for layer in [*self.net.middle, *self.net.upsamples]:
            if isinstance(layer, ResidualBlock):
                for name in ("2", "6"):
                    out.add(frames, height, width, layer.residual[name])
            elif isinstance(layer, Up):
                if layer.time_conv is not None:
                    out.add(frames, height, width, layer.time_conv)
                    frames *= 2
                height, width = 2 * height, 2 * width
        out.add(frames, height, width, self.leave)
        return out

    def plan(self, frames: int, height: int, width: int, back: int, host: bool) -> dict[str, int]:
        """Bytes: the decoder, a stream's places, and what it keeps to go back by as many passes as `back`."""
        places = self.places(frames, height, width, "meta")
        shared, kept = places.nbytes()
        parts = {"decoder": sum(value.nbytes for value in self.net.parameters()), "decoder's places": shared + kept}
        if host:
            tails = [past.tail for past in places.pasts]
            return parts | {"decoder's snapshots (on the host)": host_bytes(tails, back + 1)}
        return parts | {"decoder's snapshots": (back + 1) * kept}

    def run(self, latents: Tensor, pasts: list[Past], first: bool) -> Tensor:
        """Standardised latents [1, z, F, h, w] -> frames uint8 [T, H, W, 3]; first: they begin the stream. Moves on."""
        waiting = iter(pasts)
        z = (latents.to(self.std.dtype) * self.std + self.mean).to(self.dtype)
        z = convolve(self.enter, z)[0].permute(1, 2, 3, 0)
        x = Sum(self._causal(self.net.conv1, next(waiting), z), self.net.conv1.bias)
        for layer in [*self.net.middle, *self.net.upsamples]:
            if isinstance(layer, ResidualBlock):
                x = self._residual(layer, x, waiting)
            elif isinstance(layer, FrameAttention):
                x = Sum(self._attention(layer, x.made()))
            else:
                x = self._up(layer, x, waiting, first)
        seen = self._normed(self.net.head["0"].gamma, x, None, next(waiting))
        return self._pixels(conv(self.leave, seen), self.leave.bias)

    def _causal(self, layer: CausalConv3d, past: Past, x: Tensor) -> Tensor:
        seen = past.now(len(x))
        joined(x, seen, past.tail)
        return conv(layer, seen)

    def _normed(self, gamma: Tensor, x: Sum, total: Tensor | None, past: Past) -> Tensor:
        """What a convolution of the normed and activated sum reads; the sum is written to `total`, too, and let go."""
        seen = past.now(len(x.x))
        self.norm(x.x, x.bias, x.other, gamma.flatten(), total, seen, past.tail)
        x.let_go()
        return seen

    def _residual(self, layer: ResidualBlock, x: Sum, waiting) -> Sum:
        parts, plain = layer.residual, x.bias is None and x.other is None
        total = x.x if plain else torch.empty_like(x.x)
        seen = self._normed(parts["0"].gamma, x, None if plain else total, next(waiting))
        h = Sum(conv(parts["2"], seen), parts["2"].bias)
        h = conv(parts["6"], self._normed(parts["3"].gamma, h, None, next(waiting)))
        if layer.shortcut is None:
            return Sum(h, parts["6"].bias, total)
        return Sum(h, parts["6"].bias + layer.shortcut.bias, conv(layer.shortcut, total))

    def _attention(self, layer: FrameAttention, x: Tensor) -> Tensor:
        video = x.permute(3, 0, 1, 2)[None]
        return layer(video, None)[0].permute(1, 2, 3, 0).contiguous()

    def _up(self, layer: Up, x: Sum, waiting, first: bool) -> Sum:
        made = self._added(x.x, x.bias, x.other)
        x.let_go()
        if layer.time_conv is not None:
            past = next(waiting)
            # The very first frame passes unchanged and is not part of the history of the later ones.
            head, later = (made[:1], made[1:]) if first else (made[:0], made)
            if len(later):
                later = self._halves(self._causal(layer.time_conv, past, later), layer.time_conv.bias)
            made = torch.cat([head, later]) if first else later
        return Sum(self._woven(conv(self.folded[layer], made)), layer.resample["1"].bias)


class DecodedStream:
    """One stream's places and graphs: `decode` gives frames on the device, each to be taken before the next; `keep`,
    once they are on their way, makes it possible to come back to here."""

    @torch.inference_mode()
    def __init__(
        self,
        shared: FusedDecoder,
        frames: int,
        height: int,
        width: int,
        graphs: bool,
        back: int = 0,
        host: bool = False,
    ) -> None:
        """For latents [1, z, frames, height, width]. back: how many passes can be undone. host: what that needs is kept
        in the host's memory."""
        self.shared, self.back, self.frames = shared, back, frames
        # The parts of the first pass, and whether they begin the stream.
        self._begins = [(min(EARLY, frames), True)] + [(frames - EARLY, False)] * (frames > EARLY)
        self._pasts = shared.places(frames, height, width).pasts
        latents = torch.randn(1, len(shared.std.flatten()), frames, height, width, device=shared.device)
        example = latents.to(shared.std.dtype)
        stream = torch.cuda.Stream(shared.device) if graphs else None
        pool = torch.cuda.graph_pool_handle() if graphs else None
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            self._passes = {
                (count, first): Captured(self._pass(first), (example[:, :, :count],), stream, pool)
                for count, first in [*self._begins, (frames, False)]
            }
        # What the next pass needs of those before, as it was after each of the latest `back` + 1, by its number.
        self._tails = [past.tail for past in self._pasts]
        self._kept = places_of(host, self._tails, back + 1, shared.device)
        self.reset()

    def reset(self) -> None:
        """Before the first latent."""
        self.steps = self._held = 0
        self._begin()

    def _begin(self) -> None:
        self._kept.settle()
        for tail in self._tails:
            tail.zero_()

    def snapshot(self) -> int:
        """What `restore` takes to come back to here: the passes so far."""
        return self.steps

    def restore(self, steps: int) -> None:
        """Goes back to where `snapshot` was taken. Raises ValueError for what is later or too long ago."""
        if not 0 <= self.steps - steps <= self._held:
            raise ValueError(f"cannot go back from pass {self.steps} of the decoder to {steps}: {self._held} are kept")
        self._held -= self.steps - steps
        self.steps = steps
        if steps:
            self._kept.load(steps % (self.back + 1), self._tails)
        else:
            self._begin()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """The next latents -> their frames uint8 [T, H, W, 3]; the first ones' in two parts."""
        self._kept.settle()
        kinds = [(self.frames, False)] if self.steps else self._begins
        for part, kind in zip(latents.split([count for count, _ in kinds], dim=2), kinds, strict=True):
            yield self._passes[kind](part)

    @torch.inference_mode()
    def keep(self) -> None:
        """Ends a pass."""
        self.steps += 1
        self._held = min(self._held + 1, self.back)
        self._kept.save(self.steps % (self.back + 1), self._tails)

    def _pass(self, first: bool):
        return lambda latents: self.shared.run(latents, self._pasts, first)
