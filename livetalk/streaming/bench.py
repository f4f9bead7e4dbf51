"""What the benchmark of a live stream is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from livetalk.streaming.engine.config import EngineConfig

PRESETS = ("nano", "1.3b")
WAYS = ("plain", "exact", "half", "fp8")
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class BenchRun:
    """`scripts/bench.sh`: the speed of a live stream on this machine.

    preset: nano, the shipped family, or 1.3b, the published shape with random weights (speed does not depend on them).
    resolution: WIDTHxHEIGHT in pixels, "" for the preset's own. blocks: in steady state, after `warmup` others.
    decoder: as at inference. kernels: write where the time of a block goes on a GPU, kernel by kernel, beside the
    figures. words: tokens of the prompt in the 1.3b preset. live: time the answer to a typed sentence instead.

    ways: to make the same blocks, timed side by side, none for all that make sense: plain, one kernel after the other;
    exact, the engine as `engine` says, in the network's precision; half, a float32 network's products in bfloat16; fp8,
    the engine with linears and, where there is a kernel, attention in fp8.
    """

    run: str = "bench"
    preset: str = "nano"
    resolution: str = ""
    device: str = "auto"
    precision: str = "auto"
    decoder: str = "auto"
    ways: tuple[str, ...] = ()
    blocks: int = 50
    warmup: int = 7
    words: int = 100
    kernels: bool = False
    live: bool = False
    engine: EngineConfig = EngineConfig()
    output: str = "outputs/bench"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not known: use {' or '.join(PRESETS)}")
        if self.blocks < LEAST_BLOCKS or self.warmup < 1:
            raise ValueError(f"blocks={self.blocks}, warmup={self.warmup}: at least {LEAST_BLOCKS} and 1")
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise ValueError(f"ways: {unknown[0]!r} is not known: use some of {', '.join(WAYS)}")
        if not 0 <= self.words <= 512:
            raise ValueError(f"words={self.words}: give a number from 0 to 512")
        self.size()

    def size(self) -> tuple[int, int] | None:
        """Width and height, None for the preset's own. Raises ValueError for what is not WIDTHxHEIGHT."""
        if not self.resolution:
            return None
        width, by, height = self.resolution.partition("x")
        if not (by and width.isdecimal() and height.isdecimal()):
            raise ValueError(f"resolution {self.resolution!r}: write WIDTHxHEIGHT, for example 512x512")
        return int(width), int(height)
