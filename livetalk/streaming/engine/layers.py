"""The parts of a transformer layer between its two attentions, as functions of tensors alone.

All layers share the compiled form of each: weights are arguments. One clip, one timestep for all its tokens, as a
stream has it. Shapes: S tokens, D width, x [S, D]; m: the six modulation vectors [6, D], learned and of the timestep.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.models.dit import Block, WanDiT
from livetalk.models.rope import rotate
from livetalk.streaming.engine.linear import Linear, as_is, fused, halved, linear, linear_gelu, linear_of, quantised


class Weights(NamedTuple):
    """Of one layer."""

    qkv: Linear
    norm_q: Tensor
    norm_k: Tensor
    o: Linear
    norm3: tuple[Tensor, Tensor]
    text_q: Linear
    text_norm_q: Tensor
    text_o: Linear
    ffn1: Linear
    ffn2: Linear


def weights_of(block: Block, linears: str) -> Weights:
    """Joined where several read the same; the large ones in fp8 or one of them, or all in bfloat16, if asked for."""
    own, text = block.self_attn, block.cross_attn
    small = halved if linears == "bfloat16" else as_is
    qkv = quantised if linears in ("fp8", "fp8-qkv") else small
    large = quantised if linears == "fp8" else small
    return Weights(
        qkv(fused([own.q, own.k, own.v])),
        own.norm_q.weight.data,
        own.norm_k.weight.data,
        small(linear_of(own.o)),
        (block.norm3.weight.data, block.norm3.bias.data),
        small(linear_of(text.q)),
        text.norm_q.weight.data,
        small(linear_of(text.o)),
        large(linear_of(block.ffn[0])),
        large(linear_of(block.ffn[2])),
    )


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def heard(x: Tensor, audio: Tensor | None) -> Tensor:
    """Adds a vector a latent frame [F, D] to all its tokens."""
    if audio is None:
        return x
    return (x.unflatten(0, (audio.shape[0], -1)) + audio.unsqueeze(1)).flatten(0, 1)


def before(
    x: Tensor,
    m: Tensor,
    audio: Tensor | None,
    w: Weights,
    table: Tensor,
    keys: Tensor,
    values: Tensor,
    raw: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Up to self-attention: x with its audio, and turned queries [S, heads, d]. Writes keys and values [S, heads, d] of
    the window, and the un-rotated keys of as many last tokens as raw has."""
    x = heard(x, audio)
    q, k, v = linear(modulated(x, m[0], m[1], eps), w.qkv).chunk(3, dim=-1)
    q, k = (rms(each, norm, eps).unflatten(-1, keys.shape[1:]) for each, norm in ((q, w.norm_q), (k, w.norm_k)))
    keys.copy_(turn(k, table).to(keys.dtype))
    values.copy_(v.unflatten(-1, values.shape[1:]).to(values.dtype))
    if raw is not None:
        raw.copy_(k[k.shape[0] - raw.shape[0] :])
    return x, turn(q, table).to(keys.dtype)


def turn(x: Tensor, table: Tensor) -> Tensor:
    return rotate(x.unsqueeze(0), table).squeeze(0)


def between(x: Tensor, attended: Tensor, m: Tensor, w: Weights, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """From self-attention's result [S, heads, d] to the text's queries [S, heads, d]."""
    x = x + m[2] * linear(attended.flatten(1).to(x.dtype), w.o)
    q = linear(F.layer_norm(x, x.shape[-1:], *w.norm3, eps), w.text_q)
    return x, rms(q, w.text_norm_q, eps).unflatten(-1, (heads, -1))


def after(x: Tensor, attended: Tensor, m: Tensor, w: Weights, eps: float) -> Tensor:
    """From text attention's result [S, heads, d] to the end of the layer."""
    x = x + linear(attended.flatten(1), w.text_o)
    y = linear_gelu(modulated(x, m[3], m[4], eps), w.ffn1)
    return x + m[5] * linear(y, w.ffn2)


def embedded(patches: Tensor, weight: Tensor, bias: Tensor, reference: Tensor) -> Tensor:
    """Noisy patches [S, C * 4] to tokens."""
    return F.linear(patches, weight, bias) + reference


def flow_of(x: Tensor, m: Tensor, head: Linear, eps: float) -> Tensor:
    """Tokens to patches of the flow [S, 4 * 16]; m: [2, D]."""
    return linear(modulated(x, m[0], m[1], eps), head)


class Modulations(NamedTuple):
    """Of one timestep: blocks [layers, 6, D], head [2, D]; learned vectors and the timestep's embedding, added."""

    blocks: Tensor
    head: Tensor


@torch.inference_mode()
def modulations_of(dit: WanDiT, level: float, like: Tensor) -> Modulations:
    """They depend on nothing else, so one serves all blocks of all streams."""
    time = dit._time(level, 1, like)
    blocks = torch.stack([(block.modulation + time.blocks)[0, 0] for block in dit.blocks])
    return Modulations(blocks, (dit.head.modulation + time.head.unsqueeze(-2))[0, 0])
