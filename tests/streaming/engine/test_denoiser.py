"""The engine's blocks beside the plain ones: exact savings in float64, half precision and fp8 within their budgets."""

from dataclasses import replace

import pytest
import torch

from livetalk.conditions import Conditions
from livetalk.models.dit import DiTConfig, WanDiT, initialise
from livetalk.models.kv_cache import CacheConfig
from livetalk.models.rope import rope_table, rotate
from livetalk.rollout import denoise_block, new_cache
from livetalk.streaming.engine import denoiser
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.denoiser import DenoisedStream, Denoiser
from livetalk.streaming.engine.window import turn, turn_by_layer

TINY = DiTConfig(
    dim=24, ffn_dim=32, heads=2, layers=4, text_dim=8, text_len=16, freq_dim=16, audio_dim=5, audio_hidden=8
)
ROWS, COLUMNS, LEVELS = 2, 3, (1000.0, 625.0)
PLAIN = EngineConfig(path="fast", graphs="off", compile="off")


def network(config=TINY, dtype=torch.float64, device="cpu") -> WanDiT:
    generator = torch.Generator().manual_seed(0)
    dit = WanDiT(config)
    initialise(dit, generator)
    for value in dit.parameters():
        value.data.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return dit.to(device, dtype).eval().requires_grad_(False)


def inputs(dit, cache, blocks: int, words: int = 5, rows=ROWS, columns=COLUMNS, levels=LEVELS):
    """Conditions of `blocks` blocks, with a text of `words` words, and their noise."""
    generator, config = torch.Generator().manual_seed(1), dit.config
    like = dit.patch_embedding.weight

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(like)

    text = draw(1, config.text_len, config.text_dim)
    text[:, words:] = 0
    whole = Conditions(text, draw(1, 16, 1, 2 * rows, 2 * columns), draw(1, blocks * cache.block, 4 * config.audio_dim))
    shape = (len(levels), 1, 16, cache.block, 2 * rows, 2 * columns)
    noise = [draw(*shape) for _ in range(blocks)]
    return [whole.block(index * cache.block, cache.block) for index in range(blocks)], noise


def plain_blocks(dit, cache, conditions, noise, rows=ROWS, columns=COLUMNS, levels=LEVELS):
    like = dit.patch_embedding.weight
    held = new_cache(dit, cache, rows=rows, columns=columns, dtype=like.dtype, device=like.device)
    out = []
    for part, draws in zip(conditions, noise, strict=True):
        waiting = iter(draws)
        out.append(denoise_block(dit, part, cache.block, levels, held, lambda shape: next(waiting)))  # noqa: B023
    return out


def fast_blocks(stream, conditions, noise):
    out = []
    for part, draws in zip(conditions, noise, strict=True):
        out.append(stream.denoise(part, draws))
        stream.keep(out[-1])
    return out


