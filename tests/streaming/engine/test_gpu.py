"""The engine on a GPU: its kernels, graphs against eager, budgets of precision, no waiting, no growth."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from livetalk.geometry import Geometry
from livetalk.media import pixels_of
from livetalk.models.audio import AudioEncoder
from livetalk.models.dit import DiTConfig
from livetalk.models.kv_cache import CacheConfig
from livetalk.models.vae import VAEConfig
from livetalk.pipeline import EXAMPLE_IMAGE
from livetalk.streaming.engine.attention import has_fa3
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.decoder import DecodedStream, FusedDecoder, plain_norm_silu
from livetalk.streaming.engine.undo import places_of
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from tests.streaming.engine.test_decoder import after, pieces, vae
from tests.streaming.engine.test_denoiser import fast, fast_blocks, inputs, network, plain_blocks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SIZES = DiTConfig(
    dim=256, ffn_dim=512, heads=2, layers=6, text_dim=32, text_len=64, freq_dim=64, audio_dim=16, audio_hidden=16
)
CACHE = CacheConfig(9, 3, 3)
GRID = {"rows": 8, "columns": 8}
FAST = EngineConfig(path="fast")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return 10 * float(torch.log10(255**2 / (a.double() - b.double()).square().mean()))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 30, 64, 101])
def test_the_text_kernel_is_attention_with_a_bias(count):
    from livetalk.streaming.engine.text_triton import attend

    q, k, v = (torch.randn(n, 3, 128, device="cuda", dtype=torch.bfloat16) for n in (300, 128, 128))
    bias = torch.randn(128, device="cuda")
    total = torch.tensor([count], dtype=torch.int32, device="cuda")
    score = torch.einsum("qhd,khd->hqk", q.double(), k[:count].double()) * 128**-0.5 + bias[:count].double()
    wanted = torch.einsum("hqk,khd->qhd", score.softmax(-1), v[:count].double())
    assert relative(attend(q, k, v, bias * 1.4426950408889634, total), wanted) < 5e-3


@torch.inference_mode()
@pytest.mark.parametrize("channels", [16, 96, 384])
@pytest.mark.parametrize("parts", ["x", "bias", "all"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_norm_kernel_is_the_plain_one(channels, parts, frames):
    from livetalk.streaming.engine.norm_triton import norm_silu

    x, other = (torch.randn(frames, 35, 27, channels, device="cuda") for _ in range(2))
    before = torch.randn(2, 35, 27, channels, device="cuda")
    bias, gamma = (torch.randn(channels, device="cuda") for _ in range(2))
    given = (x, None if parts == "x" else bias, other if parts == "all" else None, gamma)
    outs = []
    for act in (norm_silu, plain_norm_silu):
        total, kept = torch.full_like(x, torch.nan), before.clone()
        out = torch.full((2 + frames, *x.shape[1:]), torch.nan, device="cuda")
        act(*given, total, out, kept)
        assert torch.equal(out[:2], before) and torch.equal(out[-2:], kept)
        outs.append((total, out))
    for found, wanted in zip(*outs, strict=True):
        torch.testing.assert_close(found, wanted)


@torch.inference_mode()
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_replay_equals_the_same_kernels_run_eagerly(compiled):
    dit = network(SIZES, torch.bfloat16, "cuda")
    conditions, noise = inputs(dit, CACHE, 5, 20, **GRID)
    found = []
    for graphs in ("on", "off"):
        config = replace(FAST, graphs=graphs, compile=compiled, attention="cudnn")
        found.append(fast_blocks(fast(dit, CACHE, config, **GRID), conditions, noise))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


ONE = {"levels": (1000.0,), **GRID}


def flow_of(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a network said at level 1 of a block that it made in one step, without the frame that is given."""
    return (noise[0] - latents)[:, :, 1:].double()


