"""The code in docs/realtime.md runs."""

import re
from pathlib import Path

import numpy as np

from livetalk.realtime.conversation import Conversation
from livetalk.realtime.talker import Caption, Heard, Speech, SpeechEnded, State, StateChanged
from tests.realtime.conftest import FakeStage, answer, run, sound, until

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "realtime.md").read_text("utf-8"), re.S
)


def test_a_talker_of_your_own():
    names: dict = {}
    exec(next(block for block in BLOCKS if "class Beeper" in block), names)

    async def alone():
        async with names["Beeper"]() as talker:
            assert await talker.say("Hello you") == 1
            items = await answer(talker)
            await talker.say("a " * 500)
            await until(talker.speech(), Speech)
            return items, await talker.cancel()

    items, heard = run(alone())
    assert "".join(item.text for item in items if isinstance(item, Caption)) == "Hello you "
    assert len(sound(items)) == 6400 and heard.turn == 2 and heard.text == "a"

    async def performed():
        async with Conversation(names["Beeper"](), FakeStage(speed=20)) as conversation:
            await conversation.say("Hello you there")
            events = await until(conversation.events(), lambda event: event == SpeechEnded(1, True))
            await conversation.say("a " * 500)
            await until(conversation.events(), lambda event: isinstance(event, Caption) and event.at_ms > 500)
            return events, await conversation.interrupt()

    events, heard = run(performed())
    assert StateChanged(State.SPEAKING) in events and isinstance(heard, Heard) and heard.heard_ms > 500


def test_the_sentence_that_is_tried_first(tmp_path, monkeypatch):
    """On the shipped student, with a short answer."""
    from livetalk.pipeline import EXAMPLE_IMAGE

    monkeypatch.chdir(tmp_path)
    code = next(block for block in BLOCKS if "async def ask" in block)
    code = (
        code.replace('"face.png"', repr(str(EXAMPLE_IMAGE)))
        .replace("Tell me a story", "Say: yes.")
        .replace("print(event)", "pass")
    )
    exec(code, {})
    from livetalk.media import read_audio

    assert np.abs(read_audio("outputs/answer.mp4")).max() > 0.05