def worst(given, wanted) -> float:
    """Relative error of the worst block."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(given, wanted, strict=True))


def fast(dit, cache, config=PLAIN, rows=ROWS, columns=COLUMNS, levels=LEVELS) -> DenoisedStream:
    return DenoisedStream(Denoiser(dit, cache, rows, columns, levels, config))


@torch.inference_mode()
@pytest.mark.parametrize(
    "cache", [CacheConfig(), CacheConfig(9, 3, 3), CacheConfig(10, 4, 3), CacheConfig(6, 0, 2), CacheConfig(2, 0, 2)]
)
@pytest.mark.parametrize("words", [5, 16, 0])
def test_every_saving_is_exact(cache, words):
    dit = network()
    conditions, noise = inputs(dit, cache, 8, words)
    wanted = plain_blocks(dit, cache, conditions, noise)
    assert worst(fast_blocks(fast(dit, cache), conditions, noise), wanted) < 1e-12
    # Joining the weights has not changed the network.
    assert worst(plain_blocks(dit, cache, conditions, noise), wanted) < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize("cache", [CacheConfig(9, 3, 3, journal=3), CacheConfig(10, 4, 3, journal=2)])
@pytest.mark.parametrize("made", [2, 3, 4, 7])
@pytest.mark.parametrize("undo", ["device", "host"])
def test_going_back_is_never_having_been(cache, made, undo):
    dit, config = network(), replace(PLAIN, undo=undo)
    conditions, noise = inputs(dit, cache, 10)
    wanted = fast_blocks(fast(dit, cache), conditions, noise)
    stream, back = fast(dit, cache, config), min(cache.journal, made)
    fast_blocks(stream, conditions[:made], [draws + 1 for draws in noise[:made]][: made - back] + noise[:back])
    stream.reset()
    fast_blocks(stream, conditions[:made], noise[:made])
    stream.rewind(back)
    fast_blocks(stream, conditions[made - back : made], [draws + 1 for draws in noise[made - back : made]])
    stream.rewind(back)
    given = fast_blocks(stream, conditions[made - back :], noise[made - back :])
    assert worst(given, wanted[made - back :]) < 1e-12
    with pytest.raises(ValueError, match="journal holds"):
        stream.rewind(cache.journal + 1)


@torch.inference_mode()
def test_a_new_prompt_counts_from_the_next_block():
    dit, cache = network(), CacheConfig(9, 3, 3)
    conditions, noise = inputs(dit, cache, 3)
    other = inputs(dit, cache, 1, words=9)[0][0].text
    conditions[1:] = [replace(part, text=other) for part in conditions[1:]]
    wanted = plain_blocks(dit, cache, conditions, noise)
    assert worst(fast_blocks(fast(dit, cache), conditions, noise), wanted) < 1e-12


@torch.inference_mode()
def test_fp8_linears_stay_within_their_budget():
    config = replace(TINY, dim=64, ffn_dim=128)
    dit, cache = network(config, torch.float32), CacheConfig(9, 3, 3)
    conditions, noise = inputs(dit, cache, 4)
    wanted = plain_blocks(dit, cache, conditions, noise)
    given = fast_blocks(fast(dit, cache, replace(PLAIN, linears="fp8")), conditions, noise)
    assert 1e-4 < worst(given, wanted) < 3e-2


@torch.inference_mode()
def test_the_error_of_fp8_by_what_is_in_it():
    """Of the flow of one pass of a deeper network: the budget of 3e-2 holds for the products of attention."""
    sizes = replace(TINY, dim=256, ffn_dim=512, layers=6, text_dim=32, text_len=64, freq_dim=64, audio_dim=16)
    dit, cache, one = (
        network(sizes, torch.float32),
        CacheConfig(9, 3, 3),
        {"levels": (1000.0,), "rows": 4, "columns": 4},
    )
    conditions, noise = inputs(dit, cache, 1, 20, **one)

    def flow(blocks):
        return [(noise[0][0] - blocks[0])[:, :, 1:]]

    wanted = flow(plain_blocks(dit, cache, conditions, noise, **one))
    error = {}
    for linears in ("fp8", "fp8-qkv"):
        stream = fast(dit, cache, replace(PLAIN, linears=linears), **one)
        error[linears] = worst(flow(fast_blocks(stream, conditions, noise)), wanted)
    assert 1e-2 < error["fp8-qkv"] < 3e-2 < error["fp8"] < 7e-2


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "half"])
def test_products_in_bfloat16_stay_within_their_budget(attention):
    """Of the flow of one pass; the cache is filled by the passes before."""
    dit, cache = network(replace(TINY, dim=64, ffn_dim=128), torch.float32), CacheConfig(9, 3, 3)
    conditions, noise = inputs(dit, cache, 4, levels=(1000.0,))
    wanted = plain_blocks(dit, cache, conditions, noise, levels=(1000.0,))
    config = replace(PLAIN, linears="bfloat16", attention=attention)
    given = fast_blocks(fast(dit, cache, config, levels=(1000.0,)), conditions, noise)
    assert 1e-4 < worst(given[:1], wanted[:1]) < 1e-2


def test_bfloat16_is_taken_by_measurement(monkeypatch):
    for pays in (True, False):
        monkeypatch.setattr(denoiser, "halves_pay", lambda *_, pays=pays: pays)
        made = Denoiser(network(dtype=torch.float32), CacheConfig(), 2, 2, LEVELS, replace(PLAIN, linears="auto"))
        assert made.linears == ("bfloat16" if pays else "exact")
    made = Denoiser(network(), CacheConfig(), 2, 2, LEVELS, replace(PLAIN, linears="auto"))
    assert made.linears == "exact"


def test_positions_that_are_not_kept_are_refused():
    with pytest.raises(ValueError, match="engine.path=plain"):
        fast(network(), CacheConfig(positions="absolute"))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_keys_turn_by_layer_as_they_turn_at_once(kind):
    raw = torch.randn(3, 8, 2, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = rope_table(torch.arange(2), 2, 2, 6)
    keys = [torch.zeros(3, 10, 2, 6, dtype=kind) for _ in range(2)]
    for act, into in zip((turn, turn_by_layer), keys, strict=True):
        act(into[:, 1:9], raw, table)
    wanted = torch.zeros(3, 10, 2, 6)
    wanted[:, 1:9] = rotate(raw, table).to(kind).float()
    assert all(torch.equal(one.float(), wanted) for one in keys) and wanted[:, 1:9].any()
