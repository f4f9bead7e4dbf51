"""How far ahead of playback to render, and when to render silence: settings and arithmetic, no threads, no timers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, isfinite

from livetalk.geometry import FPS, SAMPLE_RATE
from livetalk.streaming.engine.config import EngineConfig

Clock = Callable[[], float]
"""The playback position: seconds of the stream that were shown so far."""


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a stream; times in milliseconds of playback.

    lead: a block is begun only while less than this is ready and not yet shown; afterwards up to a block more is.
    reserve: the time a block may take from its beginning to the player. Silence is rendered when no more than this is
    left to show, what is to be shown within it is no longer taken back when speech comes, and no more than that is
    shown on, silent, after an interruption.
    prebuffer: sound that must have been pushed before speech begins after silence. 0 suits talkers that are faster than
    real time; a microphone needs a block and the encoder's look-ahead, about 1000.
    backlog_s: seconds of sound that may wait to be rendered.
    past, ahead: what an audio encoder of kind "clip" hears before and after a block; kind "window" has its own.
    engine: how blocks are made. text_visits: the text encoder is on the device only while it encodes a prompt; prompts:
    a folder to keep features of prompts in, "" for none.
    """

    lead_ms: int = 600
    reserve_ms: int = 450
    prebuffer_ms: int = 0
    backlog_s: float = 60.0
    past_ms: int = 5000
    ahead_ms: int = 250
    engine: EngineConfig = EngineConfig()
    text_visits: bool = False
    prompts: str = ""

    def __post_init__(self) -> None:
        for name in ("lead_ms", "reserve_ms", "prebuffer_ms", "past_ms", "ahead_ms"):
            if not 0 <= getattr(self, name) <= 60_000:
                raise ValueError(f"{name}={getattr(self, name)}: give milliseconds from 0 to 60000")
        if self.reserve_ms > self.lead_ms:
            raise ValueError(
                f"reserve_ms={self.reserve_ms} is more than lead_ms={self.lead_ms}: silence would come too late, "
                "make the lead at least the reserve"
            )
        if not 0 < self.backlog_s <= 3600:
            raise ValueError(f"backlog_s={self.backlog_s}: give seconds above 0, at most 3600")

    @property
    def backlog(self) -> int:
        """The most samples that may wait."""
        return round(self.backlog_s * SAMPLE_RATE)

    def journal(self, block_seconds: float) -> int:
        """How many blocks one must be able to take back, from the block being shown to the latest begun.

        The latest was begun with at most the lead ready after the one being shown; one more is kept for a player that
        reports late.
        """
        return floor(self.lead_ms / 1000 / block_seconds) + 3


class Pace:
    """Reads the clock, which never runs backwards here, and says what is due."""

    def __init__(self, config: StreamConfig, clock: Clock | None) -> None:
        self.config = config
        self._clock = clock
        self._latest = 0.0

    @property
    def live(self) -> bool:
        """Whether there is a clock to keep pace with; without one, only what was pushed is rendered."""
        return self._clock is not None

    def played(self) -> float:
        """Seconds shown so far."""
        position = self._clock()
        assert isfinite(position), f"the clock says {position}"
        self._latest = max(self._latest, position)
        return self._latest

    def due(self, start: float) -> bool:
        """Whether a block that is shown from `start` seconds on may be begun."""
        return not self.live or start - self.played() <= self.config.lead_ms / 1000

    def starving(self, start: float) -> bool:
        """Whether it must be begun now, with silence for what has not been pushed."""
        return self.live and start - self.played() <= self.config.reserve_ms / 1000

    def settled(self) -> int:
        """The first frame that can still be replaced in time."""
        return frame_after(self.played() + self.config.reserve_ms / 1000)


def frame_after(seconds: float) -> int:
    """The first frame that is not yet shown when `seconds` of the stream were."""
    return ceil(seconds * FPS)
