"""Two processes against one: the same gradients, other random numbers, one writer."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from livetalk.training import checkpoint, distributed
from livetalk.training.trainer import TrainConfig, Trainer
from tests.training.pairs import in_pairs, join

CONFIG = TrainConfig(steps=6, batch=8, warmup=1, lr=0.05, precision="fp32", ema=0.5, log_every=1, save_every=3)


class Rows:
    """Regression on eight fixed rows, of which every process takes its share; keeps what its generators gave."""

    def __init__(self, device="cpu"):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.rows = torch.randn(8, 2).to(device)
        self.drawn = []

    def modules(self):
        return {"net": self.net}

    def kind(self, step):
        return step % 2

    def loss(self, step, batch, generator):
        self.drawn.append(torch.rand(2, generator=generator, device=generator.device))
        x = self.rows[distributed.rank() * batch :][:batch]
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean(), {}


def train(folder):
    objective = Rows()
    trainer = Trainer(objective, CONFIG, folder)
    trainer.fit()
    return {"weights": trainer.weights(), "net": objective.net.state_dict(), "drawn": objective.drawn}


def work(rank, port, folder):
    """One of two processes, as torchrun would start it."""
    join(rank, port)
    result = {"ranks": distributed.ranks(), "agreed": distributed.agreed(10 + rank, torch.device("cpu"))}
    result["generator"] = torch.rand(2, generator=torch.Generator().manual_seed(distributed.seed(3)))
    with pytest.raises(ValueError, match="batch 7 does not split over 2"):
        Trainer(Rows(), TrainConfig(batch=7), folder)
    result |= train(Path(folder) / "run")
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.leave()


def work_captured(rank, port, folder):
    """One of two processes with a card each: trains eagerly, then with captured steps."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = distributed.join(torch.device("cuda"))
    nets = []
    for graph in (False, True):
        objective = Rows(device)
        config = replace(CONFIG, steps=40, graph=graph, save_every=40)
        Trainer(objective, config, Path(folder) / str(graph), device).fit()
        nets.append({name: value.cpu() for name, value in objective.net.state_dict().items()})
    torch.save(nets, Path(folder) / f"{rank}.pt")
    distributed.leave()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, in_pairs(work, folder)


def test_two_processes_train_as_one(pair, tmp_path):
    one = train(tmp_path)
    for two in pair[1]:
        assert two["ranks"] == 2
        for part in ("net", "weights"):
            for name, value in one[part].items():
                assert torch.allclose(two[part][name], value, rtol=1e-4, atol=1e-6), name


def test_both_hold_the_same_weights_to_the_bit_and_the_first_one_writes(pair):
    folder, (first, second) = pair
    assert all(torch.equal(value, second["net"][name]) for name, value in first["net"].items())
    assert [path.name for path in checkpoint.whole(folder / "run")] == ["step-0000003", "step-0000006"]
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == CONFIG.steps


def test_the_first_process_decides(pair):
    assert [two["agreed"] for two in pair[1]] == [10, 10]


def test_a_seed_gives_every_process_its_own_numbers(pair):
    first, second = (two["generator"] for two in pair[1])
    assert torch.equal(first, torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert not (first == second).any()


def test_processes_train_on_different_draws(pair):
    first, second = (torch.stack(two["drawn"]) for two in pair[1])
    assert not (first == second).any()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_captured_steps_of_two_processes_equal_eager_ones(tmp_path):
    first, second = in_pairs(work_captured, tmp_path)
    eager, captured = first
    for name, value in captured.items():
        assert torch.equal(value, second[1][name]), name
        assert torch.allclose(value, eager[name], atol=1e-5), name


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU, of which there are 2: start 2"):
        distributed.join(torch.device("cuda"))


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.join(torch.device("cpu")) == torch.device("cpu")
    net = nn.Linear(1, 1)
    net(torch.ones(1, 1)).backward()
    gradient = net.weight.grad.clone()
    distributed.average_gradients(net.parameters())
    distributed.wait()
    distributed.leave()
    assert torch.equal(net.weight.grad, gradient)
    assert (distributed.rank(), distributed.ranks(), distributed.seed(5)) == (0, 1, 5)
    assert distributed.agreed(7, torch.device("cpu")) == 7
