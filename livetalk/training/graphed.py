"""A training step as a CUDA graph: launched once instead of a thousand times.

Small networks are bound by the host that launches their kernels, not by the card. A captured step repeats the same
kernels on the same memory, so it must not wait for the card, and its shapes must not change: the trainer captures one
graph for every kind of step its objective names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from livetalk.graphs import capture

Step = Callable[[torch.Generator], dict[str, Tensor]]


class GraphedStep:
    """Runs `step(generator)`, eagerly at first, then as a captured graph; both draw the same numbers from a seed.

    step: gradients, clipping and optimisers of one update, with the learning rate in a tensor and all randomness from
    the generator. It enters and leaves autocast itself, so that no weight that was cast inside a capture is met
    outside. What it returns is overwritten by the next call of any kind.

    The first step of a kind runs eagerly: on its shapes compilers compile, cuDNN measures, libraries take their
    workspace, processes find each other, and the optimiser of whoever learns for the first time makes its state, which
    must outlive the graph's own memory. The second is captured.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device)
        self.generator = torch.Generator(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: set[Hashable] = set()
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}

    def __call__(self, kind: Hashable, seed: int) -> dict[str, Tensor]:
        self.generator.manual_seed(seed)
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            out = self._run(kind)
        current.wait_stream(self.stream)
        return out

    def forget(self) -> None:
        """To be called where the step's tensors have been replaced: it is captured anew."""
        torch.cuda.synchronize()
        self.seen.clear()
        self.graphs.clear()
        # Gradients may still hold memory of the old pool, which no new graph may share then.
        self.pool = torch.cuda.graph_pool_handle()

    def _run(self, kind: Hashable) -> dict[str, Tensor]:
        if kind not in self.seen:
            self.seen.add(kind)
            return self.step(self.generator)
        if kind not in self.graphs:
            self.graphs[kind] = self._capture()
        graph, out = self.graphs[kind]
        graph.replay()
        return out

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        return capture(lambda: self.step(self.generator), self.stream, self.pool, self.generator)
