"""Messages of the Realtime protocol: shapes as documented, and random input."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetalk.realtime import wire
from livetalk.realtime.settings import RealtimeServer
from livetalk.realtime.thinker import Line
from tests.realtime.protocol_server import GARBAGE


def test_a_session_in_both_dialects():
    server = RealtimeServer(model="omni", transcribe="whisper-1")
    assert wire.session_update(server, "alloy", "Be brief.") == {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "model": "omni",
            "output_modalities": ["audio"],
            "instructions": "Be brief.",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "turn_detection": {"type": "server_vad"},
                    "transcription": {"model": "whisper-1"},
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "alloy"},
            },
        },
    }
    session = wire.session_update(RealtimeServer(dialect="beta", turn_detection="none"), "", "")["session"]
    assert session == {
        "modalities": ["text", "audio"],
        "turn_detection": None,
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
    }


@pytest.mark.parametrize(
    ("dialect", "user", "kind"), [("ga", True, "input_text"), ("ga", False, "output_text"), ("beta", False, "text")]
)
def test_sentences_of_both_sides(dialect, user, kind):
    made = wire.item(Line(user, "Hello"), dialect)["item"]
    assert made == {
        "type": "message",
        "role": "user" if user else "assistant",
        "content": [{"type": kind, "text": "Hello"}],
    }


def test_the_model_is_in_the_address():
    assert wire.address(RealtimeServer(url="wss://a.b/v1/realtime", model="m 1")) == "wss://a.b/v1/realtime?model=m+1"
    assert wire.address(RealtimeServer(url="ws://a/r?model=x&k=1", model="m")) == "ws://a/r?model=x&k=1"
    assert wire.address(RealtimeServer(url="ws://a/r")) == "ws://a/r"


def test_sound_is_sixteen_bits_little_endian_and_never_wraps():
    sent = base64.b64decode(wire.append(np.array([0, 0.5, 1.5, -1.5], np.float32))["audio"])
    assert np.frombuffer(sent, "<i2").tolist() == [0, 16384, 32767, -32767]


def test_how_far_was_heard_is_whole_milliseconds_and_not_more():
    assert wire.truncate("item_1", 2, 1999.9) == {
        "type": "conversation.item.truncate",
        "event_id": "harmless-truncate",
        "item_id": "item_1",
        "content_index": 2,
        "audio_end_ms": 1999,
    }


@given(st.binary(max_size=300).map(lambda data: data[: len(data) // 2 * 2]), st.lists(st.integers(1, 7), max_size=60))
def test_pieces_of_sound_may_end_anywhere(data, sizes):
    decoder, got, at = wire.Pcm16(), [], 0
    for size in [*sizes, len(data)]:
        got.append(decoder.push(base64.b64encode(data[at : at + size]).decode()))
        at += size
    assert np.array_equal(np.concatenate(got), np.frombuffer(data, "<i2").astype(np.float32) / 32768)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20))  # fmt: skip
def test_any_json_is_an_event_or_garbage(value):
    try:
        event = wire.parse(json.dumps(value))
    except wire.Garbage:
        return
    assert isinstance(event["type"], str)
    wire.text_or_none(event, "response", "id")


@given(st.text() | st.binary())
def test_any_message_is_an_event_or_garbage(message):
    try:
        assert isinstance(wire.parse(message)["type"], str)
    except wire.Garbage:
        pass


@pytest.mark.parametrize("message", GARBAGE[:6], ids=str)
def test_what_is_no_event(message):
    with pytest.raises(wire.Garbage):
        wire.parse(message)


@pytest.mark.parametrize("encoded", ["AAA", "****", "AAAA\n", "ä"])
def test_what_is_no_base64(encoded):
    with pytest.raises(wire.Garbage):
        wire.Pcm16().push(encoded)
