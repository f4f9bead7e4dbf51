"""A training step as a CUDA graph: launched once instead of a thousand times.

Small networks are bound by the host that launches their kernels, not by the card. A captured step repeats the same
kernels on the same memory, so it must not wait for the card, and its shapes must not change: the trainer captures one
graph for every kind of step its objective names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

WARM_UP = 3
"""Steps of a kind that run as usual before the capture, so that compilers and libraries have settled."""

Step = Callable[[torch.Generator], dict[str, Tensor]]


class GraphedStep:
    """Runs `step(generator)`, eagerly at first, then as a captured graph; both draw the same numbers from a seed.

    step: gradients, clipping and optimiser of one update, with the learning rate in a tensor and all randomness from
    the generator. What it returns is overwritten by the next call of the same kind.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device)
        self.generator = torch.Generator(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}

    def __call__(self, kind: Hashable, seed: int) -> dict[str, Tensor]:
        self.generator.manual_seed(seed)
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            out = self._run(kind)
        current.wait_stream(self.stream)
        return out

    def _run(self, kind: Hashable) -> dict[str, Tensor]:
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self.seen[kind] <= WARM_UP:
            return self.step(self.generator)
        if kind not in self.graphs:
            self.graphs[kind] = self._capture()
        graph, out = self.graphs[kind]
        graph.replay()
        return out

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            out = self.step(self.generator)
        return graph, out
