"""Published files as a family, at tiny sizes: parts come back bit for bit, tokenizers must agree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from livetalk.commands import make_family as command
from livetalk.commands.make_family import make_family, wanted_parts
from livetalk.config import FamilyRun
from livetalk.models.dit import DiTConfig
from livetalk.models.layouts import Layout
from livetalk.models.text import hub_tokenizer
from livetalk.parts import LARGE_PIECE_BYTES, PIECE_BYTES, family_part, load_part, piece_bytes


@pytest.fixture
def published(tiny_family, tmp_path, monkeypatch) -> dict:
    """Parts such as published files make, with a tokenizer's folder as Hugging Face writes it."""
    monkeypatch.chdir(tmp_path)
    file = str(tiny_family / "text" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained("umt5")
    parts = {name: family_part(tiny_family, name) for name in ("vae", "audio", "text", "teacher", "student")}
    parts["text"] = replace(parts["text"], tokenizer=Path("umt5"), read_tokenizer=hub_tokenizer)
    monkeypatch.setattr(command, "wanted_parts", lambda run, layout: parts)
    return parts


def test_a_family_has_the_published_weights(published, capsys):
    run = FamilyRun(family="f")
    make_family(run)
    assert capsys.readouterr().out == "family: f\n"
    for name, part in published.items():
        wanted, found = part.load(), load_part("f", name)
        assert found.config == wanted.config
        for key, value in wanted.state_dict().items():
            stored = value if name == "vae" else value.bfloat16().float()
            assert torch.equal(found.state_dict()[key], stored), (name, key)
    text = load_part("f", "text")
    assert torch.equal(text.tokens(["nods"])[0], published["text"].load().tokens(["nods"])[0])
    assert json.loads(Path("f/vae/card.json").read_text())["settings"]["run"] == "make_family"
    before = Path("f/teacher").stat().st_mtime_ns
    make_family(run)  # what is there stays
    assert Path("f/teacher").stat().st_mtime_ns == before


def test_a_tokenizer_that_does_something_else_is_refused(published):
    path = Path("umt5/tokenizer.json")
    settings = json.loads(path.read_text())
    hub = published["text"].load().tokenizer
    settings["normalizer"] = None
    path.write_text(json.dumps(settings))
    published["text"] = replace(published["text"], read_tokenizer=lambda folder: hub)
    with pytest.raises(ValueError, match="makes other tokens"):
        make_family(FamilyRun(family="f"))
    assert not Path("f/text").exists()
    path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        make_family(FamilyRun(family="f"))


def test_which_files_make_a_family(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    layout = Layout(tmp_path / "published")
    parts = wanted_parts(FamilyRun(score="14b", student=True), layout)
    assert list(parts) == ["vae", "audio", "text", "teacher", "score", "student"]
    assert parts["teacher"].source == layout.teacher("1.3b") and parts["score"].source == layout.teacher("14b")
    with torch.device("meta"):
        assert parts["score"].build().config == DiTConfig.wan_14b()
    with pytest.raises(ValueError, match="OmniAvatar-1.3B.safetensors not there: bash scripts/download.sh"):
        make_family(FamilyRun(), layout=layout)
    make_family(FamilyRun(score="14b"), dry_run=True, layout=layout)
    assert capsys.readouterr().out.splitlines()[-1] == "total memory: 26.62 GiB"
    for wrong in ({"size": "7b"}, {"score": "nano"}, {"student": True, "size": "14b"}):
        with pytest.raises(ValueError, match="="):
            FamilyRun(**wrong)


def test_large_tensors_get_large_files():
    assert piece_bytes({"a": torch.empty(192, 768, device="meta")}) == PIECE_BYTES
    assert piece_bytes({"a": torch.empty(1536, 8960, device="meta")}) == LARGE_PIECE_BYTES
