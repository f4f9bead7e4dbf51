import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from livetalk.training import checkpoint
from livetalk.training.health import ASIDE, HealthConfig, HopelessError, Watch, best, go_back, healthy, set_aside

CONFIG = HealthConfig()
TEACHER = {"sharpness": 10.0, "identity similarity": 0.9, "black frames": 0.0, "frozen frames": 0.1}
WELL = {"motion": 1.0, "contrast": 1.0, "sharpness": 9.0, "identity similarity": 0.88}


def rows(*changes):
    return [{"step": 10 * (i + 1), **WELL, **change} for i, change in enumerate(changes)]


def save(folder: Path, step: int, keep: int = 2) -> None:
    checkpoint.save(folder, checkpoint.State(step, {"w": torch.zeros(1)}, {}, {}), {}, keep)


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.whole(folder)]


@pytest.mark.parametrize(
    "change",
    [{"motion": 0.4}, {"motion": 2.1}, {"contrast": 0.4}, {"sharpness": 4.0}, {"sharpness": 21.0}]
    + [{"identity similarity": 0.79}, {"motion": float("nan")}],
)
def test_what_strays_from_the_teacher_is_not_healthy(change):
    assert healthy(WELL, TEACHER, CONFIG) and not healthy({**WELL, **change}, TEACHER, CONFIG)


def test_figures_that_nobody_measured_do_not_count():
    unjudged = {name: value for name, value in WELL.items() if name != "identity similarity"}
    assert healthy(unjudged, TEACHER, CONFIG)
    flat = {**TEACHER, "sharpness": 0.0}
    assert healthy(WELL, flat, CONFIG), "a share of nothing"


def test_the_best_is_the_most_in_step_of_the_healthy_and_the_later_of_equals():
    score = "A/V correlation"
    found = rows({score: 0.5}, {score: 0.9, "motion": 0.1}, {score: 0.7}, {score: 0.7}, {score: 0.6})
    assert best(found, TEACHER, CONFIG)["step"] == 40
    assert best(rows({score: 0.5}, {}), TEACHER, CONFIG)["step"] == 20, "the last is healthy and was not judged"
    mouth = "mouth like the teacher's"
    assert best(rows({mouth: 0.8}, {mouth: 0.3}), TEACHER, CONFIG)["step"] == 10, "where the truth is not known"
    assert best(rows({}, {}, {"motion": 0}), TEACHER, CONFIG)["step"] == 20, "without judges the latest healthy one"
    assert best(rows({"motion": 0}, {"motion": 9}), TEACHER, CONFIG)["step"] == 20, "or else the latest"


def test_what_is_being_written_is_waited_for_before_checkpoints_are_set_aside(tmp_path):
    """Or a save in the background would end after the run has been stopped, and be gone on from."""
    save(tmp_path, 10)
    watch = Watch(replace(CONFIG, patience=2), tmp_path, settle=lambda: steps(tmp_path) == [10] and save(tmp_path, 20))
    for step in (30, 40):
        if step == 30:
            watch.scalars(step, {"grad_norm": 0.0})
        else:
            with pytest.raises(HopelessError):
                watch.scalars(step, {"grad_norm": 0.0})
    assert steps(tmp_path) == [20], "saved before the first warning"


def test_the_rule_says_its_bounds():
    assert "0.5 to 2 times" in CONFIG.rule and "0.1 below" in CONFIG.rule
    with pytest.raises(ValueError, match="patience -1"):
        HealthConfig(patience=-1)


def test_a_dead_gradient_warns_and_then_stops_at_the_last_good_checkpoint(tmp_path, caplog):
    watch = Watch(CONFIG, tmp_path)
    for step in (10, 20):
        watch.scalars(step, {"student grad_norm": 1.0, "critic grad_norm": 1.0})
        save(tmp_path, step)
    with caplog.at_level(logging.WARNING):
        watch.scalars(25, {"student grad_norm": 0.0})
    assert "step 25: student grad_norm is 0" in caplog.text
    for step in (30, 40, 50):
        save(tmp_path, step)
    watch.scalars(51, {"critic grad_norm": 1.0})
    watch.scalars(52, {"student grad_norm": 1e-10})
    with pytest.raises(HopelessError, match=r"3 times in a row.*step-0000020, is kept.*lower train.lr") as told:
        watch.scalars(53, {"student grad_norm": 0.0})
    assert "\n" not in str(told.value) and isinstance(told.value, ValueError)
    assert steps(tmp_path) == [20] and not (tmp_path / ASIDE).exists()


def test_a_run_that_recovers_goes_on_and_keeps_nothing_aside(tmp_path):
    watch = Watch(CONFIG, tmp_path)
    save(tmp_path, 10)
    for step in (20, 30, 40, 50):
        watch.scalars(step, {"grad_norm": 0.0 if step % 20 == 0 else 1.0})
    assert steps(tmp_path) == [10] and not (tmp_path / ASIDE).exists()


def test_the_critic_is_measured_against_its_start_also_in_a_later_slice(tmp_path, caplog):
    watch = Watch(CONFIG, tmp_path, [{"step": 1, "critic loss": 0.3}, {"step": 2}, {"step": 3, "critic loss": 0.5}])
    watch.scalars(50, {"critic loss": 0.4})
    watch.scalars(60, {"critic loss": 1.5})
    assert not caplog.records
    for step in (70, 80):
        watch.scalars(step, {"critic loss": 1.7})
    assert "critic loss is 1.7, at the start 0.4" in caplog.text
    with pytest.raises(HopelessError, match="no checkpoint of it is good"):
        watch.scalars(90, {"critic loss": 1.7})


def test_black_and_frozen_frames_are_those_beyond_the_teachers(tmp_path, caplog):
    watch = Watch(CONFIG, tmp_path)
    watch.frames(10, {"black frames": 0.4, "frozen frames": 0.55}, TEACHER)
    assert not caplog.records
    for step in (20, 30):
        watch.frames(step, {"black frames": 0.0, "frozen frames": 1.0}, TEACHER)
    assert "frozen frames: 100% of the student's, 10% of the teacher's" in caplog.text
    with pytest.raises(HopelessError, match="frozen"):
        watch.frames(40, {"black frames": 0.0, "frozen frames": 1.0}, TEACHER)


def test_patience_0_never_stops(tmp_path, caplog):
    watch = Watch(replace(CONFIG, patience=0), tmp_path)
    for step in range(20):
        watch.scalars(step, {"grad_norm": 0.0})
    assert len(caplog.records) == 20


def test_only_a_checkpoint_before_the_fault_is_set_aside(tmp_path):
    save(tmp_path, 20)
    set_aside(tmp_path, 20)
    assert not (tmp_path / ASIDE).exists()
    set_aside(tmp_path, 21)
    save(tmp_path, 30)
    set_aside(tmp_path, 31)
    assert [path.name for path in (tmp_path / ASIDE).iterdir()] == ["step-0000020"], "the first stays"
    assert "step-0000020" in go_back(tmp_path) and steps(tmp_path) == [20]
