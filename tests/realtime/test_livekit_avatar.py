"""LiveKit's contract of an avatar, held with its own runner, queues and audio source; only the room is made up."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from livetalk.geometry import FPS, SAMPLE_RATE
from livetalk.realtime.livekit_avatar import EARLY_S, AvatarVideo, avatar_runner
from livetalk.streaming.pace import StreamConfig
from tests.realtime.conftest import run
from tests.realtime.livekit_room import Recorder, Room, call
from tests.streaming.conftest import FACE, make, quick  # noqa: F401

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.skipif(find_spec("livekit") is None, reason="pip install livetalk[livekit]"),
]
STILL = np.zeros((16, 16, 3), np.uint8)
WITHIN = 1 / FPS + EARLY_S + 1e-6
"""Of an interruption's position: the frame that is going out, and what goes out early."""


@pytest.fixture
def performer(make):  # noqa: F811
    return quick(make(StreamConfig(lead_ms=300, reserve_ms=100), timesteps=(1000.0,)))


class Stage:
    """An agent's audio output, the avatar that plays it, and what left the tracks. ends: (position, interrupted)."""

    def __init__(self, video, runner, output, recorder) -> None:
        self.video, self.runner, self.output, self.recorder = video, runner, output, recorder
        self.ends, self.starts = [], []
        output.on("playback_finished", lambda event: self.ends.append((event.playback_position, event.interrupted)))
        output.on("playback_started", self.starts.append)

    async def speak(self, seconds: float, rate: int = SAMPLE_RATE, first: int = 1, channels: int = 1) -> np.ndarray:
        """A segment of numbered samples, in pieces of 100 ms, all at once; not yet ended."""
        from livekit import rtc

        pcm = (np.arange(first, first + round(seconds * rate)) % 30_000).astype(np.int16)
        for at in range(0, len(pcm), rate // 10):
            piece = np.repeat(pcm[at : at + rate // 10, None], channels, 1)
            await self.output.capture_frame(rtc.AudioFrame(piece.tobytes(), rate, channels, len(piece)))
        return pcm

    async def heard(self, samples: int) -> None:
        async with asyncio.timeout(10):
            while sum(len(pcm) for _, pcm in self.recorder.sound) < samples:
                await asyncio.sleep(0.005)


def beside():
    """The agent in the avatar's process: its output is what the runner receives."""
    from livekit.agents.voice.avatar import QueueAudioOutput

    output = QueueAudioOutput(sample_rate=SAMPLE_RATE, wait_playback_start=True)
    return output, output, Room()


def apart():
    """The agent elsewhere: its sound, its interruptions and what is told of the playback go over the room."""
    from livekit.agents.voice.avatar import DataStreamAudioOutput, DataStreamAudioReceiver

    agent, avatar = call()
    output = DataStreamAudioOutput(agent, destination_identity="avatar", wait_playback_start=True)
    return output, DataStreamAudioReceiver(avatar), avatar


@asynccontextmanager
async def staged(performer, monkeypatch, linked=beside):  # noqa: F811
    video = AvatarVideo(partial(performer.session, FACE, "nods", 0), STILL)
    (output, receiver, room), recorder = linked(), Recorder()
    runner = avatar_runner(room, receiver, video)
    recorder.watch(runner, monkeypatch)
    await runner.start()
    try:
        yield Stage(video, runner, output, recorder)
    finally:
        await runner.aclose()
        await video.aclose()


def play(performer, monkeypatch, act, linked=beside):  # noqa: F811
    """Runs act(stage); no task, thread or file is left."""

    async def main():
        from livekit import rtc

        # The package keeps a queue's thread and pipe for the process from its first use on.
        rtc.AudioSource(SAMPLE_RATE, 1)
        async with staged(performer, monkeypatch, linked) as stage:
            return await act(stage)

    asyncio.run(_warm())
    return run(main(), 30)


async def _warm() -> None:
    from livekit import rtc

    await rtc.AudioSource(SAMPLE_RATE, 1).aclose()


def test_it_is_a_video_generator(performer, monkeypatch):  # noqa: F811
    from livekit.agents.voice.avatar import VideoGenerator

    async def act(stage):
        assert isinstance(stage.video, VideoGenerator)
        await asyncio.sleep(0.3)
        kinds = [options.source for _, options in stage.runner._room.local_participant.tracks]
        assert len(kinds) == 2 and len(set(kinds)) == 2
        return len(stage.recorder.frames)

    assert play(performer, monkeypatch, act) >= 3


def test_a_segment_ends_once_at_its_position_when_it_was_heard(performer, monkeypatch):
    async def act(stage):
        await asyncio.sleep(0.3)
        assert not stage.recorder.sound, "silence must not count as playback"
        pcm = await stage.speak(0.73)
        stage.output.flush()
        end = await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        at, last = stage.recorder.sound[-1]
        over = asyncio.get_running_loop().time() - (at + len(last) / SAMPLE_RATE)
        assert -0.04 < over < 0.1
        await asyncio.sleep(0.2)
        assert end.playback_position == pytest.approx(0.73) and not end.interrupted
        assert np.array_equal(stage.recorder.heard, pcm)
        return stage.ends, len(stage.starts)

    assert play(performer, monkeypatch, act) == ([(pytest.approx(0.73), False)], 1)


@pytest.mark.parametrize(("rate", "channels"), [(24_000, 1), (48_000, 2), (22_050, 1)])
def test_any_rate_has_the_right_position(performer, monkeypatch, rate, channels):
    async def act(stage):
        await stage.speak(0.4, rate, channels=channels)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        return stage.ends

    [(position, interrupted)] = play(performer, monkeypatch, act)
    assert position == pytest.approx(0.4, abs=2e-4) and not interrupted


def test_segments_back_to_back(performer, monkeypatch):
    """Pushed all at once, one of them a single short frame: each ends once, in order, at its own position."""
    lengths = [0.31, 0.02, 0.1, 0.25]

    async def act(stage):
        said = []
        for seconds in lengths:
            said.append(await stage.speak(seconds, first=1 + sum(map(len, said))))
            stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 15)
        assert np.array_equal(stage.recorder.heard, np.concatenate(said))
        return stage.ends

    assert play(performer, monkeypatch, act) == [(pytest.approx(seconds), False) for seconds in lengths]


def test_a_slow_voice_is_one_segment(performer, monkeypatch):
    """Sound with holes in time: what is between does not count, and nothing is lost."""

    async def act(stage):
        for part in range(3):
            await stage.speak(0.15, first=1 + part * 2400)
            await asyncio.sleep(0.6)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        assert np.array_equal(stage.recorder.heard, np.arange(1, 7201))
        return stage.ends

    assert play(performer, monkeypatch, act) == [(pytest.approx(0.45), False)]


def test_an_interruption_stops_the_sound_and_tells_where(performer, monkeypatch):
    async def act(stage):
        await stage.speak(5)
        stage.output.flush()
        await stage.heard(6000)
        stage.output.clear_buffer()
        sent = len(stage.recorder.heard)
        end = await asyncio.wait_for(stage.output.wait_for_playout(), 5)
        await asyncio.sleep(0.5)
        assert end.interrupted and len(stage.recorder.heard) <= sent + 1000
        # The numbers say that it was this much from the beginning.
        assert np.array_equal(stage.recorder.heard, np.arange(1, len(stage.recorder.heard) + 1))
        assert abs(end.playback_position - sent / SAMPLE_RATE) <= WITHIN
        assert end.playback_position == pytest.approx(len(stage.recorder.heard) / SAMPLE_RATE)
        return stage.ends

    assert len(play(performer, monkeypatch, act)) == 1


def test_interrupted_again_and_again(performer, monkeypatch):
    """At any moment, also before anything is heard, twice in a row, ended before or after; then another segment."""
    waits = [0.0, 0.01, 0.2, 0.05, 0.3, 0.0, 0.12, 0.25]

    async def act(stage):
        for turn, wait in enumerate(waits):
            await stage.speak(1.0, first=1 + turn * 100)
            if turn % 2:
                stage.output.flush()
            await asyncio.sleep(wait)
            stage.output.clear_buffer()
            if turn % 3 == 0:
                stage.output.clear_buffer()
            # An agent ends the segment that it cut off, too.
            stage.output.flush()
            await asyncio.wait_for(stage.output.wait_for_playout(), 5)
        before, mark = len(stage.recorder.heard), 20_000
        assert len(stage.ends) == len(waits) and all(interrupted for _, interrupted in stage.ends)
        assert sum(position for position, _ in stage.ends) == pytest.approx(before / SAMPLE_RATE)
        await stage.speak(0.2, first=mark)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 5)
        assert np.array_equal(stage.recorder.heard[before:], np.arange(mark, mark + 3200))
        return stage.ends[len(waits) :]

    assert play(performer, monkeypatch, act) == [(pytest.approx(0.2), False)]


def test_an_agent_elsewhere(performer, monkeypatch):
    """Segments and interruptions over byte streams and remote calls: one end for each, and nothing of one that was cut
    off is heard after it, also if that was before it was heard at all."""

    async def act(stage):
        await stage.speak(0.3)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        for turn, wait in enumerate((0.5, 0.05, 0.3, 0.1)):
            await stage.speak(2.0, first=10_000 * (turn % 2) + 1)
            if turn < 2:
                stage.output.flush()
            await asyncio.sleep(wait)
            stage.output.clear_buffer()
            stage.output.flush()
            assert (await asyncio.wait_for(stage.output.wait_for_playout(), 1.9)).interrupted
        before = len(stage.recorder.heard)
        for first in (25_000, 28_000):
            await stage.speak(0.1, first=first)
            stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        wanted = np.concatenate([np.arange(first, first + 1600) for first in (25_000, 28_000)])
        assert np.array_equal(stage.recorder.heard[before:], wanted)
        assert sum(position for position, _ in stage.ends[:5]) == pytest.approx(before / SAMPLE_RATE)
        # What was told, and not what the agent made up for want of it.
        told = [call for call, _ in stage.runner._room.local_participant.calls if call == "lk.playback_finished"]
        assert len(told) == len(stage.ends) == 7
        # The package keeps the latest of each identity for the process.
        for registry in (type(stage.output)._playback_finished_handlers, type(stage.output)._playback_started_handlers):
            registry.clear()
        type(stage.runner._audio_recv)._clear_buffer_handlers.clear()
        return [interrupted for _, interrupted in stage.ends]

    assert play(performer, monkeypatch, act, apart) == [False, True, True, True, True, False, False]


def test_clearing_nothing_tells_nothing(performer, monkeypatch):
    async def act(stage):
        stage.output.clear_buffer()
        await asyncio.sleep(0.05)
        await stage.speak(0.1)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 5)
        stage.output.clear_buffer()
        stage.output.flush()
        await asyncio.sleep(0.2)
        return stage.ends

    assert play(performer, monkeypatch, act) == [(pytest.approx(0.1), False)]


