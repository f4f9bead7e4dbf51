"""The configs of the published sizes, planned on the meta device: shapes fit, memory is said, no weights are needed."""

import importlib.util
import re
from pathlib import Path

import pytest

from livetalk import config
from livetalk.geometry import bucket
from livetalk.models.dit import SIZES, DiTConfig
from livetalk.parts import sized

ROOT = Path(__file__).resolve().parents[1]
# config -> command, GiB of one process that has the card alone (least, most)
PLANS = {
    "ode_pairs": ("generate_ode_pairs", 5, 20),
    "ode": ("train_ode", 28, 76),
    "dmd": ("train_dmd", 85, 130),
    "dmd_80gb": ("train_dmd", 50, 76),
    "teacher_lora": ("train_teacher", 8, 40),
}
SHAPES = ((512, 512), bucket(9, 16, 512 * 512), bucket(16, 9, 832 * 480))


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def plan(name: str, *words: str) -> tuple[float, list[str]]:
        command = PLANS[name][0]
        spec = importlib.util.spec_from_file_location(command, ROOT / "scripts" / f"{command}.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        path = ROOT / "configs" / f"{name}.yaml"
        monkeypatch.setattr("sys.argv", [command, "--config", str(path), "--dry-run", *words])
        assert script.main() == 0
        lines = capsys.readouterr().out.splitlines()
        assert not list(tmp_path.iterdir())
        return float(re.fullmatch(r"total memory: (\d+\.\d\d) GiB", lines[-1])[1]), lines

    return plan


@pytest.mark.parametrize("name", PLANS)
def test_every_run_is_planned_without_weights(plan, name):
    total, _ = plan(name)
    _, least, most = PLANS[name]
    assert least < total < most


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_other_shapes_are_planned_too(plan, shape):
    told = (f"geometry.height={shape[0]}", f"geometry.width={shape[1]}")
    square, _ = plan("dmd")
    other, _ = plan("dmd", *told)
    assert (other - square) * (shape[0] * shape[1] - 512 * 512) > 0 or abs(other - square) < 2
    assert other < 141 * 1e9 / 2**30


def held_by(lines: list[str]) -> dict[int, float]:
    """GiB of one of so many processes, as a plan says."""
    return {int(re.search(r"one of (\d)", line)[1]): float(line.split()[-2]) for line in lines if "one of" in line}


def test_several_processes_share_what_learns(plan):
    total, lines = plan("dmd")
    held = held_by(lines)
    assert held[8] < held[2] < total and held[2] < 76  # two cards of 80 GB hold it
    assert sum(float(line.split()[-2]) for line in lines if re.match("(student|critic|teacher): ", line)) > 70


@pytest.mark.parametrize("word, bytes_each", [("train.regather=false", 2), ("train.no_sync=true", 6)])
def test_what_every_process_keeps_whole_is_planned(word, bytes_each, plan):
    for name, networks in (("ode", 1), ("dmd", 2)):
        before, after = (held_by(plan(name, *words)[1]) for words in ((), ("train.shard=true", word)))
        more = networks * bytes_each * 1.421e9 / 2**30
        assert {count: after[count] - before[count] for count in (2, 8)} == pytest.approx({2: more, 8: more}, rel=0.01)


def test_a_misfit_is_found_without_weights(tmp_path):
    assert (
        sized(tmp_path, "teacher", "14b") == DiTConfig.wan_14b() and sized(tmp_path, "teacher", "") == SIZES["nano"]()
    )
    with pytest.raises(ValueError, match="size '2b' is not known: use nano, 1.3b, 14b"):
        sized(tmp_path, "teacher", "2b")
    with pytest.raises(ValueError, match="width 192 and 8 layers, not the size 1.3b"):
        sized(ROOT / "livetalk/assets/nano", "teacher", "1.3b")


def test_the_recipes_are_the_papers():
    """LiveTalk's and Self Forcing's settings, as far as they are published."""
    ode, dmd, small = (config.load(ROOT / f"configs/{name}.yaml") for name in ("ode", "dmd", "dmd_80gb"))
    assert (ode.train.steps, ode.train.lr, ode.train.batch, ode.train.betas) == (20000, 4e-5, 64, (0.9, 0.999))
    for run in (dmd, small):
        assert (run.train.lr, run.critic.lr, run.train.batch) == (4e-6, 8e-7, 64)
        assert (run.dmd.text_scale, run.dmd.audio_scale, run.dmd.every) == (6.0, 6.0, 5)
        assert run.train.betas == run.critic.betas == (0.0, 0.999) and run.train.weight_decay == 0.01
        assert run.causal.timesteps == pytest.approx((1000, 937.5, 2500 / 3, 625)) and run.train.ema == 0.99
    assert (dmd.score, dmd.score_size, small.score) == ("score", "14b", "teacher")
