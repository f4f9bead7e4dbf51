"""A run that goes on with other settings says so, and is refused where what was learnt would be of no use."""

import logging
from dataclasses import replace

import pytest
from torch import nn

from livetalk.cli import run_command
from livetalk.config import RUNS, flat
from livetalk.training import checkpoint, distributed, going_on
from livetalk.training.trainer import TrainConfig, Trainer
from tests.training.test_trainer import Regression

SETTINGS = TrainConfig(steps=4, until=2, batch=8, warmup=2, lr=0.05, precision="fp32")
TOLD = {"run": "train_x", "dit.dim": 8, "train.lr": 0.05, "world.seed": 3, "train.until": 2, "prepared": "runs/a"}


def trainer(folder, told=None, **changes):
    return Trainer(Regression(), replace(SETTINGS, **changes), folder, told=told or {})


@pytest.fixture
def begun(tmp_path):
    trainer(tmp_path / "x", TOLD).fit()
    return tmp_path / "x"


def test_the_same_settings_and_indifferent_ones_are_not_mentioned(begun, caplog):
    with caplog.at_level(logging.WARNING):
        assert trainer(begun, TOLD | {"train.until": 4}, until=4, log_every=7).fit()
    assert not caplog.messages


def test_what_matters_is_told_in_a_line_for_each(begun, caplog):
    told = TOLD | {"train.lr": 0.01, "prepared": "runs/b", "new": 1}
    with caplog.at_level(logging.WARNING):
        trainer(begun, told).resume()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "train.lr=0.01 from here on, it was 0.05 until step 2",
        "prepared=runs/b from here on, it was runs/a until step 2",
    ]
    assert all(str(begun) in message for message in caplog.messages)


def test_another_model_or_objective_is_refused(begun):
    before = checkpoint.whole(begun)
    with pytest.raises(ValueError, match="begun with run=train_x, dit.dim=8, not run=train_y, dit.dim=16: .*name="):
        trainer(begun, TOLD | {"dit.dim": 16, "run": "train_y"}).fit()
    assert checkpoint.whole(begun) == before


def test_without_all_settings_those_of_training_are_compared(tmp_path, caplog):
    trainer(tmp_path).fit()
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, lr=0.1, betas=(0.5, 0.9), save_every=3).resume()
    assert [message.split(": ")[1].split(" ")[0] for message in caplog.messages] == [
        "train.lr=0.1",
        "train.betas=[0.5,",
    ]


def test_steps_that_are_measured_are_not_compared():
    now = {"train.steps": 7, "train.seconds": 60.0}
    going_on.compare("x", 1, {"train.steps": 5, "train.seconds": 30.0}, now)


@pytest.mark.parametrize("shard", [False, True])
def test_weights_of_another_size_are_refused_by_name(tmp_path, shard):
    trainer(tmp_path, shard=shard).fit()
    other = Regression()
    other.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    try:
        with pytest.raises(ValueError, match="step-0000002 is of other networks, .*net.0.bias.*: give the sizes"):
            Trainer(other, replace(SETTINGS, shard=shard), tmp_path).resume()
    finally:
        distributed.leave()


def test_a_checkpoint_without_settings_or_with_a_torn_marker_goes_on(begun):
    marker = checkpoint.whole(begun)[-1] / checkpoint.MARKER
    assert checkpoint.latest_settings(begun).settings["run"] == TOLD
    marker.write_text('{"step": 2, "settings": {"steps": 4}}')
    assert trainer(begun, TOLD | {"dit.dim": 16}).resume()
    marker.write_text("{")
    assert checkpoint.latest_settings(begun) is None


def test_every_name_in_the_tables_is_a_setting_of_some_training():
    known = {name for run in RUNS.values() for name in flat(run())}
    tables = {*going_on.INDIFFERENT, *going_on.FIXED}
    assert tables <= known
    for group in (*going_on.GROUPS, *going_on.FIXED_GROUPS):
        assert any(name.startswith(group) for name in known), group


def test_at_the_command_line_it_is_one_line_and_status_2(begun, capsys):
    def act(run, dry_run):
        trainer(begun, TOLD | {"dit.dim": run.dit.dim}).fit()

    assert run_command("train_teacher", "", act, ["dit.dim=96"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("train_teacher: ") and "dit.dim=8, not dit.dim=96" in line
