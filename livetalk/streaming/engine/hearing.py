"""What blocks hear, from captured runs of the audio encoder, which is many small kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from livetalk.geometry import SAMPLES_PER_FRAME, Geometry
from livetalk.graphs import Captured
from livetalk.streaming.sound import Hearing

HEARD = 96
"""Blocks after which no new length of sound is heard: a hearing's past is at most a minute, then its lengths repeat."""


class HeardStream:
    """One stream's: the features of `hearing`, from a graph for every length of sound that its blocks hear, or, without
    graphs, from itself. What it returns is overwritten by the next call."""

    @torch.inference_mode()
    def __init__(
        self, hearing: Hearing, geometry: Geometry, dtype: torch.dtype, device: torch.device, graphs: bool
    ) -> None:
        self._hearing = hearing
        self._runs: dict[tuple[int, int, int], Captured] = {}
        if not graphs:
            return
        stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        for index in range(HEARD):
            frames = geometry.block_frames(index)
            if (kind := self.kind(frames)) not in self._runs:
                sound = torch.randn(1, kind[0], device=device).to(dtype)
                self._runs[kind] = Captured(self._run(frames), (sound,), stream, pool)

    def kind(self, frames: range) -> tuple[int, int, int]:
        """All that features depend on but the sound: its length, where the frames begin in it, and their number."""
        start, stop = self._hearing.span(frames)
        return stop - start, frames.start * SAMPLES_PER_FRAME - start, len(frames)

    def features(self, sound: Tensor, frames: range) -> Tensor:
        """Features [1, n, C] of frames from sound [1, S] of exactly their span."""
        run = self._runs.get(self.kind(frames))
        return self._hearing.features(sound, frames) if run is None else run(sound)

    def _run(self, frames: range):
        return lambda sound: self._hearing.features(sound, frames)
