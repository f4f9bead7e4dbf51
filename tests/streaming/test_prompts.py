"""Prompts are encoded once, on the device or on a visit to it, and remembered."""

from concurrent.futures import ThreadPoolExecutor
from time import sleep

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


def test_writers_at_once_do_not_take_each_others_file(tmp_path, monkeypatch):
    """Servers that share a folder: each is slow between writing and renaming."""
    write = prompts.save_file

    def slowly(*given):
        write(*given)
        sleep(0.05)

    monkeypatch.setattr(prompts, "save_file", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda one: one.encode("nods"), [made(Encoder(), folder=tmp_path) for _ in range(3)])]
    assert all(torch.equal(one, found[0]) for one in found) and [one.suffix for one in tmp_path.iterdir()] == [
        ".safetensors"
    ]


def test_a_visitor_leaves_the_device(monkeypatch):
    encoder, places = Encoder(), []
    move = encoder.to
    monkeypatch.setattr(encoder, "to", lambda place: (places.append(str(place)), move(place))[1])
    made(encoder, visits=True).encode("nods")
    assert places == ["cpu", "cpu"] and encoder.calls == 1
