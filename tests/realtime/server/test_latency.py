"""The stages from a typed sentence to its first frame are all there, add up, and make a table."""

from __future__ import annotations

import asyncio
import time

import pytest

from livetalk.realtime.server import latency
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talkers import Talkers


def test_the_stages_of_an_answer(studio, monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(latency, "REST_S", 0.7)
    began = time.monotonic()
    found = asyncio.run(latency.measure(studio, Talkers(TalkerConfig()), ["Hello!", "Who are you?"]))
    assert [list(stages) for stages in found] == [list(latency.STAGES)] * 2
    assert all(seconds >= 0 for stages in found for seconds in stages.values())
    assert 0.1 < sum(sum(stages.values()) for stages in found) < time.monotonic() - began
    lines = latency.table(found).splitlines()
    assert len(lines) == 7 and lines[-1].split()[:2] == ["in", "all"]
