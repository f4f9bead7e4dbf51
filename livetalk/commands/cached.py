"""The text and audio encoders of a family, with what they make kept on disk (data/features.py) where a run says where.

An encoder is loaded when a feature is missing, and not before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.config import DmdRun, OdeRun, PairsRun, TeacherRun
from livetalk.data.features import FeatureCache, identity_of
from livetalk.models.text import TextEncoder
from livetalk.parts import load_part, require_parts
from livetalk.training import distributed, sharding

AT_ONCE = 256


class CachedEncoder:
    """Part `name` of a family; load: makes its network. folder: of the cache.

    together: all processes ask for the same things at the same time, and the network may be spread over them.
    """

    def __init__(
        self,
        family: str,
        name: str,
        folder: str,
        load: Callable[[], nn.Module],
        device: torch.device,
        together: bool = False,
    ) -> None:
        require_parts(family, [name])
        self.load, self.device, self.together = load, device, together
        self.cache = FeatureCache(folder, identity_of(Path(family) / name))

    @cached_property
    def network(self) -> nn.Module:
        return self.load()

    def noted(self, name: str, make: Callable[[nn.Module], str]) -> str:
        """A text that depends on the network: asked for once, and remembered under `name`."""
        return self.cache.noted(name, lambda: make(self.network))

    def _features(self, contents: Sequence[bytes], make: Callable[[list[int]], Tensor]) -> Tensor:
        """Features [N, L, D] on the device; make: those of the contents at some indices."""
        missing = self.cache.missing(contents)
        if self.together:
            distributed.wait()  # nobody stores before all have looked
        for start in range(0, len(missing), AT_ONCE):
            chosen = missing[start : start + AT_ONCE]
            made = make(chosen)
            if not self.together or distributed.rank() == 0:
                for index, features in zip(chosen, made, strict=True):
                    self.cache.keep(contents[index], features)
        if self.together:
            distributed.wait()
        return torch.stack([self.cache.read(content) for content in contents]).to(self.device)


class CachedText(CachedEncoder):
    """In place of a TextEncoder."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> features [B, L, D], padding zeroed."""
        contents = [text.encode() for text in texts]
        return self._features(contents, lambda chosen: self.network.encode([texts[index] for index in chosen]))


class CachedAudio(CachedEncoder):
    """In place of an AudioEncoder."""

    @torch.no_grad()
    def features(self, pcm: Tensor, frames: int) -> Tensor:
        """Sounds [B, samples] -> features [B, frames, D]."""
        contents = [f"{frames} ".encode() + hashlib.sha256(one.cpu().numpy().tobytes()).digest() for one in pcm]
        return self._features(contents, lambda chosen: self.network.features(pcm[chosen], frames))


def text_encoder(run: PairsRun | OdeRun | DmdRun | TeacherRun, device: torch.device) -> TextEncoder | CachedText:
    """The family's, spread over the processes of a sharded training, and cached where the run says so."""
    together = not isinstance(run, PairsRun)
    shard = together and run.train.shard

    def load() -> TextEncoder:
        text = load_part(run.family, "text", "cpu" if shard else device)
        return sharding.shard(text, run.train, device, "fp32") if shard else text

    return CachedText(run.family, "text", run.features, load, device, together) if run.features else load()
