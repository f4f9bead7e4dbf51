"""What the benchmark of training is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from livetalk.geometry import Geometry
from livetalk.models.dit import DiTConfig
from livetalk.training.dmd import DmdConfig
from livetalk.training.trainer import Learning, TrainConfig

CASES = {"ode": "", "dmd-1.3b": "1.3b", "dmd-14b": "14b"}
"""What is trained, and the size of the teacher that it needs while it trains."""


def _debug(**sizes: int) -> DiTConfig:
    small = {"ffn_dim": 64, "heads": 2, "text_dim": 16, "text_len": 8, "freq_dim": 16, "audio_dim": 8}
    return DiTConfig(**small | {"dim": 32, "layers": 4, "audio_hidden": 8} | sizes)


PRESETS = {
    "1.3b": {"1.3b": DiTConfig.wan_1_3b(), "14b": DiTConfig.wan_14b()},
    "debug": {"1.3b": _debug(), "14b": _debug(dim=64, layers=6)},
}


@dataclass(frozen=True)
class BenchTrainingRun:
    """`scripts/bench_training.sh`: seconds a training step, and where they go, with random weights.

    preset: 1.3b, the published sizes, or debug, the same in tiny. cases: some of CASES. samples: that a process takes
    at once, train.accumulate times a step (train.batch does not count). steps: timed, after `warmup` others and one of
    everyone who learns; exit steps take turns, so that with dmd.every=5 and four timesteps 20 steps show each case as
    often as the others. teacher_precision: as in DmdRun.
    """

    run: str = "bench_training"
    preset: str = "1.3b"
    cases: tuple[str, ...] = tuple(CASES)
    device: str = "auto"
    samples: int = 1
    steps: int = 20
    warmup: int = 5
    geometry: Geometry = field(default_factory=Geometry)
    timesteps: tuple[float, ...] = (1000.0, 937.5, 2500 / 3, 625.0)
    dmd: DmdConfig = DmdConfig(text_scale=6.0, audio_scale=6.0)
    teacher_precision: str = "bfloat16"
    train: TrainConfig = TrainConfig(batch=1, recompute=True, ema=0.99)
    critic: Learning = Learning()
    output: str = "outputs/bench_training"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not known: use {' or '.join(PRESETS)}")
        if unknown := [case for case in self.cases if case not in CASES]:
            raise ValueError(f"cases: {unknown[0]!r} is not known: use some of {', '.join(CASES)}")
        if min(self.samples, self.steps, self.warmup) < 1 or not self.cases:
            raise ValueError(f"samples={self.samples}, steps={self.steps}, warmup={self.warmup}: all are at least 1")
        if self.train.graph:
            raise ValueError("train.graph=true: captured steps cannot be timed by parts, leave it out")
        if self.train.at_once:
            raise ValueError(
                f"train.at_once={self.train.at_once}: say samples=N of a part and train.accumulate=N parts"
            )
