"""The ring against brute force: a list of all keys ever made, from which the visible ones are picked by definition."""

import pytest
import torch

from livetalk.models.attention import BlockCausal, Grid, attention
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.models.rope import rope_table, rotate

HEADS, WIDTH, ROWS, COLUMNS = 2, 12, 1, 2
TOKENS = ROWS * COLUMNS
SIZES = [
    (5, 2, 1),
    (15, 9, 3),
    (9, 3, 3),
    (9, 0, 3),
    (7, 3, 2),
    (8, 1, 3),
    (6, 3, 3),
    (12, 4, 5),
    (3, 0, 3),
    (11, 2, 4),
]


def make_cache(window, anchors, block, positions="absolute", journal=0, layers=1):
    """positions: "turned" are relative ones whose rotated keys are kept."""
    turned = positions == "turned"
    return KVCache(
        CacheConfig(window, anchors, block, "relative" if turned else positions, journal),
        turned=turned,
        layers=layers,
        heads=HEADS,
        head_dim=WIDTH,
        rows=ROWS,
        columns=COLUMNS,
        dtype=torch.float64,
    )


def random_qkv(generator, frames):
    return torch.randn(3, 1, frames * TOKENS, HEADS, WIDTH, generator=generator, dtype=torch.float64)


def brute_force(history, q, window, anchors, positions):
    """Attention of the latest block over the frames its window holds; history: (k, v) a block, un-rotated."""
    keys, values = (torch.cat(parts, 1).unflatten(1, (-1, TOKENS)) for parts in zip(*history, strict=True))
    count = keys.shape[1]
    visible = [f for f in range(count) if f < anchors or f >= count - (window - anchors)]
    place = torch.tensor(visible if positions == "absolute" else range(len(visible)))
    own = place[-(q.shape[1] // TOKENS) :]
    table = rope_table(place, ROWS, COLUMNS, WIDTH)
    return attention(
        rotate(q, rope_table(own, ROWS, COLUMNS, WIDTH)),
        rotate(keys[:, visible].flatten(1, 2), table),
        values[:, visible].flatten(1, 2),
    )


@pytest.mark.parametrize("positions", ["absolute", "relative", "turned"])
@pytest.mark.parametrize("window, anchors, block", SIZES)
def test_ring_equals_brute_force_over_200_blocks(window, anchors, block, positions):
    cache, history = make_cache(window, anchors, block, positions), []
    generator = torch.Generator().manual_seed(0)
    for index in range(200):
        cache.advance()
        view = cache.open(Grid(index * block, block, ROWS, COLUMNS), WIDTH, cache.device)
        view(0, *random_qkv(generator, block))  # a first pass, overwritten by the second
        q, k, v = random_qkv(generator, block)
        history.append((k, v))
        want = brute_force(history, q, window, anchors, positions)
        assert torch.allclose(view(0, q, k, v), want, atol=1e-6)


def test_relative_positions_never_leave_the_window_past_frame_1024():
    cache = make_cache(5, 2, 1, "relative")
    generator = torch.Generator().manual_seed(0)
    history = []
    for index in range(1100):
        cache.advance()
        q, k, v = random_qkv(generator, 1)
        history.append((k, v))
        out = cache.open(Grid(index, 1, ROWS, COLUMNS), WIDTH, cache.device)(0, q, k, v)
    assert torch.allclose(out, brute_force(history, q, 5, 2, "relative"), atol=1e-6)
    assert cache.keys.shape[2] == 5 * TOKENS


def test_absolute_positions_pass_frame_1024():
    table = rope_table(torch.tensor([1023, 1024, 100_000]), 2, 2, 24)
    norm = table.double().square().sum(-1)
    assert torch.allclose(norm, torch.ones_like(norm), atol=1e-6)
    assert not torch.allclose(table[4:8], table[:4])


@pytest.mark.parametrize("window, anchors", [(9, 3), (None, 0)])
def test_cached_blocks_equal_the_mask(window, anchors):
    blocks, block = 5, 3
    cache = make_cache(window or blocks * block, anchors, block)
    q, k, v = random_qkv(torch.Generator().manual_seed(1), blocks * block)
    view = BlockCausal(block, window, anchors, masked=True).open(
        Grid(0, blocks * block, ROWS, COLUMNS), WIDTH, q.device
    )
    want = view(0, q, k, v)
    for index in range(blocks):
        cache.advance()
        part = slice(index * block * TOKENS, (index + 1) * block * TOKENS)
        own = cache.open(Grid(index * block, block, ROWS, COLUMNS), WIDTH, q.device)
        assert torch.allclose(own(0, q[:, part], k[:, part], v[:, part]), want[:, part], atol=1e-7)


def test_blockwise_attention_equals_its_mask():
    q, k, v = random_qkv(torch.Generator().manual_seed(2), 8)
    grid = Grid(0, 8, ROWS, COLUMNS)
    views = [BlockCausal(3, masked=masked).open(grid, WIDTH, q.device) for masked in (True, False)]
    assert torch.allclose(views[0](0, q, k, v), views[1](0, q, k, v))


@pytest.mark.parametrize("positions", ["absolute", "relative", "turned"])
@pytest.mark.parametrize("window, anchors, block", SIZES)
def test_rewinding_equals_never_having_run(window, anchors, block, positions):
    generator = torch.Generator().manual_seed(3)
    blocks = [random_qkv(generator, block) for _ in range(14)]

    def run(cache, indices):
        for index in indices:
            cache.advance()
            out = cache.open(Grid(cache.seen - block, block, ROWS, COLUMNS), WIDTH, cache.device)(0, *blocks[index])
        return out

    for depth in (1, 2, 3):
        plain, rewound = make_cache(window, anchors, block, positions), make_cache(window, anchors, block, positions, 3)
        want = run(plain, [0, 1, 2, 3, 4, 5, 6, 13])
        run(rewound, [*range(7), *range(7, 7 + depth)])
        rewound.rewind(depth)
        assert rewound.seen == 7 * block and rewound.blocks == 7
        assert torch.equal(run(rewound, [13]), want)


def test_rewinding_beyond_the_journal_is_refused():
    cache = make_cache(6, 3, 3, journal=2)
    cache.advance()
    with pytest.raises(ValueError, match="journal holds 1"):
        cache.rewind(2)
    cache.rewind(1)
    assert cache.seen == 0
    for _ in range(5):
        cache.advance()
    cache.rewind(2)
    with pytest.raises(ValueError, match="journal holds 0"):
        cache.rewind(1)
    assert cache.blocks == 3


def test_reset_forgets_everything():
    cache = make_cache(6, 3, 3)
    q, k, v = random_qkv(torch.Generator().manual_seed(4), 3)
    outs = []
    for _ in range(2):
        cache.reset()
        cache.advance()
        outs.append(cache.open(Grid(0, 3, ROWS, COLUMNS), WIDTH, q.device)(0, q, k, v))
    assert torch.equal(*outs)


def test_the_graded_pass_reads_nothing_that_is_overwritten_later():
    for positions in ("absolute", "relative", "turned"):
        cache = make_cache(6, 3, 3, positions)
        generator = torch.Generator().manual_seed(5)
        for index in range(3):
            cache.advance()
            q, k, v = random_qkv(generator, 3)
            grid = Grid(3 * index, 3, ROWS, COLUMNS)
            plain = cache.open(grid, WIDTH, q.device)(0, q, k, v)
        k = k.requires_grad_()
        graded = cache.open(grid, WIDTH, q.device)(0, q, k, v)
        assert torch.allclose(graded, plain)
        cache.keys.normal_()
        cache.values.normal_()
        graded.sum().backward()
        assert k.grad.isfinite().all() and k.grad.abs().sum() > 0


@pytest.mark.parametrize("sizes", [(5, 3, 3), (0, 0, 1), (9, -1, 3)])
def test_impossible_windows_are_refused(sizes):
    with pytest.raises(ValueError):
        CacheConfig(*sizes)
    with pytest.raises(ValueError, match="absolute, relative"):
        CacheConfig(positions="rotated")
