import pytest
import torch
from torch import nn

from livetalk.training import checkpoint
from livetalk.training.ema import EMA
from livetalk.training.trainer import TrainConfig, Trainer


class Regression:
    """y = 2x - 1 from noisy points; enough to see a loop learn, stop and go on."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def modules(self):
        return {"net": self.net}

    def loss(self, step, batch, generator):
        x = torch.rand(batch, 1, generator=generator)
        error = (self.net(x) - (2 * x - 1)).square().mean()
        return error, {"mean": x.mean()}


def train(folder, **settings):
    config = TrainConfig(
        **{"steps": 20, "batch": 8, "warmup": 2, "lr": 0.05, "precision": "fp32", "ema": 0.9, **settings}
    )
    trainer = Trainer(Regression(), config, folder)
    return trainer, trainer.fit()


def test_twenty_steps_equal_ten_and_ten_bit_for_bit(tmp_path):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", until=10)
    parts, _ = train(tmp_path / "parts")
    assert parts.step == whole.step == 20
    for name, value in whole.weights().items():
        assert torch.equal(value, parts.weights()[name])
    for name, value in whole.modules.state_dict().items():
        assert torch.equal(value, parts.modules.state_dict()[name])


def test_it_learns(tmp_path):
    _, first = train(tmp_path / "a", steps=2)
    _, last = train(tmp_path / "b", steps=200)
    assert last["loss"] < 0.05 * first["loss"]


def test_a_checkpoint_cut_in_the_middle_is_not_seen(tmp_path):
    trainer, _ = train(tmp_path, save_every=5, keep=3)
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-0000010", "step-0000015", "step-0000020"]
    (checkpoint.whole(tmp_path)[-1] / checkpoint.MARKER).unlink()
    fresh = Trainer(Regression(), trainer.config, tmp_path)
    assert fresh.resume() and fresh.step == 15


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    train(tmp_path, steps=10)
    trainer = Trainer(Regression(), TrainConfig(steps=20, batch=8, precision="fp32", log_every=1), tmp_path)
    trainer.resume()
    with torch.no_grad():
        trainer.objective.net[0].weight.fill_(float("nan"))
    checkpoint_before = checkpoint.whole(tmp_path)
    trainer.resume = lambda: False
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.fit()
    assert checkpoint.whole(tmp_path) == checkpoint_before


def test_a_schedule_is_measured_from_where_the_run_goes_on(tmp_path, monkeypatch):
    """Whether it began before the steps that are measured, or between them."""
    monkeypatch.setattr("time.monotonic", lambda: 60.0)
    for began in ((20.0, 20), (10.0, 50)):
        trainer = Trainer(Regression(), TrainConfig(batch=8, seconds=160.0), tmp_path)
        trainer.step = 100
        assert trainer._plan(0.0, began) == (60.0, 100)
        assert trainer.config.steps == 100 + {20: 200, 50: 100}[began[1]]


def test_ema_follows_its_formula():
    net = nn.Linear(1, 1)
    ema = EMA(net, 0.5)
    start = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(net, step=1000)
    assert torch.allclose(ema.weights["weight"], start + 0.5)


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    config = TrainConfig(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    assert config.rate(0) == pytest.approx(0.1) and config.rate(10) == pytest.approx(1.0)
    assert config.rate(99) == pytest.approx(0.1, abs=1e-3)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    trainer, _ = train(tmp_path, save_every=5, keep=3)
    (checkpoint.whole(tmp_path)[-1] / "weights.safetensors").write_bytes(b"")
    fresh = Trainer(Regression(), trainer.config, tmp_path)
    assert fresh.resume() and fresh.step == 15
    for path in checkpoint.whole(tmp_path):
        (path / "optimiser.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="remove the folder"):
        fresh.resume()


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path):
    """Means over equal parts of the same rows: the gradient is that of the whole batch, and so is what is logged."""

    class Rows(Regression):
        def __init__(self):
            super().__init__()
            self.rows = torch.linspace(0, 1, 8)[:, None]
            self.next = 0

        def loss(self, step, batch, generator):
            x = self.rows[self.next : self.next + batch]
            self.next = (self.next + batch) % 8
            return (self.net(x) - (2 * x - 1)).square().mean(), {"mean": x.mean()}

    runs = []
    for accumulate in (1, 4):
        settings = {"steps": 5, "batch": 8, "warmup": 0, "precision": "fp32", "accumulate": accumulate}
        trainer = Trainer(Rows(), TrainConfig(**settings), tmp_path / str(accumulate))
        runs.append((trainer.fit(), trainer.weights()))
    (whole, weights), (parts, others) = runs
    assert parts == pytest.approx(whole, rel=1e-4)
    assert all(torch.allclose(value, others[name], atol=1e-6) for name, value in weights.items())
    with pytest.raises(ValueError, match="batch 8 does not split over 1 processes and 3 parts"):
        Trainer(Rows(), TrainConfig(batch=8, accumulate=3), tmp_path)
