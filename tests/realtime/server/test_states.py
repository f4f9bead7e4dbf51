"""Whatever a viewer sends, in whatever order: every message has its answer, states follow each other, nothing of an
interrupted answer comes after the word that it is over, and nothing is left in the end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter as Count
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetalk.realtime.conversation import Conversation
from livetalk.realtime.server import call as calls
from livetalk.realtime.server import protocol
from livetalk.realtime.server.call import Call
from livetalk.realtime.server.playout import Playout
from livetalk.realtime.server.stages import Watched
from livetalk.realtime.talker import State
from livetalk.streaming.player import Player
from tests.realtime.conftest import FakeStage
from tests.realtime.server.conftest import Counters

FIELDS = {kind.type: {name for name in kind.__dataclass_fields__ if name != "type"} for kind in protocol.Event.__args__}
AT = np.arange(960) / 48_000
VOICE = (4000 * sum(np.sin(2 * np.pi * pitch * AT) for pitch in (150, 300, 450))).astype(np.int16)


class Peer:
    """A connection that only writes down what is sent."""

    def __init__(self) -> None:
        self.connected, self.there, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.connected.set()
        self.there.set()
        self.voice: asyncio.Queue | list = []
        self.sent: list[dict] = []

    def send(self, text: str) -> bool:
        self.sent.append(json.loads(text))
        return True

    async def next_voice(self) -> np.ndarray:
        while True:
            await asyncio.sleep(0.002)
            if self.voice:
                return self.voice.pop(0)


class Picture:
    """A live stream that shows nothing."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.Event().wait()

    def restart(self, picture) -> None:
        self.changes.append("face")

    def set_prompt(self, text: str) -> None:
        self.changes.append(text)


def in_loop(main, within: float = 20.0):
    """Runs it, with nothing left behind in the event loop."""

    async def watched():
        result = await asyncio.wait_for(main, within)
        await asyncio.sleep(0.01)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(watched())


@pytest.fixture(autouse=True)
def quick_partings(monkeypatch):
    monkeypatch.setattr(calls, "LAST_WORD_S", 0.0)
    monkeypatch.setattr(calls, "TAIL_S", 0.01)


def asked(actions: list) -> int:
    """How many messages there are among the actions."""
    return sum(not isinstance(action, float) and action != "voice" for action in actions)


def answers(sent: list[dict]) -> int:
    return sum(event["type"] in ("done", "pong", "problem") for event in sent)


async def carried(studio, actions: list) -> tuple[list[dict], Call, Picture]:
    """What a call sends for these actions, each a message (a dict), raw data, a pause in seconds, or "voice"."""
    call = Call("name", studio)
    player = Player()
    call._player, call._playout = player, Playout(player, np.zeros((16, 16, 3), np.uint8), lambda frame: frame)
    call._peer, call._live = Peer(), Picture()
    call._conversation = Conversation(studio.talkers.talker(), Watched(FakeStage(speed=20), lambda: None))
    await call._parts.enter_async_context(call._conversation)
    running = asyncio.create_task(call.run())
    call._opened()
    for action in actions:
        if isinstance(action, float):
            await asyncio.sleep(action)
        elif action == "voice":
            call._peer.voice += [0 * VOICE] * 10 + [VOICE] * 25
        else:
            call._received(json.dumps(action) if isinstance(action, dict) else action)
    for _ in range(400):
        await asyncio.sleep(0.01)
        if running.done() or (answers(call._peer.sent) >= asked(actions) and call._conversation.state == State.IDLE):
            break
    call.end("left")
    await running
    await call.close()
    return call._peer.sent, call, call._live


messages = st.sampled_from(
    [
        {"type": "say", "text": "Go on."},
        {"type": "interrupt"},
        {"type": "microphone", "mode": "off"},
        {"type": "microphone", "mode": "push"},
        {"type": "microphone", "mode": "open"},
        {"type": "talk", "on": True},
        {"type": "talk", "on": False},
        {"type": "face", "face": "lin"},
        {"type": "face", "face": "nobody"},
        {"type": "prompt", "text": "smiles"},
        {"type": "ping", "id": 3},
    ]
)
junk = st.text(max_size=20) | st.binary(max_size=20) | st.just('{"type":"say"}')
pauses = st.sampled_from([0.0, 0.01, 0.05])
SEQUENCES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@SEQUENCES
@given(st.lists(messages | messages | pauses | junk | st.just("voice"), max_size=12))
def test_any_order_of_messages(studio, actions):
    own = replace(studio, talkers=Counters(2))
    sent, call, _ = in_loop(carried(own, actions), 30)
    check_events(sent)
    assert answers(sent) == asked(actions)


