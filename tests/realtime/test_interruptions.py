"""Many seeded interruptions, of all kinds and at any moment: nothing stale, nothing left behind, flat memory."""

import asyncio
import gc
import time
import tracemalloc
from random import Random

import pytest

from livetalk.realtime.conversation import Conversation
from livetalk.realtime.offline import OfflineTalker
from livetalk.realtime.settings import RealtimeServer, TalkerConfig
from livetalk.realtime.talkers import make_talker
from tests.realtime.conftest import Counter, FakeStage, ToneVoice, reading, run
from tests.realtime.protocol_server import Faults, ProtocolServer


class Watched(FakeStage):
    """Knows which turns are over: a push of theirs is stale."""

    def __init__(self, block_s: float) -> None:
        super().__init__(speed=20, block_s=block_s)
        self.over = 0
        self.turns: set[int] = set()
        self.stale: list[int] = []

    def push_audio(self, pcm, rate):
        turn = round(float(pcm[0]) * 1024)
        self.turns.add(turn)
        if turn <= self.over:
            self.stale.append(turn)
        self.pushed.clear()
        return super().push_audio(pcm, rate)


async def interrupted(conversation: Conversation, stage: Watched, dice: Random, times: int) -> int:
    """Returns how many interruptions stopped something."""
    stopped = 0
    while stopped < times:
        turn = await conversation.say(f"Sentence {stage.over + 1}")
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.005, 0.01, 0.02]))
        if dice.random() < 0.3:
            # The next sentence interrupts.
            following = await conversation.say(f"Sentence {turn + 1}")
            assert following == turn + 1
            stage.over, stopped, turn = turn, stopped + 1, following
            await asyncio.sleep(dice.choice([0, 0.002]))
        if dice.random() < 0.2:
            # Two at once: one of them stops it.
            heard = await asyncio.gather(conversation.interrupt(), conversation.interrupt())
            assert [one.turn for one in heard if one is not None] == [turn]
        else:
            heard = await conversation.interrupt()
            assert heard is not None and heard.turn == turn
        assert stage.unheard == 0
        stage.over, stopped = turn, stopped + 1
    return stopped


def offline(dice: Random, times: int) -> None:
    stage = Watched(block_s=0.001)

    async def main():
        talker = OfflineTalker(TalkerConfig(), Counter(30), ToneVoice())
        async with Conversation(talker, stage) as conversation, reading(conversation.events()):
            for _ in range(2):
                await interrupted(conversation, stage, dice, times // 2)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            await asyncio.sleep(0.05)

    sizes: list[int] = []
    tracemalloc.start()
    try:
        run(main(), 120)
    finally:
        tracemalloc.stop()
    assert not stage.stale and len(stage.turns) > times // 10
    # The memory of the conversation is bounded, but not full after the first half.
    assert sizes[1] - sizes[0] < 2**20


def from_a_server(dice: Random, times: int) -> None:
    stage = Watched(block_s=0.001)

    async def main():
        async with ProtocolServer(pieces=8, faults=Faults(piece_s=0.003)) as server:
            settings = RealtimeServer(url=server.url)
            talker = make_talker(TalkerConfig(kind="openai-realtime", server=settings))
            async with Conversation(talker, stage) as conversation, reading(conversation.events()) as events:
                # Turns are responses here, unless one was cancelled before the server was asked for it.
                for _ in range(times):
                    await conversation.say("Hello")
                    await asyncio.sleep(dice.choice([0, 0.005, 0.01, 0.02]))
                    heard = await conversation.interrupt()
                    stage.over = server.responses
                    assert heard is not None and stage.unheard == 0
                await asyncio.sleep(0.05)
                return [event for event in events if type(event).__name__ == "Failed"], server.connections

    failed, connections = run(main(), 120)
    assert not failed and connections == 1 and not stage.stale and stage.turns


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hundred_interruptions(seed):
    begun = time.monotonic()
    offline(Random(seed), 80)
    from_a_server(Random(seed), 25)
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_a_thousand_interruptions():
    offline(Random(2), 700)
    from_a_server(Random(3), 300)
