"""The layers of the Wan video autoencoder: causal in time, convolutional in space.

Every layer takes the frames of one pass and a `Past`, which supplies the frames before them. One forward
serves whole clips (the past is zeros) and pieces (the past is what the pass before left behind).

Shapes: videos and features are [B, C, T, H, W], with channels last in memory (torch.channels_last_3d), where the
norms and the convolutions are quickest on GPUs and CPUs alike.
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Tails = tuple[Tensor | None, ...]


class Past:
    """What the causal layers of one pass see of earlier frames, and what they leave for the next pass.

    Layers ask in the order they run, which is the same in every pass, so a layer is known by its turn.
    Tails are never written in place: whoever holds them holds a snapshot.
    """

    def __init__(self, tails: Tails | None = None, record: bool = False):
        """`tails`: what the pass before recorded, None at the first frame; `record`: whether to collect new ones."""
        self.first = tails is None
        self.record = record
        self._earlier = tails
        self._new: list[Tensor | None] = []

    @property
    def tails(self) -> Tails:
        """The last input frames of each causal layer, or what it keeps, in the order the layers ran."""
        return tuple(self._new)

    def join(self, x: Tensor, frames: int, zeros: bool = True) -> Tensor:
        """Put the `frames` inputs before x in front of it: [B, C, T, H, W] -> [B, C, frames + T, H, W].

        Before the first input there are zeros, or, without `zeros`, nothing at all.
        """
        tail = None if self._earlier is None else self._earlier[len(self._new)]
        if tail is not None:
            x = torch.cat([tail, x], dim=2)
        elif zeros:
            # zeros_like keeps the memory format; a mixed concatenation would fall back to the default one.
            x = torch.cat([torch.zeros_like(x[:, :, :1])] * frames + [x], dim=2)
        # The copy lets go of the rest of x.
        self._new.append(x[:, :, -frames:].clone() if self.record else None)
        return x

    def keep(self, make: Callable[[], Tensor], rest: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives in the first pass, and in every other what `rest` left of the value of the one before."""
        value = make() if self.first else self._earlier[len(self._new)]
        self._new.append(rest(value) if self.record else None)
        return value

    def skip(self) -> None:
        """Take a turn without input: the layer's first input is still to come."""
        self._new.append(None)


def convolve(conv: nn.Conv2d | nn.Conv3d, x: Tensor, bias: bool = True) -> Tensor:
    """Apply a convolution to [B, C, T, H, W]; a 2-D one goes over each frame, left where it is in memory. bias: whether
    to add its own, which a caller may do in a kernel that reads the result anyway."""
    added = conv.bias if bias else None
    weight, stride, padding = conv.weight, conv.stride, conv.padding
    if weight.ndim == 4:
        weight, stride, padding = weight.unsqueeze(2), (1, *stride), (0, *padding)
    plain_float = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and plain_float and torch.backends.mkldnn.is_available():
        # For one clip of few frames conv3d picks its plain implementation, which is ten times slower.
        return torch.mkldnn_convolution(x, weight, added, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, added, stride, padding)


class CausalConv3d(nn.Conv3d):
    """A convolution whose window ends at the current frame: kernel 3 in time, `size` (1 or 3) in space."""

    def __init__(self, channels_in: int, channels_out: int, size: int = 3):
        super().__init__(channels_in, channels_out, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return convolve(self, past.join(x, 2))


class ChannelNorm(nn.Module):
    """y = x / |x| * sqrt(C) * gamma over the channels of each pixel, the length summed in float32 or better."""

    def __init__(self, channels: int, dims: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
        scale = math.sqrt(x.shape[1]) / length.clamp_min(1e-12)
        return x * scale.to(x.dtype) * self.gamma.to(x.dtype)


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU and causal convolution beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        # The keys are the published ones, which count the activations and the (zero) dropout as well.
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels_in),
                "2": CausalConv3d(channels_in, channels_out),
                "3": ChannelNorm(channels_out),
                "6": CausalConv3d(channels_out, channels_out),
            }
        )
        self.shortcut = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        h = self.residual["2"](F.silu(self.residual["0"](x)), past)
        h = self.residual["6"](F.silu(self.residual["3"](h)), past)
        return h + (x if self.shortcut is None else convolve(self.shortcut, x))


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of each frame; it starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        b, _, t, h, w = x.shape
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = self.to_qkv(self.norm(frames))
        q, k, v = rearrange(qkv, "n (three c) h w -> three n 1 (h w) c", three=3)
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(rearrange(y, "n 1 (h w) c -> n c h w", h=h, w=w))
        return x + rearrange(y, "(b t) c h w -> b c t h w", b=b, t=t)


class Down(nn.Module):
    """Half the height and width; with `temporal`, half the frames too: T = 1 + 2k -> 1 + k, and 2k -> k later on."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = convolve(self.resample["1"], F.pad(x, (0, 1, 0, 1)))
        if self.time_conv is None:
            return x
        joined = past.join(x, 1, zeros=False)
        if not past.first:
            return convolve(self.time_conv, joined)
        # The very first frame is kept as it is; windows of three start on it.
        head = x[:, :, :1]
        return head if x.shape[2] == 1 else torch.cat([head, convolve(self.time_conv, joined)], dim=2)


class Up(nn.Module):
    """Double the height and width and halve the channels; with `temporal`, T = 1 + k -> 1 + 2k, and k -> 2k later."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, size=1) if temporal else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None:
            x = self._double_time(x, past)
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        return convolve(self.resample["1"], x)

    def _double_time(self, x: Tensor, past: Past) -> Tensor:
        if not past.first:
            return self._pairs(x, past)
        # The very first frame passes unchanged and is not part of the history of the later ones.
        head, later = x[:, :, :1], x[:, :, 1:]
        if later.shape[2] == 0:
            past.skip()
            return head
        return torch.cat([head, self._pairs(later, past)], dim=2)

    def _pairs(self, x: Tensor, past: Past) -> Tensor:
        # Channels stay last in memory on the way.
        pairs = rearrange(self.time_conv(x, past), "b (pair c) t h w -> b (t pair) h w c", pair=2)
        return pairs.movedim(-1, 1)