def check_events(sent: list[dict]) -> None:
    """What holds for every session."""
    assert sent[0]["type"] == "hello" and sent[-1]["type"] == "ended"
    assert [event["type"] for event in sent].count("ended") == 1
    state, open_turn, over = sent[0]["state"], None, set()
    for event in sent:
        assert set(event) == FIELDS[event["type"]] | {"type"}
        if event["type"] == "state":
            assert event["state"] != state and event["state"] in set(State)
            state = event["state"]
        elif event["type"] == "answer" and event["began"]:
            assert open_turn is None and event["turn"] not in over
            open_turn = event["turn"]
        elif event["type"] == "answer":
            assert event["turn"] == open_turn
            over.add(open_turn)
            open_turn = None
        elif event["type"] == "caption" and event["who"] == "avatar":
            assert event["turn"] == open_turn
        elif event["type"] == "done" and event["what"] == "interrupt":
            # The answer that was cut may still be told to have ended; it never goes on.
            assert state in ("idle", "listening", "speaking", "thinking")


def test_an_interruption_is_the_end_of_an_answer(studio):
    own = replace(studio, talkers=Counters(30))
    say, stop = {"type": "say", "text": "Go on."}, {"type": "interrupt"}
    sent, _, _ = in_loop(carried(own, [say, 0.15, stop, 0.2]), 30)
    check_events(sent)
    heard = next(event for event in sent if event["type"] == "heard")
    ended = [at for at, event in enumerate(sent) if event["type"] == "answer" and not event["began"]]
    assert heard["text"].startswith("Turn 1") and len(ended) == 1 and not sent[ended[0]]["complete"]
    assert not any(event["type"] == "caption" for event in sent[ended[0] :])


def test_the_button_interrupts_and_is_heard(studio):
    own = replace(studio, talkers=Counters(30))
    actions = [{"type": "microphone", "mode": "push"}, {"type": "say", "text": "Go on."}, 0.15]
    actions += [{"type": "talk", "on": True}, 0.05, "voice", 0.3, {"type": "talk", "on": False}]
    sent, _, _ = in_loop(carried(own, actions), 30)
    check_events(sent)
    assert any(event["type"] == "heard" for event in sent)
    assert "listening" in [event["state"] for event in sent if event["type"] == "state"]


def test_an_open_microphone_that_is_turned_off_hears_no_more(studio):
    """Also in the middle of a voice, whose end it would otherwise wait for."""
    opened, off = ({"type": "microphone", "mode": mode} for mode in ("open", "off"))
    sent, _, _ = in_loop(carried(studio, [opened, 0.05, "voice", 0.3, off, 0.3]), 30)
    check_events(sent)
    states = [event["state"] for event in sent if event["type"] == "state"]
    assert "listening" in states and states[-1] == "idle"


def test_changes_are_carried_out_in_order(studio):
    actions = [{"type": "face", "face": "ruth"}, {"type": "prompt", "text": "smiles"}]
    sent, _, picture = in_loop(carried(studio, actions))
    assert picture.changes == ["face", "smiles"]
    assert [event["what"] for event in sent if event["type"] == "done"] == ["face", "prompt"]


def test_a_viewer_who_asks_too_much_at_once_is_told(studio):
    actions = [{"type": "prompt", "text": "smiles"}] * 30
    sent, _, picture = in_loop(carried(studio, actions))
    codes = Count(event["code"] for event in sent if event["type"] == "problem")
    assert codes == {"busy": 14} and len(picture.changes) == 16


def test_hello_says_what_the_session_is(studio):
    sent, call, _ = in_loop(carried(studio, []))
    assert sent[0]["session"] == "name" and sent[0]["synthetic"] is True and sent[0]["width"] == 64
    assert asdict(protocol.Hello("a", "idle", "offline", 1, 1, 16, "", 1))["protocol"] == protocol.VERSION
