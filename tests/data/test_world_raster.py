import pytest
import torch

from livetalk.data.world.raster import shade, snap, visible, visible_keys

SAMPLES = 32


def one_sided(triangles):
    return torch.zeros(len(triangles), dtype=torch.bool)


def sheet(cells: int, seed: int = 0):
    """A jittered grid of triangles that covers the whole screen, and its triangles (screen y points down)."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(-4, SAMPLES + 4, cells + 1)
    y, x = torch.meshgrid(line, line, indexing="ij")
    jitter = (torch.rand(2, cells + 1, cells + 1, generator=generator) - 0.5) * 0.8 * (SAMPLES + 8) / cells
    points = torch.stack([x + jitter[0], y + jitter[1], torch.full_like(x, 0.5)], -1).reshape(-1, 3)
    points[:, :2] = snap(points[:, :2])
    row, column = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    here = (row * (cells + 1) + column).flatten()
    below, corner = here + cells + 1, here + cells + 2
    triangles = torch.cat([torch.stack([here, below, corner], 1), torch.stack([here, corner, here + 1], 1)])
    return points[None], triangles


@pytest.mark.parametrize("cells", [2, 7, 40, 90])
def test_a_closed_surface_has_no_holes(cells):
    points, triangles = sheet(cells)
    assert (visible(points, triangles, one_sided(triangles), SAMPLES) >= 0).all()


def test_coverage_equals_the_half_plane_definition():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(1, 3, 3, generator=generator) * SAMPLES
    points[..., :2], points[..., 2] = snap(points[..., :2]), 0.5
    triangles = torch.tensor([[0, 1, 2]])
    index = visible(points, triangles, torch.ones(1, dtype=torch.bool), SAMPLES)[0]
    centre = torch.arange(SAMPLES, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    corner = points[0, :, :2].double()
    signs = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        edge = corner[b] - corner[a]
        signs.append(edge[0] * (y - corner[a, 1]) - edge[1] * (x - corner[a, 0]))
    inside = (torch.stack(signs) >= 0).all(0) | (torch.stack(signs) <= 0).all(0)
    assert inside.any()
    assert torch.equal(index >= 0, inside)


def test_the_nearest_triangle_wins_in_any_order():
    far = torch.tensor([[0.0, 0, 0.2], [0, SAMPLES, 0.2], [SAMPLES, SAMPLES, 0.2]])
    near = torch.cat([far[:, :2], torch.full((3, 1), 0.6)], 1)
    points = torch.cat([far, near])[None]
    for triangles, nearest in (([[0, 1, 2], [3, 4, 5]], 1), ([[3, 4, 5], [0, 1, 2]], 0)):
        triangles = torch.tensor(triangles)
        index = visible(points, triangles, one_sided(triangles), SAMPLES)
        assert set(index.unique().tolist()) == {-1, nearest}


def test_back_faces_show_only_when_two_sided():
    points, triangles = sheet(3)
    flipped = triangles[:, [0, 2, 1]]
    assert (visible(points, flipped, one_sided(flipped), SAMPLES) == -1).all()
    assert (visible(points, flipped, ~one_sided(flipped), SAMPLES) >= 0).all()


def test_shading_interpolates_colours_and_averages_samples():
    points, triangles = sheet(9)
    # Colours that are a linear function of place come out as that function at the pixel's centre.
    colours = torch.cat([points[..., :2] / 100 + 0.3, torch.full_like(points[..., :1], 0.25)], -1)
    index = visible(points, triangles, one_sided(triangles), SAMPLES)
    image = shade(index, points, colours, triangles, torch.zeros(SAMPLES // 2, SAMPLES // 2, 3))
    centre = (torch.arange(SAMPLES // 2) * 2 + 1) / 100 + 0.3
    torch.testing.assert_close(image[0, :, :, 0], centre.expand(SAMPLES // 2, -1))
    torch.testing.assert_close(image[0, :, :, 1], centre[:, None].expand(-1, SAMPLES // 2))


def test_background_shows_where_nothing_is_drawn():
    points, triangles = sheet(3)
    background = torch.rand(SAMPLES // 2, SAMPLES // 2, 3)
    index = torch.full((1, SAMPLES, SAMPLES), -1)
    torch.testing.assert_close(shade(index, points, points, triangles, background)[0], background)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_triton_kernel_equals_the_plain_search():
    pytest.importorskip("triton")
    points = torch.cat([sheet(40, seed)[0] for seed in range(5)])
    points[..., 2] = torch.rand(points.shape[:2], generator=torch.Generator().manual_seed(2)) * 0.9 + 0.05
    triangles = torch.cat([sheet(40)[1], torch.randint(0, points.shape[1], (60, 3))])
    two_sided = torch.rand(len(triangles)) < 0.5
    expected = visible_keys(points, triangles, two_sided, SAMPLES) & 0xFFFFFFFF
    found = visible(*(t.cuda() for t in (points, triangles, two_sided)), SAMPLES).cpu()
    expected = torch.where(expected == 0xFFFFFFFF, -1, expected)
    # Coverage is exact; nearness may round differently where two triangles are equally near.
    assert torch.equal(found >= 0, expected >= 0)
    assert (found == expected).float().mean() > 0.999