def test_picture_and_sound_are_in_step(performer, monkeypatch):
    """The decoder numbers its frames by their grey level, the samples number themselves: where both leave the tracks,
    sample n * 1000 of a segment is heard when the frame that belongs to it is seen."""

    async def act(stage):
        await asyncio.sleep(0.4)
        await stage.speak(1.5)
        stage.output.flush()
        await asyncio.wait_for(stage.output.wait_for_playout(), 10)
        begins, first = stage.recorder.sound[0]
        seen = {grey: at for at, grey in reversed(stage.recorder.frames)}
        # The frame that was shown when the first sample was heard, and all that follow it.
        start = min(seen, key=lambda grey: abs(seen[grey] - begins))
        heard, skews = 0, []
        for at, pcm in stage.recorder.sound:
            assert heard % 1000 == 0
            skews.append(at - seen[start + heard // 1000])
            heard += len(pcm)
        return skews, [at for at, _ in stage.recorder.frames]

    skews, times = play(performer, monkeypatch, act)
    assert len(skews) == 24 and max(map(abs, skews)) < 0.045
    steps = np.diff(times[4:])
    assert abs(np.mean(steps) - 1 / FPS) < 0.004


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_stream_is_raised_to_its_reader(performer, monkeypatch):
    async def main():
        video = AvatarVideo(partial(performer.session, FACE, "nods", 0), STILL)
        monkeypatch.setattr(video._live.session._take, "decode", lambda rendering: 1 / 0)
        try:
            with pytest.raises(ZeroDivisionError):
                async for _ in video:
                    pass
        finally:
            await video.aclose()

    run(main())


def test_closing_ends_the_iteration_and_lets_go_of_who_waits(performer, monkeypatch):
    async def main():
        from livekit import rtc
        from livekit.agents.voice.avatar import AudioSegmentEnd

        video = AvatarVideo(partial(performer.session, FACE, "nods", 0), STILL)
        await video.push_audio(rtc.AudioFrame(bytes(3200), SAMPLE_RATE, 1, 1600))
        waiting = asyncio.create_task(video.push_audio(AudioSegmentEnd()))
        frames = []

        async def watch():
            async for item in video:
                frames.append(item)

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.02)
        await video.aclose()
        await video.aclose()
        await asyncio.wait_for(asyncio.gather(waiting, watching), 2)

    run(main())


@pytest.mark.slow
def test_the_shipped_student_speaks(monkeypatch):
    """Two seconds of speech through the nano student on a CPU."""
    from livetalk import LiveTalkPipeline
    from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, example_prompt, read_request

    pipe = LiveTalkPipeline.from_pretrained("nano", device="cpu")
    request = read_request(EXAMPLE_IMAGE, EXAMPLE_AUDIO, example_prompt(), duration=2)
    performer = pipe.performer()

    async def act(stage):
        from livekit import rtc

        pcm = (request.audio * 32767).astype(np.int16)
        await stage.output.capture_frame(rtc.AudioFrame(pcm.tobytes(), SAMPLE_RATE, 1, len(pcm)))
        stage.output.flush()
        end = await asyncio.wait_for(stage.output.wait_for_playout(), 20)
        assert np.array_equal(stage.recorder.heard, pcm)
        return end.playback_position

    still = np.zeros((128, 128, 3), np.uint8)
    monkeypatch.setattr("tests.realtime.test_livekit_avatar.STILL", still)
    assert play(performer, monkeypatch, act) == pytest.approx(2, abs=0.01)
