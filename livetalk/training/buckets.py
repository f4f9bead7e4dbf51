"""Clips of several shapes in one run: each step trains on one of them.

A bucket holds clips of one height, width and length. Which one a step takes depends on the run's seed and the step
alone, so that all processes take the same, all players of a game too, and a resumed run repeats what was. Nothing is
padded or cropped: a step is the very step that a run on that bucket alone would make.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from livetalk.training.dmd import DmdObjective
from livetalk.training.ode import OdeObjective
from livetalk.training.teacher import FlowMatchingObjective

Part = FlowMatchingObjective | OdeObjective | DmdObjective


def draw_bucket(seed: int, step: int, clips: Sequence[int]) -> int:
    """Index of a step's bucket, by chance in proportion to its number of clips."""
    # Another stream than the batch's and than that of draw_iteration.
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) ^ 0x2545_F491_4F6C) & 0xFFFF_FFFF)
    place = int(torch.randint(sum(clips), (), generator=generator))
    return bisect_right(list(accumulate(clips)), place)


class Buckets:
    """An objective, or a game, made of one for each bucket; all of them train the same networks.

    clips: how many there are in each.
    """

    def __init__(self, parts: Sequence[Part], clips: Sequence[int], seed: int) -> None:
        assert len(parts) == len(clips) and min(clips) > 0
        networks = [list(part.modules().items()) for part in parts]
        assert all(found == networks[0] for found in networks)
        self.parts, self.clips, self.seed = list(parts), list(clips), seed

    def modules(self) -> dict[str, nn.Module]:
        return self.parts[0].modules()

    @property
    def tokens(self) -> int:
        return max(part.tokens for part in self.parts)

    def bucket(self, step: int) -> int:
        return draw_bucket(self.seed, step, self.clips)

    def kind(self, step: int) -> Hashable:
        """A captured step has the shapes of its bucket, so that each bucket has captures of its own."""
        bucket = self.bucket(step)
        return bucket, self.parts[bucket].kind(step)

    def turns(self, step: int) -> Sequence[str]:
        return self.parts[self.bucket(step)].turns(step)

    def loss(self, step: int, batch: int, generator: torch.Generator, **whose: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the step's bucket; whose: `player`, in a game."""
        return self.parts[self.bucket(step)].loss(step, batch, generator, **whose)


def mixed(parts: Sequence[Part], clips: Sequence[int], seed: int) -> Part | Buckets:
    """The one objective there is, or several as one."""
    return parts[0] if len(parts) == 1 else Buckets(parts, clips, seed)


def room_to_compile(buckets: int) -> None:
    """Lets PyTorch keep the variants of compiled layers for all buckets; beyond its limit it would go on without."""
    import torch._dynamo

    usual = 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, usual * buckets)
