"""The rasteriser's fast path on CUDA: one lane a triangle, an atomic minimum a sample.

Importing this module needs Triton; only raster.visible imports it, and only for tensors on CUDA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES = 128
_DEPTH_STEPS = tl.constexpr(float(1 << 28))


@triton.jit
def _search(points, triangles, two_sided, keys, triangle_count, vertex_count, samples, LANES: tl.constexpr):
    """Program (block, frame): each lane walks its triangle's box; lanes of smaller boxes idle behind the mask."""
    frame = tl.program_id(1).to(tl.int64)
    triangle = tl.program_id(0) * LANES + tl.arange(0, LANES)
    real = triangle < triangle_count
    v0 = tl.load(triangles + triangle * 3 + 0, mask=real, other=0)
    v1 = tl.load(triangles + triangle * 3 + 1, mask=real, other=0)
    v2 = tl.load(triangles + triangle * 3 + 2, mask=real, other=0)
    first = points + frame * vertex_count * 3
    x0 = tl.load(first + v0 * 3 + 0, mask=real, other=0.0)
    y0 = tl.load(first + v0 * 3 + 1, mask=real, other=0.0)
    n0 = tl.load(first + v0 * 3 + 2, mask=real, other=0.0)
    x1 = tl.load(first + v1 * 3 + 0, mask=real, other=0.0)
    y1 = tl.load(first + v1 * 3 + 1, mask=real, other=0.0)
    n1 = tl.load(first + v1 * 3 + 2, mask=real, other=0.0)
    x2 = tl.load(first + v2 * 3 + 0, mask=real, other=0.0)
    y2 = tl.load(first + v2 * 3 + 1, mask=real, other=0.0)
    n2 = tl.load(first + v2 * 3 + 2, mask=real, other=0.0)
    both = tl.load(two_sided + triangle, mask=real, other=0)

    ax, ay, bx, by = x1 - x0, y1 - y0, x2 - x0, y2 - y0
    area = ax * by - ay * bx
    drawn = real & ((area < 0) | ((both != 0) & (area > 0)))
    sign = tl.where(area < 0, -1.0, 1.0)
    size = tl.where(drawn, area * sign, 1.0)
    slope1, slope2 = (n1 - n0) / size, (n2 - n0) / size
    edge = (samples - 1).to(tl.float32)
    left = tl.maximum(tl.ceil(tl.minimum(tl.minimum(x0, x1), x2) - 0.5), 0.0)
    top = tl.maximum(tl.ceil(tl.minimum(tl.minimum(y0, y1), y2) - 0.5), 0.0)
    right = tl.minimum(tl.floor(tl.maximum(tl.maximum(x0, x1), x2) - 0.5), edge)
    bottom = tl.minimum(tl.floor(tl.maximum(tl.maximum(y0, y1), y2) - 0.5), edge)
    drawn = drawn & (right >= left) & (bottom >= top)
    width = tl.where(drawn, right - left + 1.0, 0.0).to(tl.int32)
    height = tl.where(drawn, bottom - top + 1.0, 0.0).to(tl.int32)
    column0, row0 = left.to(tl.int32), top.to(tl.int32)
    out = keys + frame * samples * samples

    for j in range(0, tl.max(height, 0)):
        for i in range(0, tl.max(width, 0)):
            column, row = column0 + i, row0 + j
            x = column.to(tl.float32) + 0.5 - x0
            y = row.to(tl.float32) + 0.5 - y0
            w1 = (x * by - y * bx) * sign
            w2 = (y * ax - x * ay) * sign
            inside = drawn & (i < width) & (j < height) & (w1 >= 0) & (w2 >= 0) & (w1 + w2 <= size)
            nearness = n0 + w1 * slope1 + w2 * slope2
            nearness = tl.minimum(tl.maximum(nearness, 0.0), 1.0)
            depth = ((1.0 - nearness) * _DEPTH_STEPS).to(tl.int64)
            tl.atomic_min(out + row * samples + column, (depth << 32) | triangle.to(tl.int64), mask=inside)


def visible_keys(points: Tensor, triangles: Tensor, two_sided: Tensor, samples: int) -> Tensor:
    """As raster.visible_keys, for CUDA tensors."""
    from livetalk.data.world.raster import empty_keys

    frames, vertex_count = points.shape[:2]
    keys = empty_keys(frames, samples, points.device)
    grid = (triton.cdiv(len(triangles), _LANES), frames)
    corner_index = triangles.to(torch.int32).contiguous()
    sides = two_sided.to(torch.int32).contiguous()
    with torch.cuda.device(points.device):
        sizes = (len(triangles), vertex_count, samples)
        _search[grid](points.contiguous(), corner_index, sides, keys, *sizes, LANES=_LANES, num_warps=4)
    return keys
