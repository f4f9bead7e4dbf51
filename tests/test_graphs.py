"""What is captured: held inputs, and shapes that may not change."""

import pytest
import torch

from livetalk.graphs import Captured


def test_inputs_are_held_where_they_are():
    held = Captured(lambda a, b: a + b, (torch.zeros(2), torch.ones(2)))
    addresses = [value.data_ptr() for value in held.inputs]
    assert held(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).tolist() == [4.0, 6.0]
    assert [value.data_ptr() for value in held.inputs] == addresses


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((torch.zeros(3),), r"\(3,\), but the graph was captured for torch.float32 \(2,\)"),
        ((torch.zeros(2, dtype=torch.float64),), "torch.float64"),
        ((), "0 inputs given to a graph that was captured with 1"),
    ],
)
def test_other_shapes_are_refused_with_a_sentence(given, reason):
    with pytest.raises(ValueError, match=reason):
        Captured(lambda a: a, (torch.zeros(2),))(*given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replay_computes_anew():
    stream = torch.cuda.Stream()
    held = Captured(lambda a: (a * 2).sum(), (torch.ones(4, device="cuda"),), stream)
    for value in (1.0, 3.0):
        assert held(torch.full((4,), value, device="cuda")).item() == 8 * value
