"""Batched triangle rasteriser: the same torch code on CPU and GPU, many frames at once, no loop over triangles.

Visibility and shading are apart. `visible` finds the nearest triangle of every sample; `shade` interpolates vertex
colours there and averages the samples of a pixel. Screen points lie on a grid of 1/16 sample (`snap`), so the edge
functions of small triangles are exact in float32: coverage is watertight and equal on every device. Glossary: N frames,
V vertices, T triangles, S samples a side, H pixels a side.
"""

import functools
import importlib.util

import torch
from einops import rearrange, reduce
from torch import Tensor

SUBSAMPLES = 16  # grid steps a sample
DEPTH_STEPS = 1 << 28
_EMPTY = (1 << 62) - 1


def snap(xy: Tensor) -> Tensor:
    """Round screen points, in samples, to the rasteriser's grid."""
    return torch.round(xy * SUBSAMPLES) / SUBSAMPLES


def pack(nearness: Tensor, triangle: Tensor) -> Tensor:
    """Key whose minimum is the nearest triangle, then the lowest index; nearness is near_plane / z in (0, 1]."""
    return ((1 - nearness.clamp(0, 1)) * DEPTH_STEPS).to(torch.int64) << 32 | triangle


def visible(points: Tensor, triangles: Tensor, two_sided: Tensor, samples: int) -> Tensor:
    """Index of the nearest triangle at each sample centre, -1 where there is none: int64 [N, S, S].

    points [N, V, 3] are x, y in samples (snapped; y down) and nearness; triangles [T, 3] counter-clockwise when seen
    from outside; two_sided [T] marks those without an inside. On CUDA the Triton kernel is used where there is Triton.
    """
    if points.is_cuda and _has_triton():
        from livetalk.data.world.raster_triton import visible_keys as fast

        keys = fast(points, triangles, two_sided, samples)
    else:
        keys = visible_keys(points, triangles, two_sided, samples)
    index = keys & 0xFFFFFFFF
    return torch.where(keys == _EMPTY, -1, index)


def empty_keys(frames: int, samples: int, device: torch.device) -> Tensor:
    return torch.full((frames, samples, samples), _EMPTY, dtype=torch.int64, device=device)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def visible_keys(points: Tensor, triangles: Tensor, two_sided: Tensor, samples: int) -> Tensor:
    """The plain form of the search, and the Triton kernel's oracle: packed keys [N, S, S]."""
    frames = points.shape[0]
    keys = empty_keys(frames, samples, points.device)
    corners = points[:, triangles]  # [N, T, 3 corners, 3]
    area = _cross(corners[..., 1, :2] - corners[..., 0, :2], corners[..., 2, :2] - corners[..., 0, :2])
    # Screen y points down: counter-clockwise from outside is negative here.
    low = torch.ceil(corners[..., :2].amin(2) - 0.5).clamp(0, samples).to(torch.int64)
    high = torch.floor(corners[..., :2].amax(2) - 0.5).clamp(-1, samples - 1).to(torch.int64)
    extent = (high - low + 1).clamp_min(0)
    count = extent[..., 0] * extent[..., 1]
    faced = (area < 0) | (two_sided & (area > 0))
    frame, triangle = torch.nonzero(faced & (count > 0), as_tuple=True)
    count, low, extent = count[frame, triangle], low[frame, triangle], extent[frame, triangle]
    plane = _planes(corners[frame, triangle], area[frame, triangle])

    owner = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    step = torch.arange(len(owner), device=count.device) - (count.cumsum(0) - count)[owner]
    width = extent[owner, 0]
    column = low[owner, 0] + step % width
    row = low[owner, 1] + step // width
    plane = plane.index_select(0, owner)
    x = column.to(torch.float32) + 0.5 - plane[:, 0]
    y = row.to(torch.float32) + 0.5 - plane[:, 1]
    second = x * plane[:, 2] - y * plane[:, 3]
    third = y * plane[:, 4] - x * plane[:, 5]
    inside = (second >= 0) & (third >= 0) & (second + third <= plane[:, 6])
    nearness = plane[:, 7] + second * plane[:, 8] + third * plane[:, 9]
    where = (frame[owner] * samples + row) * samples + column
    found = pack(nearness[inside], triangle[owner][inside])
    keys.view(-1).scatter_reduce_(0, where[inside], found, "amin")
    return keys


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _planes(corners: Tensor, area: Tensor) -> Tensor:
    """Per triangle [K, 3, 3]: origin, the unnormalised weights of corners 1 and 2 as linear functions, doubled area,
    and nearness with its slopes along those weights: [K, 10]. Weights are positive inside whatever the winding."""
    sign = torch.where(area < 0, -1.0, 1.0)
    size = area.abs()
    origin = corners[:, 0]
    one, two = corners[:, 1] - origin, corners[:, 2] - origin
    columns = [
        *(origin[:, 0], origin[:, 1]),
        *(two[:, 1] * sign, two[:, 0] * sign, one[:, 0] * sign, one[:, 1] * sign),
        *(size, origin[:, 2], one[:, 2] / size, two[:, 2] / size),
    ]
    return torch.stack(columns, 1)


def shade(index: Tensor, points: Tensor, colours: Tensor, triangles: Tensor, background: Tensor) -> Tensor:
    """Pixels [N, H, H, 3] in [0, 1] from visible triangles [N, S, S], points [N, V, 3], colours [N, V, 3] and the
    background [H, H, 3]; S / H is the supersampling. A pixel is the mean of its samples."""
    samples, pixels = index.shape[1], background.shape[0]
    factor = samples // pixels
    frame, row, column = torch.nonzero(index >= 0, as_tuple=True)
    triangle = index[frame, row, column]
    vertices = triangles.shape[0]
    # One row a triangle and frame: origin, the two weights, and colour with its slopes.
    corners, colour = points[:, triangles], colours[:, triangles]
    origin = corners[..., 0, :2]
    one, two = corners[..., 1, :2] - origin, corners[..., 2, :2] - origin
    area = _cross(one, two)
    area = torch.where(area == 0, 1, area)[..., None]
    base = colour[..., 0, :]
    slope_x = ((colour[..., 1, :] - base) * two[..., 1:] - (colour[..., 2, :] - base) * one[..., 1:]) / area
    slope_y = ((colour[..., 2, :] - base) * one[..., :1] - (colour[..., 1, :] - base) * two[..., :1]) / area
    table = torch.cat([origin, base, slope_x, slope_y], -1).view(-1, 11)
    picked = table.index_select(0, frame * vertices + triangle)
    x = column.to(torch.float32)[:, None] + 0.5 - picked[:, 0:1]
    y = row.to(torch.float32)[:, None] + 0.5 - picked[:, 1:2]
    lit = (picked[:, 2:5] + x * picked[:, 5:8] + y * picked[:, 8:11]).clamp(0, 1)
    image = background.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    image = image.expand(index.shape[0], -1, -1, -1).contiguous()
    image[frame, row, column] = lit
    image = rearrange(image, "n (h i) (w j) c -> n h w c (i j)", i=factor, j=factor)
    return reduce(image, "n h w c s -> n h w c", "mean")
