import asyncio

import numpy as np
import pytest
import soundfile

from livetalk.geometry import SAMPLE_RATE
from livetalk.realtime.echo import hear_file
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import SpeechEnded, SpeechStarted, State, StateChanged
from livetalk.realtime.talkers import make_talker
from tests.realtime.conftest import answer, reading, run, sound

ECHO = TalkerConfig(kind="echo")


@pytest.mark.parametrize("step", [160, 592, 16_000, 10**6])
def test_the_voice_comes_back_as_it_was(voice, step):
    """Whatever the pieces: from just before it began until it was quiet, and nothing of the silence before."""

    async def main():
        async with make_talker(ECHO) as talker:
            for at in range(0, len(voice), step):
                await talker.hear(voice[at : at + step], SAMPLE_RATE)
            return await answer(talker), talker.state

    items, state = run(main())
    spoken = sound(items)
    assert items[0] == SpeechStarted(1) and items[-1] == SpeechEnded(1, True) and state == State.IDLE
    begun = next(at for at in range(len(voice)) if np.array_equal(voice[at : at + 1000], spoken[:1000]))
    assert 0.8 < begun / SAMPLE_RATE < 1.2
    assert np.array_equal(spoken, voice[begun : begun + len(spoken)])
    loud = np.flatnonzero(np.abs(voice) > 0.02)
    assert begun < loud[0] + 3200 and begun + len(spoken) > loud[-1]


def test_each_stretch_is_a_turn_and_release_ends_one(voice):
    async def main():
        async with make_talker(ECHO) as talker, reading(talker.speech()) as items, reading(talker.signals()) as signals:
            await talker.hear(np.concatenate([voice, voice]), SAMPLE_RATE)
            await talker.hear(voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)
            await talker.release()
            await talker.release()
            await asyncio.sleep(0.05)
            return items, signals

    items, signals = run(main())
    assert [item.turn for item in items if isinstance(item, SpeechStarted)] == [1, 2, 3]
    assert [item for item in items if isinstance(item, SpeechEnded)] == [SpeechEnded(n, True) for n in (1, 2, 3)]
    assert signals == [StateChanged(State.SPEAKING), StateChanged(State.IDLE)] * 3


def test_cancelled_it_is_quiet_until_the_next_voice(voice):
    async def main():
        async with make_talker(ECHO) as talker:
            await talker.hear(voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)
            heard = await talker.cancel(120.0)
            assert heard.turn == 1 and heard.heard_ms == 0 and await talker.cancel() is None
            await talker.hear(voice[2 * SAMPLE_RATE :], SAMPLE_RATE)
            await talker.hear(voice, SAMPLE_RATE)
            return await answer(talker)

    items = run(main())
    assert {item.turn for item in items} == {2}


def test_more_than_may_wait_waits_for_the_reader(voice):
    async def main():
        async with make_talker(TalkerConfig(kind="echo", ahead_s=1.0)) as talker:
            hearing = asyncio.ensure_future(talker.hear(np.concatenate([voice] * 3), SAMPLE_RATE))
            await asyncio.sleep(0.05)
            assert not hearing.done()
            turns = [await answer(talker) for _ in range(3)]
            await hearing
            return turns

    assert [items[0].turn for items in run(main())] == [1, 2, 3]


def test_a_file_is_heard_like_a_microphone(voice, tmp_path):
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice[: 2 * SAMPLE_RATE], SAMPLE_RATE)

    async def main():
        loop = asyncio.get_running_loop()
        async with make_talker(ECHO) as talker:
            begun = loop.time()
            await hear_file(talker, path)
            return await answer(talker), loop.time() - begun

    items, seconds = run(main())
    assert items[-1] == SpeechEnded(1, True) and 1.9 < seconds < 4


def test_it_reads_nothing():
    async def main():
        async with make_talker(ECHO) as talker:
            with pytest.raises(ValueError, match=r"talker.kind=offline"):
                await talker.say("hello")
            with pytest.raises(ValueError, match="heard_ms -1"):
                await talker.cancel(-1)
            assert await talker.cancel() is None

    run(main())
