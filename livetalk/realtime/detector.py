"""Whether somebody speaks: by level and zero crossings, with no model and no dependency."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DetectorConfig:
    """Levels in dB above the background noise, which is followed; times in milliseconds.

    above_db: a voice begins when the level is that much above the noise for `onset_ms`; below_db: it is still there
    while it is that much above. quiet_ms: silence that ends it. least_db: what is below this level (0 dB: full scale)
    is never a voice.
    """

    above_db: float = 9.0
    below_db: float = 5.0
    onset_ms: int = 150
    quiet_ms: int = 600
    least_db: float = -50.0

    def __post_init__(self) -> None:
        if not 0 < self.below_db <= self.above_db <= 60:
            raise ValueError(
                f"detector.below_db={self.below_db}, above_db={self.above_db}: give 0 < below_db <= above_db <= 60"
            )
        if not 20 <= self.onset_ms <= 2000 or not 100 <= self.quiet_ms <= 10_000:
            raise ValueError(
                f"detector.onset_ms={self.onset_ms}, quiet_ms={self.quiet_ms}: give 20 to 2000 and 100 to 10000"
            )
        if not -90 <= self.least_db <= 0:
            raise ValueError(f"detector.least_db={self.least_db}: give dB from -90 to 0")
