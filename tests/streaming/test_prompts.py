"""Prompts are encoded once, on the device or on a visit to it, and remembered."""

import torch
from torch import nn

from livetalk.streaming import prompts
from livetalk.streaming.prompts import Prompts


class Encoder(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(256, 4)
        self.calls = 0

    def encode(self, given):
        self.calls += 1
        return self.table(torch.tensor([list(given[0].encode())]))


def made(encoder, **settings) -> Prompts:
    return Prompts(encoder, torch.device("cpu"), torch.float32, **settings)


def test_a_prompt_is_encoded_once():
    encoder = Encoder()
    found = made(encoder)
    first = found.encode("nods")
    assert found.encode("nods") is first and found.encode("smiles") is not first and encoder.calls == 2


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(prompts, "KEPT", 2)
    encoder = Encoder()
    found = made(encoder)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        found.encode(prompt)
    assert encoder.calls == 4  # b left when c came


def test_features_outlive_the_run(tmp_path):
    first, second, other = Encoder(), Encoder(), Encoder(1)
    wanted = made(first, folder=tmp_path).encode("nods")
    assert torch.equal(made(second, folder=tmp_path).encode("nods"), wanted) and second.calls == 0
    assert not torch.equal(made(other, folder=tmp_path).encode("nods"), wanted) and other.calls == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_visitor_leaves_the_device(monkeypatch):
    encoder, places = Encoder(), []
    move = encoder.to
    monkeypatch.setattr(encoder, "to", lambda place: (places.append(str(place)), move(place))[1])
    made(encoder, visits=True).encode("nods")
    assert places == ["cpu", "cpu"] and encoder.calls == 1
