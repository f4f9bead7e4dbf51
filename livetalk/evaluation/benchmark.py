"""How fast, and how near to what the machine can do: timings of blocks, and the machine's own rates, measured.

Knows no model: it times callables. Times are seconds; a rate of arithmetic counts multiplications and additions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from livetalk.geometry import FPS

TRIES = 7


@dataclass(frozen=True)
class Limits:
    """Measured rates of a device in one precision: matrix products in FLOP/s, copies in bytes/s read and written."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Path:
    """One way to make the same frames, timed. denoise, decode: seconds of each block, one after the other; whole:
    seconds of all `frames` in the stream as it is used; first: seconds from the sound to the first frames, with picture
    and prompt encoded before; flops: arithmetic of a block's denoising and of its decoding; passes: of a block;
    first_whole: seconds to the first frames with a session to open, and picture and prompt to encode; ready: seconds
    from weights in memory to the very first block, compiling and capturing included; memory: bytes at most; told: how
    blocks are made."""

    name: str
    denoise: Sequence[float]
    decode: Sequence[float]
    whole: float
    frames: int
    first: float
    flops: tuple[int, int]
    passes: int
    first_whole: float = 0.0
    ready: float = 0.0
    memory: int = 0
    told: str = ""

    @property
    def fps(self) -> float:
        return self.frames / self.whole

    def alone(self, seconds: Sequence[float]) -> float:
        """Frames a second of one part."""
        return self.frames / len(seconds) / float(np.median(seconds))

    def reached(self, limits: Limits) -> float:
        """Share of the device's rate of matrix products that the whole stream keeps up."""
        return sum(self.flops) * len(self.denoise) / self.whole / limits.flops

    def as_dict(self, limits: Limits) -> dict:
        """For JSON."""
        found = {
            "FPS": self.fps,
            "times real time": self.fps / FPS,
            "ms a pass": 1e3 * float(np.median(self.denoise)) / self.passes,
            "FPS, denoising alone": self.alone(self.denoise),
            "FPS, decoding alone": self.alone(self.decode),
            "first frames, ms": 1e3 * self.first,
            "first frames, picture and prompt to encode, ms": 1e3 * self.first_whole,
            "start from weights in memory to the first block, s": self.ready,
            "peak memory, GB": self.memory / 1e9,
            "GFLOP a block, denoising": self.flops[0] / 1e9,
            "GFLOP a block, decoding": self.flops[1] / 1e9,
            "share of the card's matrix products": self.reached(limits),
        }
        for name, values in (("denoising", self.denoise), ("decoding", self.decode)):
            for percent in (50, 95):
                found[f"ms a block, {name}, p{percent}"] = 1e3 * float(np.percentile(values, percent))
        return found


def wait(device: torch.device) -> None:
    """Until everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(act: Callable[[], object], device: torch.device, after: bool = True) -> float:
    """Seconds that `act` takes, the device's work included, or, without `after`, until it returns: what it gives is on
    the host then."""
    wait(device)
    start = time.perf_counter()
    act()
    if after:
        wait(device)
    return time.perf_counter() - start


def limits_of(device: torch.device, dtype: torch.dtype) -> Limits:
    """The best of TRIES: a square product on random data, and a copy that no cache holds."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(TRIES))
    source = torch.empty(2**29 if device.type == "cuda" else 2**26, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(TRIES))
    return Limits(2 * side**3 / product, 2 * source.nbytes / copy)


def table(paths: Sequence[Path], limits: Limits) -> str:
    """Markdown, a column a path."""
    columns = [path.as_dict(limits) for path in paths]
    lines = ["| | " + " | ".join(path.name for path in paths) + " |", "|---" * (len(paths) + 1) + "|"]
    for row in columns[0]:
        lines.append(f"| {row} | " + " | ".join(f"{column[row]:.3g}" for column in columns) + " |")
    return "\n".join(lines)
