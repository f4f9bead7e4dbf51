import copy

import pytest
import torch
from torch import nn

from livetalk.training.ema import EMA


def moved(net, by):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(by)
    return net


def test_it_starts_as_a_copy_and_stays_one():
    net = nn.Linear(2, 2)
    ema, before = EMA(net, 0.9), copy.deepcopy(net.state_dict())
    moved(net, 1.0)
    assert all(torch.equal(ema.weights[name], before[name]) for name in before)


def test_many_updates_are_the_weighted_sum_of_the_weights_seen():
    net = nn.Linear(1, 1, bias=False)
    values = [net.weight.item()]
    ema = EMA(net, 0.5)
    for step in range(100, 104):
        moved(net, 0.3 * step)
        values.append(net.weight.item())
        ema.update(net, step)
    shares = [0.0625, 0.0625, 0.125, 0.25, 0.5]
    want = sum(share * value for share, value in zip(shares, values, strict=True))
    assert ema.weights["weight"].item() == pytest.approx(want, rel=1e-6)


def test_early_steps_have_a_short_memory():
    net = nn.Linear(1, 1, bias=False)
    start, ema = net.weight.item(), EMA(net, 0.999)
    ema.update(moved(net, 1.0), step=1)
    assert ema.weights["weight"].item() == pytest.approx(start + 1 - 2 / 11)


def test_counters_are_copied_not_averaged():
    net = nn.BatchNorm1d(2)
    ema = EMA(net, 0.9)
    net(torch.randn(4, 2))
    ema.update(net, step=1000)
    assert ema.weights["num_batches_tracked"] == 1
    assert torch.allclose(ema.weights["running_mean"], 0.1 * net.running_mean)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="between 0 and 1"):
        EMA(nn.Linear(1, 1), decay)
