"""The rasteriser's fast path on CUDA: one lane a triangle, an atomic minimum a sample.

Importing this module needs Triton; only raster.visible imports it, and only for tensors on CUDA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES = 128


@triton.jit
def _search(
    points, triangles, two_sided, keys, triangle_count, vertex_count, samples, LANES: tl.constexpr, DEPTH: tl.constexpr
):
    # Program (block, frame): each lane walks its triangle's box; lanes of smaller boxes idle behind the mask.
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

    ax = x1 - x0
    ay = y1 - y0
    bx = x2 - x0
    by = y2 - y0
    area = ax * by - ay * bx
    drawn = real & ((area < 0) | ((both != 0) & (area > 0)))
    sign = tl.where(area < 0, -1.0, 1.0)
    size = tl.where(drawn, area * sign, 1.0)
    slope1 = (n1 - n0) / size
    slope2 = (n2 - n0) / size
    edge = (samples - 1).to(tl.float32)
    left = tl.maximum(tl.ceil(tl.minimum(tl.minimum(x0, x1), x2) - 0.5), 0.0)
    top = tl.maximum(tl.ceil(tl.minimum(tl.minimum(y0, y1), y2) - 0.5), 0.0)
    right = tl.minimum(tl.floor(tl.maximum(tl.maximum(x0, x1), x2) - 0.5), edge)
    bottom = tl.minimum(tl.floor(tl.maximum(tl.maximum(y0, y1), y2) - 0.5), edge)
    drawn = drawn & (right >= left) & (bottom >= top)
    width = tl.where(drawn, right - left + 1.0, 0.0).to(tl.int32)
    height = tl.where(drawn, bottom - top + 1.0, 0.0).to(tl.int32)
    column0 = left.to(tl.int32)
    row0 = top.to(tl.int32)
    out = keys + frame * samples * samples
    widest = tl.max(width, axis=0)
    tallest = tl.max(height, axis=0)

    for j in range(0, tallest):
        for i in range(0, widest):
            column = column0 + i
            row = row0 + j
            x = column.to(tl.float32) + 0.5 - x0
            y = row.to(tl.float32) + 0.5 - y0
            w1 = (x * by - y * bx) * sign
            w2 = (y * ax - x * ay) * sign
            inside = drawn & (i < width) & (j < height) & (w1 >= 0) & (w2 >= 0) & (w1 + w2 <= size)
            nearness = n0 + w1 * slope1 + w2 * slope2
            nearness = tl.minimum(tl.maximum(nearness, 0.0), 1.0)
            depth = ((1.0 - nearness) * DEPTH).to(tl.int64)
            tl.atomic_min(out + row * samples + column, (depth << 32) | triangle.to(tl.int64), mask=inside)


def visible_keys(points: Tensor, triangles: Tensor, two_sided: Tensor, samples: int) -> Tensor:
    """As raster.visible_keys, for CUDA tensors."""
    from livetalk.data.world.raster import DEPTH_STEPS, empty_keys

    frames, vertex_count = points.shape[:2]
    keys = empty_keys(frames, samples, points.device)
    grid = (-(-len(triangles) // _LANES), frames)
    arrays = (points.contiguous(), triangles.to(torch.int32).contiguous(), two_sided.to(torch.int32))
    with torch.cuda.device_of(points):
        _search[grid](
            *arrays, keys, len(triangles), vertex_count, samples, LANES=_LANES, DEPTH=float(DEPTH_STEPS), num_warps=4
        )
    return keys
