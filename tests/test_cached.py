"""Encoders whose features are on disk are not asked again, nor loaded."""

import pytest
import torch
from torch import nn

from livetalk.commands import cached
from livetalk.commands.cached import CachedAudio, CachedText

CPU = torch.device("cpu")


class Encoder(nn.Module):
    def __init__(self, asked):
        super().__init__()
        self.asked = asked

    def encode(self, texts):
        self.asked += texts
        features = torch.zeros(len(texts), 4, 3)
        for index, text in enumerate(texts):
            features[index, : len(text)] = float(ord(text[0]))
        return features

    def features(self, pcm, frames):
        self.asked.append(len(pcm))
        return pcm.mean(1)[:, None, None].expand(-1, frames, 2)


@pytest.fixture
def family(tmp_path):
    for part in ("text", "audio"):
        (tmp_path / "family" / part).mkdir(parents=True)
        (tmp_path / "family" / part / "config.json").write_text("{}")
    return tmp_path / "family"


def test_a_text_is_encoded_once(family, tmp_path):
    asked, loaded = [], []

    def fresh():
        encoder = CachedText(
            str(family), "text", str(tmp_path / "kept"), lambda: loaded.append(1) or Encoder(asked), CPU
        )
        return encoder

    first = fresh().encode(["ab", "c", "ab"])
    assert asked == ["ab", "c"] and torch.equal(first[0], first[2]) and first[0, 1, 0] == ord("a")
    assert torch.equal(fresh().encode(["c", "ab"]), first[[1, 0]]) and len(loaded) == 1
    (family / "text" / "config.json").write_text("{ }")
    fresh().encode(["c"])
    assert asked == ["ab", "c", "c"], "another encoder"


def test_a_sound_is_heard_once_for_a_number_of_frames(family, tmp_path):
    asked = []
    encoder = CachedAudio(str(family), "audio", str(tmp_path / "kept"), lambda: Encoder(asked), CPU)
    pcm = torch.randn(3, 100)
    first = encoder.features(pcm, 5)
    assert torch.allclose(first, Encoder([]).features(pcm, 5)) and asked == [3]
    encoder.features(pcm[1:], 5)
    encoder.features(pcm[:1], 4)
    assert asked == [3, 1]


def test_what_depends_on_the_network_is_remembered(family, tmp_path):
    loads = []
    for _ in range(2):
        encoder = CachedText(str(family), "text", str(tmp_path / "kept"), lambda: loads.append(1) or Encoder([]), CPU)
        assert encoder.noted("name", lambda network: type(network).__name__) == "Encoder"
    assert len(loads) == 1, "the second never needed it"


def test_many_texts_are_encoded_in_portions(family, tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "AT_ONCE", 2)
    asked = []
    encoder = CachedText(str(family), "text", str(tmp_path / "kept"), lambda: Encoder(asked), CPU, together=True)
    assert encoder.encode(list("abcde")).shape == (5, 4, 3) and asked == list("abcde")
