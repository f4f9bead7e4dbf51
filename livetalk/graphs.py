"""Work on a GPU that is launched once instead of a thousand times: a CUDA graph over memory that stays where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 2
"""Runs before a capture: in the first compilers compile and cuDNN measures, in the second libraries are settled."""


def capture(
    act: Callable[[], object],
    stream: torch.cuda.Stream,
    pool: tuple[int, int],
    generator: torch.Generator | None = None,
) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph of one run of `act` on `stream`, with its memory from `pool`, and what the run returned: tensors that
    every replay overwrites. `act` must not wait for the card. generator: what random numbers are drawn from."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    torch.cuda.synchronize(stream.device)
    # Other threads may go on with work of their own: NCCL's watchdog asks for its events, a session decodes.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        out = act()
    return graph, out


class Captured:
    """`act(*inputs)` as a graph: call it with tensors shaped like `inputs`, which hold what the graph reads.

    What it returns is overwritten by the next call. Without a stream it runs `act` as it is, over the same held inputs:
    what a machine without a GPU can check. Raises ValueError for inputs of other shapes or types than it was made for.
    """

    def __init__(
        self,
        act: Callable[..., object],
        inputs: Sequence[Tensor],
        stream: torch.cuda.Stream | None = None,
        pool: tuple[int, int] | None = None,
    ) -> None:
        self.inputs = [value.clone() for value in inputs]
        self._act, self._graph, self._out = act, None, None
        if stream is None:
            return
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                act(*self.inputs)
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        self._graph, self._out = capture(lambda: act(*self.inputs), stream, pool)

    def __call__(self, *given: Tensor) -> object:
        if len(given) != len(self.inputs):
            raise ValueError(f"{len(given)} inputs given to a graph that was captured with {len(self.inputs)}")
        for index, (held, value) in enumerate(zip(self.inputs, given, strict=True)):
            if held.shape != value.shape or held.dtype != value.dtype:
                raise ValueError(
                    f"input {index} is {value.dtype} {tuple(value.shape)}, but the graph was captured for {held.dtype} "
                    f"{tuple(held.shape)}: capture another for this shape"
                )
            if held is not value:
                held.copy_(value, non_blocking=True)
        if self._graph is None:
            return self._act(*self.inputs)
        self._graph.replay()
        return self._out
