import os

import pytest
import torch
from torch import nn

from livetalk.training import checkpoint
from livetalk.training.checkpoint import State


def state(step, value=1.0):
    net = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return State(step, {"w": torch.full((2,), value)}, {"w": torch.full((2,), -value)}, optimiser.state_dict())


def names(folder):
    return [path.name for path in checkpoint.whole(folder)]


def test_what_is_saved_comes_back(tmp_path):
    saved = state(7)
    checkpoint.save(tmp_path, saved, {"lr": 1.0}, keep=1)
    loaded = checkpoint.load_latest(tmp_path, torch.device("cpu"))
    assert loaded.step == 7
    assert torch.equal(loaded.weights["w"], saved.weights["w"]) and torch.equal(loaded.ema["w"], saved.ema["w"])
    assert loaded.optimiser["param_groups"] == saved.optimiser["param_groups"]
    for key, value in saved.optimiser["state"][0].items():
        assert torch.equal(loaded.optimiser["state"][0][key], value)


def test_without_averaging_and_with_tied_and_strided_weights(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    checkpoint.save(tmp_path, State(1, {"a": shared, "b": shared, "c": shared.t()}, {}, {}), {}, keep=1)
    loaded = checkpoint.load_latest(tmp_path, torch.device("cpu"))
    assert torch.equal(loaded.weights["b"], shared) and torch.equal(loaded.weights["c"], shared.t())
    assert loaded.ema == {}


def test_an_empty_folder_has_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nothing", torch.device("cpu")) is None


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 1000):
        checkpoint.save(tmp_path, state(step), {}, keep=2)
    assert names(tmp_path) == ["step-0000100", "step-0001000"]


def test_a_step_saved_again_replaces_itself(tmp_path):
    checkpoint.save(tmp_path, state(5, 1.0), {}, keep=2)
    checkpoint.save(tmp_path, state(5, 2.0), {}, keep=2)
    assert names(tmp_path) == ["step-0000005"]
    assert checkpoint.load_latest(tmp_path, torch.device("cpu")).weights["w"][0] == 2


def test_a_save_that_is_killed_leaves_the_one_before_and_the_next_save_cleans_up(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(5), {}, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            checkpoint.save(tmp_path, state(6), {}, keep=2)
    assert (tmp_path / ".step-0000006.partial").is_dir()
    assert checkpoint.load_latest(tmp_path, torch.device("cpu")).step == 5
    checkpoint.save(tmp_path, state(7), {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000005", "step-0000007"]
