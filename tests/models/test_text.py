from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from livetalk.models import text
from livetalk.models.text import (
    TextConfig,
    TextEncoder,
    clean,
    file_tokenizer,
    hub_tokenizer,
    published_name,
    published_names,
    train_tokenizer,
)

PROMPTS = ["nods while speaking, smiling", "keeps still, serious", "looks around while the camera stays"]
TINY = TextConfig(dim=16, heads=2, head_dim=6, ffn=24, layers=2, vocab=300, length=12, fix_text=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(PROMPTS, tmp_path_factory.mktemp("text") / "tokenizer.json", vocab=300)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    return TextEncoder(TINY, tokenizer).eval()


def test_encode_pads_with_zeros_and_equals_the_long_way(encoder):
    prompts = ["nods", PROMPTS[0], ""]
    features = encoder.encode(prompts)
    ids, mask = encoder.tokens(prompts)
    assert features.shape == (3, 12, 16) and not features.requires_grad
    assert not features[~mask].any() and features[mask].abs().sum(-1).min() > 0
    torch.testing.assert_close(features, encoder.features(ids, mask).detach())


def test_padding_reaches_no_token(encoder):
    ids, mask = encoder.tokens(["nods"])
    other = torch.where(mask, ids, torch.full_like(ids, 7))
    torch.testing.assert_close(encoder.features(other, mask), encoder.features(ids, mask))
    assert not torch.allclose(encoder.features(other, torch.ones_like(mask)), encoder.features(ids, mask))


def test_gradients_reach_every_parameter(encoder):
    encoder.features(*encoder.tokens(PROMPTS)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    encoder.zero_grad()


def test_the_embedding_is_there_once():
    names = [name for name in TextEncoder(TINY).state_dict() if "embed" in name]
    assert names == ["encoder.embed_tokens.weight"]


def test_published_names_both_ways():
    ours = list(TextEncoder(TINY).state_dict())
    theirs = [published_name(name) for name in ours]
    assert {"token_embedding.weight", "norm.weight", "blocks.1.pos_embedding.embedding.weight"} <= set(theirs)
    assert published_names(theirs) == dict(zip(ours, theirs, strict=True))
    assert published_names(["blocks.0.attn.x.weight"]) == {"encoder.blocks.0.attn.x.weight": "blocks.0.attn.x.weight"}
    hub = list(UMT5EncoderModel(text._transformers_config(TINY)).state_dict())
    assert set(published_names(hub)) == set(ours)
    assert set(published_names([name for name in hub if "embed_tokens" not in name])) == set(ours)


def test_tokenizer_is_deterministic_and_knows_every_text(tokenizer, tmp_path):
    path = tmp_path / "again" / "tokenizer.json"
    again = train_tokenizer(PROMPTS, path, vocab=300)
    texts = ["Nods While SPEAKING", "nods while speaking", "日本 🙂 zebra", "", "word " * 40]
    ids, mask = tokenizer(texts, 12)
    assert all(map(torch.equal, again(texts, 12), (ids, mask)))
    assert torch.equal(ids[0], ids[1]) and ids.max() < 300
    ends = mask.sum(1) - 1
    assert (ids[torch.arange(5), ends] == 1).all() and (ids == 1).sum() == 5
    assert not ids[~mask].any() and ends[3] == 0 and mask[4].all()
    raw = Tokenizer.from_file(str(path))
    assert raw.decode(raw.encode("日本 🙂 zebra").ids).strip() == "日本 🙂 zebra"


def test_a_hub_folder_is_read_offline(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(PROMPTS, path, vocab=300)
    PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>").save_pretrained(tmp_path)
    for got, want in zip(hub_tokenizer(tmp_path)(PROMPTS, 12), file_tokenizer(path)(PROMPTS, 12), strict=True):
        assert torch.equal(got, want)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist: run bash scripts/download.sh"):
        hub_tokenizer(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be read"):
        hub_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        file_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        file_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="vocabulary of 100"):
        train_tokenizer(PROMPTS, tmp_path / "t.json", vocab=100)


def test_cleaning():
    assert clean("  a &amp;amp; b\n\t c ", fix_text=False) == "a & b c"
    pytest.importorskip("ftfy")
    assert clean("itâ€™s", fix_text=True) in ("it's", "it’s")


def test_cleaning_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(ValueError, match="pip install ftfy"):
        clean("a", fix_text=True)


def test_nano_is_under_a_mebibyte():
    with torch.device("meta"):
        count = sum(p.numel() for p in TextEncoder(TextConfig.nano()).parameters())
    assert 2 * count < 2**20
    assert replace(TextConfig.nano(), length=48) == TextConfig.nano()


def test_a_prompt_that_is_cut_is_told_of(encoder, caplog):
    encoder.encode(["nods", PROMPTS[0]])
    assert not caplog.records
    encoder.encode(["nods", "smiling, nodding and looking around " * 9])
    (record,) = caplog.records
    assert record.getMessage().startswith(
        'prompt "smiling, nodding and looking around smil ...": only its first 12 tokens'
    )
