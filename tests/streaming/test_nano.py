"""The shipped student, live: bit for bit what the offline pipeline renders, on a CPU."""

import numpy as np
import pytest
import torch

from livetalk import LiveTalkPipeline
from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, example_prompt, read_request
from livetalk.streaming.pace import StreamConfig
from tests.streaming.conftest import frames_of, sound_of, take


@pytest.fixture(scope="module")
def pipe():
    return LiveTalkPipeline.from_pretrained("nano", device="cpu")


def test_nano_live_is_nano_offline(pipe):
    """Closely on every machine, and on one machine exactly between pieces of any size."""
    request = read_request(EXAMPLE_IMAGE, EXAMPLE_AUDIO, example_prompt(), seed=3, duration=1.5)
    offline = np.concatenate(list(pipe.stream(request)))
    performer, streams = pipe.performer(), []
    for size in (592, 16_000):
        session, blocks = performer.session(EXAMPLE_IMAGE, example_prompt(), seed=3), []
        for at in range(0, len(request.audio), size):
            session.push_audio(request.audio[at : at + size])
            blocks += session
        session.flush()
        streams.append([*blocks, *session])
    assert np.array_equal(frames_of(streams[0]), frames_of(streams[1]))
    assert np.abs(frames_of(streams[0])[: len(offline)].astype(int) - offline).max() <= 2
    assert np.array_equal(sound_of(streams[0])[: len(request.audio)], request.audio)


@pytest.mark.slow
def test_the_seam_of_an_interruption_is_no_jump(pipe):
    """Where the stream is cut in mid-block, the step from the last frame shown to the first new one is about a step
    between two frames of speech: the head stays where it is, only the mouth closes."""
    request = read_request(EXAMPLE_IMAGE, EXAMPLE_AUDIO, example_prompt())
    performer = pipe.performer(StreamConfig(lead_ms=8000))
    seams, steps = [], []
    for cut in range(23, 60, 4):
        session = performer.session(EXAMPLE_IMAGE, example_prompt())
        session.push_audio(request.audio)
        shown = frames_of(take(session, performer.geometry.block_of(cut) + 1)).astype(float)
        session.interrupt(cut / 16)
        after = session.next_block(fill=True).frames[0]
        seams.append(np.abs(after - shown[cut - 1]).mean())
        steps.append(np.abs(np.diff(shown, axis=0)).mean(axis=(1, 2, 3)).max())
    assert np.mean(seams) < 1.2 * np.mean(steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nano_live_on_a_gpu():
    """In threads, each half on its own stream, against one step after the other."""
    pipe = LiveTalkPipeline.from_pretrained("nano", device="cuda", precision="float32")
    request = read_request(EXAMPLE_IMAGE, EXAMPLE_AUDIO, example_prompt())
    performer = pipe.performer()
    session = performer.session(EXAMPLE_IMAGE, example_prompt())
    session.push_audio(request.audio)
    session.flush()
    with performer.live(EXAMPLE_IMAGE, example_prompt()) as live:
        live.push_audio(request.audio)
        live.finish()
        assert np.abs(frames_of(list(live)).astype(int) - frames_of(list(session))).max() <= 2
