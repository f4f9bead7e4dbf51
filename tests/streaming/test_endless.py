"""A stream without end: after hundreds and ten thousand blocks memory and time are what they were."""

from resource import RUSAGE_SELF, getrusage
from time import process_time

import numpy as np
import pytest

from livetalk.geometry import FPS, Geometry
from livetalk.streaming.pace import StreamConfig
from tests.leaks import held
from tests.streaming.conftest import FACE, numbered

GEOMETRY = Geometry(height=16, width=16, window=9, anchors=3)


def run(make, blocks: int) -> None:
    """Speech, silence, interruptions and new prompts, over and over; the clock follows closely."""
    position = 0.0
    performer = make(StreamConfig(lead_ms=300, reserve_ms=300), GEOMETRY, timesteps=(1000.0,))
    session = performer.session(FACE, "nods", clock=lambda: position)
    seconds, memory, peaks, stop = [], [], [], 0
    for count in range(blocks):
        if count % 10 == 0:
            session.push_audio(numbered(1, 30_000))
        if count % 11 == 0:
            session.interrupt()
        if count % 50 == 0:
            session.set_prompt(f"nods {count} times")
        start = process_time()
        block = session.next_block(fill=True)
        seconds.append(process_time() - start)
        assert block.first >= position * FPS and block.stop >= stop
        stop = block.stop
        position = stop / FPS - 0.2
        if count % 50 == 49:
            memory.append(held(session, {id(performer)}))
            peaks.append(getrusage(RUSAGE_SELF).ru_maxrss)
    assert session._take.blocks * GEOMETRY.block > 1024 and block.frames.std() > 0
    half = len(memory) // 2
    assert max(memory[half:]) <= max(memory[:half])
    assert peaks[-1] - peaks[half - 1] < 16 * 1024, "KiB of the process"
    first, last = (float(np.median(part)) for part in (seconds[blocks // 10 : blocks // 2], seconds[blocks // 2 :]))
    assert last < 1.5 * first, f"{first:.4f} s a block, then {last:.4f} s"


def test_four_hundred_blocks(make):
    """Past latent frame 1024, where published positions end."""
    run(make, 400)


@pytest.mark.slow
def test_ten_thousand_blocks(make):
    run(make, 10_000)
