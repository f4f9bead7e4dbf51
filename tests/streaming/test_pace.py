"""Lead, reserve and how much must be remembered: arithmetic."""

import pytest

from livetalk.streaming.pace import Pace, StreamConfig, frame_after
from tests.streaming.conftest import HandClock


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lead_ms": -1}, "lead_ms=-1"),
        ({"prebuffer_ms": 100_000}, "prebuffer_ms"),
        ({"lead_ms": 100, "reserve_ms": 200}, "more than lead_ms=100"),
        ({"backlog_s": 0}, "backlog_s=0"),
    ],
)
def test_impossible_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        StreamConfig(**settings)


def test_lead_and_reserve():
    clock = HandClock()
    pace = Pace(StreamConfig(lead_ms=500, reserve_ms=250), clock)
    clock.seconds = 10.0
    assert pace.due(10.5) and not pace.due(10.51)
    assert pace.starving(10.25) and not pace.starving(10.26)
    assert pace.settled() == 164
    clock.seconds = 9.0
    assert pace.played() == 10.0, "a clock that runs backwards is not followed"


def test_without_a_clock_everything_is_due_and_nothing_starves():
    pace = Pace(StreamConfig(), None)
    assert not pace.live and pace.due(1e9) and not pace.starving(0)


@pytest.mark.parametrize(("seconds", "frame"), [(0, 0), (1 / 32, 1), (1 / 16, 1), (0.99, 16), (1, 16)])
def test_the_frame_after(seconds, frame):
    assert frame_after(seconds) == frame


@pytest.mark.parametrize(("lead", "blocks"), [(0, 3), (500, 3), (750, 4), (2000, 5)])
def test_the_journal_reaches_from_the_block_shown_to_the_latest(lead, blocks):
    assert StreamConfig(lead_ms=lead, reserve_ms=0).journal(0.75) == blocks
