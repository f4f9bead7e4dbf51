"""Is a run going well? Alarms on what is logged and seen, and the rule by which the best checkpoint is chosen.

A row is what a run writes to metrics.jsonl: numbers by name.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from livetalk.training import checkpoint

log = logging.getLogger(__name__)

Row = Mapping[str, float]
CRITIC_LOSS = "critic loss"
BAD_FRAMES = ("black frames", "frozen frames")
BETWEEN = ("motion", "contrast", "sharpness")
SCORES = ("A/V correlation", "mouth like the teacher's")
FIRST = 3  # logs whose mean is the critic's loss at the start
ASIDE = "last-good"


@dataclass(frozen=True)
class HealthConfig:
    """When a run warns; after `patience` warnings of a kind in a row (0: never) it stops. What a healthy checkpoint is.

    gradient: norm under which a gradient is dead; critic: multiple of its loss at the start, which is that of the
    teacher's weights, above which the critic is far off; bad_frames: by how much the share of black or frozen frames
    may exceed the teacher's. Healthy: motion, contrast and sharpness are `least` to `most` times the teacher's,
    identity lies at most `identity` below.
    """

    gradient: float = 1e-9
    critic: float = 4.0
    bad_frames: float = 0.5
    patience: int = 3
    least: float = 0.5
    most: float = 2.0
    identity: float = 0.1

    def __post_init__(self) -> None:
        if self.patience < 0 or self.critic <= 1 or not 0 <= self.least <= 1 <= self.most:
            raise ValueError(
                f"health: patience {self.patience} is at least 0, critic {self.critic} above 1, and 1 lies between "
                f"least {self.least} and most {self.most}"
            )

    @property
    def rule(self) -> str:
        """In words, for reports."""
        return (
            f"highest {SCORES[0]} (without truth: {SCORES[1]}) among checkpoints whose {', '.join(BETWEEN)} are "
            f"{self.least:g} to {self.most:g} times the teacher's and whose identity similarity is at most "
            f"{self.identity:g} below; ties to the later; without judges the latest such; if there is none, the latest"
        )


class HopelessError(ValueError):
    """The run cannot recover by itself. What is kept and what to try is in the message."""


def healthy(row: Row, teacher: Row, config: HealthConfig) -> bool:
    """Whether a checkpoint may be the best. motion and contrast are over the teacher's already; what nobody measured
    counts neither way."""
    ratios = [row["motion"], row["contrast"]]
    if teacher["sharpness"] > 0:
        ratios.append(row["sharpness"] / teacher["sharpness"])
    alike = "identity similarity" not in row or row["identity similarity"] >= (
        teacher["identity similarity"] - config.identity
    )
    return alike and all(config.least <= ratio <= config.most for ratio in ratios)


def best(rows: Sequence[Row], teacher: Row, config: HealthConfig) -> Row:
    """The row that HealthConfig.rule chooses, from those of a run in order of steps."""
    fit = [row for row in rows if healthy(row, teacher, config)]
    if not fit:
        return rows[-1]
    score = next((name for name in SCORES if name in fit[-1]), None)
    scored = [row for row in fit if score in row]
    return max(scored, key=lambda row: (row[score], row["step"])) if scored else fit[-1]


class Watch:
    """Warns, and stops a run in `folder` that cannot recover.

    At the first warning the checkpoint before it is set aside, where newer ones do not push it out; when the run is
    well again it goes, and when the run is stopped it alone is left, so that the next start goes on from there.
    rows: what the run has logged before, in order. settle: waits until no checkpoint is being written.
    """

    def __init__(
        self, config: HealthConfig, folder: Path, rows: Sequence[Row] = (), settle: Callable[[], None] = lambda: None
    ) -> None:
        self.config, self.folder, self.settle = config, Path(folder), settle
        self.counts: Counter[str] = Counter()
        self.critic = [row[CRITIC_LOSS] for row in rows if CRITIC_LOSS in row][:FIRST]

    def scalars(self, step: int, row: Row) -> None:
        """Looks at what training logs. Raises HopelessError."""
        config = self.config
        for name, value in row.items():
            if name.endswith("grad_norm"):
                self._note(step, name, value < config.gradient, f"{name} is {value:.2g}: hardly a gradient arrives")
        if CRITIC_LOSS not in row:
            return
        if len(self.critic) < FIRST:
            self.critic.append(row[CRITIC_LOSS])
        start = sum(self.critic) / len(self.critic)
        said = f"{CRITIC_LOSS} is {row[CRITIC_LOSS]:.3g}, at the start {start:.3g}: the critic does not follow"
        self._note(step, CRITIC_LOSS, row[CRITIC_LOSS] > config.critic * start, said)

    def frames(self, step: int, row: Row, teacher: Row) -> None:
        """Looks at the figures of sampled clips. Raises HopelessError."""
        for name in BAD_FRAMES:
            said = f"{name}: {row[name]:.0%} of the student's, {teacher[name]:.0%} of the teacher's"
            self._note(step, name, row[name] - teacher[name] > self.config.bad_frames, said)

    def _note(self, step: int, kind: str, bad: bool, said: str) -> None:
        well = not any(self.counts.values())
        self.counts[kind] = self.counts[kind] + 1 if bad else 0
        if not any(self.counts.values()):
            shutil.rmtree(self.folder / ASIDE, ignore_errors=True)
        if not bad:
            return
        log.warning("step %d: %s", step, said)
        self.settle()  # what is written meanwhile would be left out now, and be the newest afterwards
        if well:
            set_aside(self.folder, step)
        if 0 < self.config.patience <= self.counts[kind]:
            raise HopelessError(
                f"step {step}: {said}, {self.counts[kind]} times in a row. Stopped: {go_back(self.folder)}. Run again "
                "with a lower train.lr, or with health.patience=0 to go on regardless"
            )


def set_aside(folder: Path, step: int) -> None:
    """Copies the newest checkpoint before `step` to where the rotation does not reach, unless one is there already."""
    before = [path for path in checkpoint.whole(folder) if int(path.name.removeprefix("step-")) < step]
    if before and not (folder / ASIDE).exists():
        partial = folder / f".{ASIDE}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(before[-1], partial / before[-1].name)
        partial.rename(folder / ASIDE)


def go_back(folder: Path) -> str:
    """Leaves the checkpoint that was set aside as the run's only one; says what is there now."""
    for good in (folder / ASIDE).glob("step-*"):
        for path in checkpoint.whole(folder):
            shutil.rmtree(path)
        good.rename(folder / good.name)
        shutil.rmtree(folder / ASIDE)
        return f"the last good checkpoint, {folder / good.name}, is kept"
    return f"no checkpoint of it is good, remove {folder} to start anew"