@pytest.fixture(scope="module")
@torch.inference_mode()
def flows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the fast path and of the plain one in bfloat16, and of the plain one in float32."""
    exact = network(SIZES, torch.float32, "cuda")
    conditions, noise = inputs(exact, CACHE, 1, 20, **ONE)
    wanted = flow_of(plain_blocks(exact, CACHE, conditions, noise, **ONE)[0], noise[0])
    half = network(SIZES, torch.bfloat16, "cuda")
    given = [part.map(lambda value: value.bfloat16()) for part in conditions], [draws.bfloat16() for draws in noise]
    plain = flow_of(plain_blocks(half, CACHE, *given, **ONE)[0], given[1][0])
    found = flow_of(fast_blocks(fast(half, CACHE, FAST, **ONE), *given)[0], given[1][0])
    return found, plain, wanted


@pytest.mark.xfail(has_fa3(), reason="1.03e-2 with FlashAttention 3", raises=AssertionError, strict=True)
def test_half_precision_stays_within_its_budget(flows):
    found, plain, _ = flows
    assert relative(found, plain) < 1e-2


def test_the_fast_path_is_as_near_to_float32_as_the_plain_one(flows):
    found, plain, wanted = flows
    assert relative(found, wanted) < 1.2 * relative(plain, wanted)


FP8 = [
    pytest.param(
        "fp8",
        marks=pytest.mark.xfail(reason="5.4e-2: a product in e4m3 errs by 3.7 %", raises=AssertionError, strict=True),
    ),
    "fp8-qkv",
]


@torch.inference_mode()
@pytest.mark.parametrize("linears", FP8)
@pytest.mark.parametrize("attention", ["auto", *(["fa3-fp8"] if has_fa3() else [])])
def test_fp8_stays_within_its_budget(attention, linears):
    dit = network(SIZES, torch.bfloat16, "cuda")
    conditions, noise = inputs(dit, CACHE, 1, 20, **ONE)
    plain = flow_of(plain_blocks(dit, CACHE, conditions, noise, **ONE)[0], noise[0])
    config = replace(FAST, linears=linears, attention=attention)
    found = flow_of(fast_blocks(fast(dit, CACHE, config, **ONE), conditions, noise)[0], noise[0])
    assert relative(found, plain) < 3e-2


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_decoder_stays_within_its_budget(dtype):
    config = VAEConfig(base_dim=32)
    exact, half = vae(torch.float32, config).cuda(), vae(torch.float32, config).to("cuda", torch.bfloat16)
    given = pieces(3, 3, exact.conv2.weight, (8, 8))
    state, plain_state = exact.decoder_state(), half.decoder_state()
    stream = DecodedStream(FusedDecoder(half, dtype, compiled=True), 3, 8, 8, graphs=True)
    for piece in given:
        wanted = pixels_of(exact.decode_step(piece, state))[0]
        plain = pixels_of(half.decode_step(piece.bfloat16(), plain_state))[0]
        found = after(stream, piece.bfloat16())
        assert psnr(found, plain) > 45 and psnr(found, wanted) > psnr(plain, wanted) - 1


def performer(engine: EngineConfig) -> Performer:
    from livetalk.models.audio import AudioConfig

    small = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16, "conv_dim": (16,) * 7}
    audio = replace(AudioConfig.nano(), **small)
    dit = network(replace(SIZES, audio_dim=audio.channels), torch.bfloat16, "cuda")
    parts = (vae(torch.bfloat16).cuda(), AudioEncoder(audio).to("cuda", torch.bfloat16).eval().requires_grad_(False))
    geometry = Geometry(height=128, width=128, window=9, anchors=3, clip_latents=9)
    return Performer(dit, *parts, Words(), geometry, (1000.0, 625.0), config=StreamConfig(backlog_s=600, engine=engine))


class Words(torch.nn.Module):
    def encode(self, prompts):
        text = torch.randn(1, 64, 32)
        text[:, 20:] = 0
        return text


def session(made: Performer, blocks: int):
    out = made.session(EXAMPLE_IMAGE, "nods")
    out.push_audio(np.random.default_rng(0).normal(0, 0.1, blocks * 12_000 + 16_000).astype(np.float32))
    out.flush()
    return out


def interrupted(undo: str, overlap: str) -> tuple[list[np.ndarray], int, int]:
    """Frames of a stream that is taken back by a block or two again and again, the peak of memory, and what was planned
    of it."""
    gc.collect()
    torch.cuda.synchronize()
    # Those of earlier streams stay, and each new one takes its own.
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = performer(replace(FAST, undo=undo, overlap=overlap, attention="cudnn", compile="off"))
    stream, frames = session(made, 40), []
    for index in range(24):
        block = stream.next_block(fill=True)
        frames.append(block.frames.copy())
        if index % 3 == 2:
            stream.interrupt(block.stop / 16 - 0.5 - 0.75 * (index % 2))
    planned = sum(size for name, size in made.engine.plan().items() if "host" not in name)
    return frames, torch.cuda.max_memory_allocated() - before, planned


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_the_host_remembers_what_the_device_does(overlap):
    (wanted, most, more), (found, least, less) = (interrupted(undo, overlap) for undo in ("device", "host"))
    assert all(map(np.array_equal, found, wanted)) and np.std(wanted[-1]) > 1
    assert more > less and most - least > 0.8 * (more - less)


@torch.inference_mode()
def test_what_is_on_its_way_to_the_host_is_what_was_there():
    """Overwritten right after, as soon as the card may; large enough for a race to show."""
    values = [torch.zeros(1 << 24, device="cuda"), torch.zeros(1 << 22, device="cuda", dtype=torch.bfloat16)]
    for staged in (False, True):
        places = places_of(True, values, 3, "cuda", staged)
        for step in range(12):
            places.settle()
            for value in values:
                value.fill_(step)
            places.save(step % 3, values)
            if staged:
                for value in values:
                    value.fill_(-1)
        for step in (11, 9, 10, 9):
            places.load(step % 3, values)
            places.settle()
            assert all((value == step).all() for value in values)


@pytest.mark.parametrize("undo", ["device", "host"])
def test_steady_state_never_waits_for_the_card_and_does_not_grow(undo):
    stream = session(performer(replace(FAST, undo=undo)), 60)
    renderings, held, seconds = [], [], []
    for index in range(60):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.set_sync_debug_mode("error" if index >= 5 else "default")
        try:
            start.record()
            renderings.append(stream.denoise_next())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream.decode_all(renderings.pop())
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end))
        held.append(torch.cuda.memory_allocated())
    assert held[20] == held[-1]
    assert np.median(seconds[40:]) < 1.3 * np.median(seconds[10:30])
