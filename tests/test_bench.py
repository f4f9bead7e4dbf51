"""The benchmark: what is timed, what is counted, and what it prints."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from livetalk import config
from livetalk.commands import bench
from livetalk.evaluation.benchmark import Limits, Path, limits_of, table
from livetalk.geometry import Geometry
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, TrueColours
from livetalk.streaming.bench import BenchRun
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer

RUN = BenchRun(device="cpu", blocks=10, warmup=2)
SIZES = Geometry(height=16, width=16, clip_latents=6, window=9, anchors=3)


@pytest.fixture
def performer(tiny_parts) -> Performer:
    own = (tiny_parts[name] for name in ("generator", "vae", "audio", "text"))
    small = SmallDecoder(SmallDecoderConfig(dim=8, mixes=1, widths=(8, 4, 4))).eval()
    return Performer(*own, SIZES, (1000.0, 500.0), config=StreamConfig(backlog_s=3600), decoder=small)


def test_every_block_is_timed_and_counted(performer):
    found = bench.measure("as used", performer, RUN, overlap=True)
    assert len(found.denoise) == len(found.decode) == 10 and found.frames == 120 and found.passes == 3
    assert min(*found.denoise, *found.decode, found.whole, found.first) > 0
    plain = bench.measure(
        "plain", bench.with_engine(performer, EngineConfig(path="plain"), performer.vae), RUN, overlap=False
    )
    assert plain.flops[0] > found.flops[0] > 0 and plain.flops[1] > found.flops[1] > 0


def test_the_arithmetic_of_a_convolution_is_counted():
    """Also of the one that the VAE calls on CPUs, which PyTorch's counter does not know."""
    assert bench.convolution_flops([1, 3, 5, 8, 8], [6, 3, 3, 3, 3], None, out_shape=[1, 6, 3, 8, 8]) == (
        2 * 6 * 3 * 8 * 8 * 3 * 27
    )


def test_the_arithmetic_of_attention_is_counted():
    assert bench.attention_flops([2, 3, 5, 8], [2, 3, 7, 8], [2, 3, 7, 4], out_shape=None) == 2 * 2 * 3 * 5 * 7 * (
        8 + 4
    )
    q, k = (torch.randn(1, 2, length, 16) for length in (8, 12))
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: bench.attention_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert counter.get_total_flops() == 4 * 2 * 8 * 12 * 16


def test_the_limits_are_of_the_machine():
    limits = limits_of(torch.device("cpu"), torch.float32)
    assert 1e9 < limits.flops < 1e14 and 1e8 < limits.bandwidth < 1e13


def test_figures_follow_from_times():
    path = Path("one", [0.1] * 10, [0.05] * 10, whole=2.0, frames=120, first=0.2, flops=(8, 2), passes=5)
    found = path.as_dict(Limits(flops=100.0, bandwidth=1.0))
    assert found["FPS"] == 60 and found["times real time"] == 3.75 and found["first frames, ms"] == 200
    assert found["ms a pass"] == pytest.approx(20) and found["ms a block, decoding, p95"] == pytest.approx(50)
    assert found["share of the card's matrix products"] == pytest.approx(10 * 10 / 2 / 100)
    assert len(table([path, path], Limits(1, 1)).splitlines()) <= 20


def test_the_command_prints_a_table_with_fps_and_leaves_json(performer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "performer_of", lambda *_: performer)
    monkeypatch.setattr(bench, "limits_of", lambda *_: Limits(1e9, 1e9))
    bench.bench(replace(RUN, output=str(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    assert "| FPS |" in lines[6] and "plain | as used" in lines[4]
    stored = json.loads((tmp_path / "nano-16x16.json").read_text())
    assert set(stored["paths"]) == {"plain", "as used", "half"} and stored["about"]["decoder"] == "small"
    assert lines[-1] == str(tmp_path / "nano-16x16.json")


def test_the_engine_is_timed_beside_the_plain_path(performer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "performer_of", lambda *_: performer)
    monkeypatch.setattr(bench, "limits_of", lambda *_: Limits(1e9, 1e9))
    engine = EngineConfig(path="fast")
    bench.bench(replace(RUN, ways=("plain", "exact", "fp8"), engine=engine, output=str(tmp_path)))
    stored = json.loads((tmp_path / "nano-16x16.json").read_text())["paths"]
    assert set(stored) == {"plain", "as used", "fp8"} and min(path["FPS"] for path in stored.values()) > 0
    assert "fp8 linears" in capsys.readouterr().out


def test_the_published_shape_is_built_without_memory(capsys):
    bench.bench(BenchRun(preset="1.3b", device="cpu"), dry_run=True)
    assert float(capsys.readouterr().out.split()[-2]) > 5  # GiB in float32


def test_the_published_shape_may_have_a_small_decoder(tiny_parts, monkeypatch):
    kinds = {"dit": "generator", "vae": "vae", "audio": "audio"}
    parts = {name: tiny_parts[kind] for name, kind in kinds.items()}
    builds = {name: partial(type(part), part.config) for name, part in parts.items()}
    monkeypatch.setattr(bench, "PUBLISHED", builds)
    run = BenchRun(preset="1.3b", resolution="16x16", decoder="small", device="cpu", words=8)
    made = bench.performer_of(run, torch.device("cpu"), torch.float32)
    assert isinstance(made.decoder, TrueColours) and made.decoder.vae is made.vae
    usual = bench.performer_of(replace(run, decoder="auto"), torch.device("cpu"), torch.float32)
    assert usual.decoder is usual.vae


def test_random_weights_keep_signals_finite():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(30)))
    assert bench.randomise(layers)(torch.randn(2, 64)).isfinite().all()


def test_where_nothing_can_be_written_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "performer_of", lambda *arguments: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match="output=/proc/x cannot be made"):
        bench.bench(replace(RUN, output="/proc/x"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["preset=14b"], "use nano or 1.3b"),
        (["resolution=big"], "for example 512x512"),
        (["resolution=100x100"], "multiple of 16"),
        (["blocks=3"], "at least 10"),
    ],
)
def test_mistakes(settings, reason):
    with pytest.raises(ValueError, match=reason):
        run = config.load(None, ["device=cpu", *settings], run="bench")
        bench.performer_of(run, torch.device("cpu"), torch.float32)
