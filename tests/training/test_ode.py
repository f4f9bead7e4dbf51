import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from livetalk import config
from livetalk.cli import run_command
from livetalk.commands.inference import infer
from livetalk.commands.train_ode import train_ode
from livetalk.data.pairs import OdePairs
from livetalk.models.attention import BlockCausal
from livetalk.models.dit import WanDiT
from livetalk.training.ode import (
    DEV_ERROR,
    OdeConfig,
    OdeObjective,
    draw_levels,
    frame_errors,
    mean_over,
    seam_ratio,
    verdict,
)
from livetalk.training.trainer import TrainConfig, Trainer
from tests.models.test_dit import TINY

LEVELS = (1000.0, 937.5, 2500 / 3, 625.0)
DEBUG = Path(__file__).parents[2] / "configs" / "train_ode_debug.yaml"


def some_pairs(count=4, frames=6):
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(count, 1, frames, 16, 4, 4, generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    sigma = torch.tensor([*LEVELS, 0.0]).div(1000)[None, :, None, None, None, None]
    states = (1 - sigma) * x0 + sigma * noise
    states[:, :, :1] = x0[:, :, :1]
    audio = torch.randn(count, 4 * frames - 3, TINY.audio_dim, generator=generator)
    return OdePairs(states.bfloat16(), audio.bfloat16(), ["a"] * count, LEVELS)


def objective(student, count=4, frames=6, **settings):
    return OdeObjective(student, some_pairs(count, frames), torch.zeros(count, 5, 10), 3, OdeConfig(**settings))


class Truth(torch.nn.Module):
    """Predicts the flow to the clip that it is asked about, less `wrong` [F]."""

    def __init__(self, wrong=None):
        super().__init__()
        self.wrong, self.calls = wrong, []

    def forward(self, x, t, conditions, attend):
        self.calls.append((x, t, conditions, attend))
        ends = self.pairs.states[:, -1].float().transpose(1, 2)
        known = (ends[None, :, :, :1] - conditions.reference[:, None]).abs().sum((2, 3, 4, 5)).argmin(1)
        sigma = t[:, None, :, None, None] / 1000
        flow = (x - ends[known]) / sigma.clamp_min(1e-9)
        if self.wrong is not None:
            flow = flow - self.wrong[None, None, :, None, None]
        return flow * (sigma > 0)


def test_a_student_that_tells_the_truth_has_no_loss():
    student = Truth()
    told = objective(student)
    student.pairs = told.pairs
    loss, _ = told.loss(0, 8, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float64 and loss < 1e-10
    x, t, conditions, attend = student.calls[0]
    assert attend == BlockCausal(3) and t.shape == (8, 6) and conditions.audio.shape == (8, 6, 24)
    assert torch.equal(x[:, :, :1], conditions.reference), "the reference image is shown clean whatever the timestep"
    assert set(t.flatten().tolist()) <= {*LEVELS, 0.0}


def test_the_reference_frame_and_clean_blocks_are_not_scored():
    told = objective(torch.nn.Identity())
    levels = torch.tensor([[0, 0, 0, 4, 4, 4], [4, 4, 4, 2, 2, 2], [4] * 6])
    wanted = [[False, True, True, False, False, False], [False] * 3 + [True] * 3, [False] * 6]
    assert told.scored(levels).tolist() == wanted
    x0 = torch.zeros(3, 16, 6, 4, 4)
    wrong = torch.where(told.scored(levels)[:, None, :, None, None], 0.0, 9.0).expand_as(x0)
    assert mean_over(frame_errors(wrong, x0), told.scored(levels)) == 0
    assert mean_over(frame_errors(x0 + 2, x0), told.scored(levels)) == 4
    assert mean_over(frame_errors(x0 + 2, x0), torch.zeros(3, 6, dtype=torch.bool)) == 0, "nothing to score is no NaN"


def test_the_loss_is_told_by_level():
    student = Truth(wrong=torch.full((6,), 0.5))
    told = objective(student)
    student.pairs = told.pairs
    loss, found = told.loss(0, 64, torch.Generator().manual_seed(0))
    assert [found[f"loss at {t:g}"].item() for t in LEVELS] == pytest.approx(
        [(0.5 * t / 1000) ** 2 for t in LEVELS], rel=1e-4
    )
    assert min(found.values()) < loss < max(found.values())
    levels = torch.tensor([[0, 0, 0, 2, 2, 2]])
    error = torch.arange(6.0)[None]
    assert [float(mean) for mean in told.by_level(error, levels, told.scored(levels)).values()] == [1.5, 0, 4, 0]


def test_levels_are_drawn_a_block_and_shared_by_its_frames():
    levels = draw_levels(200, 7, 3, 5, torch.Generator().manual_seed(0))
    blocks = levels.unflatten(1, (7, 3))
    assert levels.shape == (200, 21) and (blocks == blocks[:, :, :1]).all()
    drawn = blocks[:, :, 0]
    counts = drawn.flatten().bincount(minlength=5)
    assert len(counts) == 5 and (counts - 280).abs().max() < 80
    assert (drawn[:, 0] != drawn[:, 1]).float().mean() > 0.6


@pytest.mark.parametrize("clean", [True, False])
def test_clean_context_is_an_option(clean):
    student = Truth()
    told = objective(student, clean_context=clean)
    student.pairs = told.pairs
    told.loss(0, 64, torch.Generator().manual_seed(0))
    assert (0.0 in student.calls[0][1]) is clean


def test_the_dev_error_is_by_level_and_leaves_nothing_to_chance():
    student = Truth(wrong=torch.full((6,), 0.5))
    told = objective(student, count=5)
    student.pairs = told.pairs
    found = told.errors(student, chunk=2)
    wanted = [(0.5 * t / 1000) ** 2 for t in LEVELS]
    assert [found[f"{DEV_ERROR} at {t:g}"] for t in LEVELS] == pytest.approx(wanted, rel=1e-4)
    assert found[DEV_ERROR] == pytest.approx(sum(wanted) / 4, rel=1e-4)
    assert told.errors(student, chunk=5) == pytest.approx(found)
    first = Truth(wrong=torch.tensor([7.0, 0, 0, 0, 0, 0]))
    first.pairs = told.pairs
    assert told.errors(first, chunk=5)[DEV_ERROR] < 1e-8, "the reference image's frame is left out"


def test_blocks_must_be_whole():
    with pytest.raises(ValueError, match="7 latent frames"):
        objective(torch.nn.Identity(), frames=7)


def test_seams_show():
    still = torch.arange(9.0)[None, None, :, None, None].expand(1, 16, 9, 4, 4)
    assert seam_ratio(still, 3) == pytest.approx(1)
    jump = still + 2 * (torch.arange(9) // 3)[None, None, :, None, None]
    assert seam_ratio(jump, 3) == pytest.approx(3)


def test_the_verdict_follows_its_rule():
    settings = OdeConfig()
    fallen = [(100, 1.0), (200, 0.5), (300, 0.40), (400, 0.39)]
    assert verdict(fallen, settings).converged is False and "fell by 2.5%" in str(verdict(fallen, settings))
    assert verdict([*fallen[:3], (400, 0.395)], settings).converged is True
    assert verdict([*fallen[:3], (400, 0.45)], settings).converged is False
    assert "getting worse" in str(verdict([*fallen[:3], (400, 0.45)], settings))
    assert verdict([*fallen[:3], (400, float("nan"))], settings).converged is False
    assert verdict([*fallen[:3], (400, 0.404)], settings).converged is True
    assert verdict([(100, 1.0), (300, 0.5), (350, 0.1), (400, 0.495)], settings).converged is True
    assert verdict([(400, 0.5)], settings).converged is None and verdict([], settings).converged is None
    with pytest.raises(ValueError, match="share"):
        OdeConfig(share=1.0)


def trainer(folder, **settings):
    torch.manual_seed(0)
    changes = {"steps": 20, "batch": 4, "warmup": 2, "lr": 3e-3, "precision": "fp32", "ema": 0.9, **settings}
    return Trainer(objective(WanDiT(TINY)), TrainConfig(**changes), folder)


def test_twenty_steps_equal_ten_and_ten_bit_for_bit_and_the_loss_falls(tmp_path):
    whole, parts = trainer(tmp_path / "whole"), trainer(tmp_path / "parts", until=10)
    told = whole.objective
    before = told.errors(told.student, 4)[DEV_ERROR]
    whole.fit()
    parts.fit()
    parts = trainer(tmp_path / "parts")
    parts.fit()
    assert whole.step == parts.step == 20
    for name, value in whole.weights().items():
        assert torch.equal(value, parts.weights()[name])
    for name, value in whole.modules.state_dict().items():
        assert torch.equal(value, parts.modules.state_dict()[name])
    assert told.errors(told.student, 4)[DEV_ERROR] < 0.8 * before


def test_the_debug_command_makes_pairs_trains_goes_on_and_leaves_a_student_that_speaks(
    tiny_family, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_family, tmp_path / "family")
    shutil.rmtree(tmp_path / "family" / "student")
    run = replace(config.load(DEBUG), family="family", name="a")
    train_ode(replace(run, train=replace(run.train, until=2)))
    assert "cannot be told" not in capsys.readouterr().out
    train_ode(run)
    *_, said, where, use = capsys.readouterr().out.splitlines()
    assert said.startswith(("converged", "not converged")) and where == "checkpoint: family/student"
    report = json.loads(Path("runs/a/ode/report.json").read_text())
    assert [row["step"] for row in report["history"]] == [1, 2, 3, 4] and report["converged"] in (True, False)
    assert report["history"][0]["seams"] > 0 and report["start"][DEV_ERROR] > 0
    best = min(report["history"], key=lambda row: row[DEV_ERROR])["step"]
    assert json.loads(Path("family/student/card.json").read_text())["steps"] == best == report["exported step"]
    assert len(list(Path("runs/a/ode/sheets").glob("*.png"))) == 4
    assert len(list(Path("runs/a/ode/videos").glob("*.mp4"))) == 4
    assert report["best"] == "lowest dev error" and report["teacher"]["sharpness"] > 0
    assert {"motion", "flicker", "black frames"} < set(report["history"][0])

    script, *settings = use.removeprefix("use it: bash ").split()
    assert script == "scripts/inference.sh"
    assert run_command("inference", "", infer, [*settings, "duration=0.5", "output=a.mp4"]) == 0
    assert Path("a.mp4").stat().st_size > 0

    with pytest.raises(ValueError, match="timesteps"):
        train_ode(replace(run, causal=replace(run.causal, timesteps=(1000.0, 500.0))))
    shutil.rmtree("family/student")
    train_ode(run)
    assert Path("family/student/config.json").is_file(), "a finished run exports again what was removed"
    train_ode(run, dry_run=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("total memory: ")


def test_missing_pairs_are_named_with_their_remedy(tiny_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = replace(config.load(DEBUG), family=str(tiny_family), name="a", pairs_config="")
    with pytest.raises(ValueError, match="scripts/generate_ode_pairs.sh"):
        train_ode(run)
