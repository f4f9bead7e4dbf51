"""Control messages: each kind comes back as it was meant; everything else is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetalk.realtime.server import protocol
from livetalk.realtime.server.protocol import MESSAGES, Refused, read, written

MOST = 16_384
GOOD = [
    protocol.Say("Hello, Welt! 你好"),
    protocol.Interrupt(),
    protocol.Microphone("push"),
    protocol.Talk(True),
    protocol.Face("robin"),
    protocol.Prompt("nods"),
    protocol.Ping(2**53 - 1),
    protocol.Bye(),
]


def code(data) -> str:
    with pytest.raises(Refused) as caught:
        read(data, MOST)
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message.type)
def test_every_message_is_read(message):
    text = json.dumps({"type": message.type, **asdict(message)})
    assert read(text, MOST) == message
    assert code(text[:-1]) == "not_json"
    assert code(text.replace("{", '{"more": 1, ', 1)) == "bad_fields"
    for entry in fields(message):
        assert code(json.dumps({"type": message.type, **asdict(message), entry.name: None})) == "bad_value"


def test_the_messages_are_all_there():
    assert {message.type for message in GOOD} == set(MESSAGES)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"{}", "not_text"),
        ("", "not_json"),
        ("[]", "no_type"),
        ('{"type":1}', "no_type"),
        ('{"type":"fly"}', "unknown_type"),
        ('{"type":"say"}', "bad_fields"),
        ('{"type":"say","text":" \\n"}', "bad_value"),
        ('{"type":"say","text":"\\ud800"}', "bad_value"),
        ('{"type":"say","text":"a\\u0000b"}', "bad_value"),
        ('{"type":"say","text":"a","text":"b"}', "not_json"),
        ('{"type":"ping","id":true}', "bad_value"),
        ('{"type":"ping","id":1.0}', "bad_value"),
        ('{"type":"ping","id":-1}', "bad_value"),
        ('{"type":"ping","id":NaN}', "not_json"),
        ('{"type":"ping","id":' + "9" * 5000 + "}", "not_json"),
        ('{"type":"microphone","mode":"loud"}', "bad_value"),
        ("[" * 5000, "not_json"),
        ("a" * (MOST + 1), "too_long"),
        ("ä" * (MOST // 2 + 1), "too_long"),
        ('{"type":"say","text":"' + "a" * 2001 + '"}', "bad_value"),
        ('{"type":"prompt","text":"' + "a" * 501 + '"}', "bad_value"),
    ],
)
def test_what_is_refused(data, wanted):
    assert code(data) == wanted


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
shapes = st.fixed_dictionaries(
    {"type": st.sampled_from([*MESSAGES, "x"])},
    optional=dict.fromkeys(("text", "mode", "on", "face", "id", "more"), values),
)


@given(st.text() | st.binary() | values.map(json.dumps) | shapes.map(json.dumps))
def test_anything_is_read_or_refused(data):
    try:
        message = read(data, MOST)
    except Refused:
        return
    assert type(message) in MESSAGES.values()


def test_events_are_written_as_they_are():
    event = protocol.Figures(15.9, 600, 2, {"speak": 12})
    assert json.loads(written(event)) == {"type": "figures", **asdict(event)}
    assert "\n" not in written(protocol.CaptionIs("avatar", 1, "a\nb"))
