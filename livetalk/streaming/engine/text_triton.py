"""Attention of many queries to few keys whose number the card alone knows, each key with a bias of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS = 128, 64
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(q, k, v, bias, total, out, queries, stride, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1) * D
    columns = tl.arange(0, D)
    inside = rows[:, None] < queries
    at = rows[:, None].to(tl.int64) * stride + head + columns[None]
    mine = tl.load(q + at, mask=inside, other=0.0)
    most = tl.full([BM], float("-inf"), tl.float32)
    weight = tl.zeros([BM], tl.float32)
    mean = tl.zeros([BM, D], tl.float32)
    count = tl.load(total)
    for start in range(0, count, BN):
        keys = start + tl.arange(0, BN)
        there = keys < count
        beside = keys[:, None] * stride + head + columns[None]
        theirs = tl.load(k + beside, mask=there[:, None], other=0.0)
        score = tl.dot(mine, tl.trans(theirs)) * scale + tl.load(bias + keys, mask=there, other=float("-inf"))[None]
        top = tl.maximum(most, tl.max(score, 1))
        share = tl.exp2(score - top[:, None])
        kept = tl.exp2(most - top)
        weight = weight * kept + tl.sum(share, 1)
        values = tl.load(v + beside, mask=there[:, None], other=0.0)
        mean = mean * kept[:, None] + tl.dot(share.to(values.dtype), values)
        most = top
    mean = mean / weight[:, None]
    tl.store(out + at, mean.to(out.dtype.element_ty), mask=inside)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, total: Tensor) -> Tensor:
    """q [S, heads, d]; k, v [L, heads, d] of which the first `total` (one int32 on the card) count; bias [L] float32,
    added to scores after their scaling by d ** -0.5, in units of log 2. d is a power of two, at least 16."""
    queries, heads, d = q.shape
    out = torch.empty_like(q)
    grid = (triton.cdiv(queries, QUERIES), heads)
    scale = LOG2_E * d**-0.5
    _attend[grid](q, k, v, bias, total, out, queries, heads * d, scale, D=d, BM=QUERIES, BN=KEYS, num_warps=8)
    return out
