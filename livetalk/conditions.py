"""What a clip is generated from: text features, the reference image's latent, audio features.

Shapes: B batch, L text tokens, F latent frames, C audio channels of one video frame, h w latent height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from livetalk.geometry import TIME_STRIDE


def group_audio(features: Tensor) -> Tensor:
    """Per-frame features [B, T, C] with T = 4F - 3 to per-latent groups [B, F, 4C].

    Latent 0 hears frame 0 four times, latent i the frames 4i-3 .. 4i; time-major, channel fastest.
    """
    batch, frames, channels = features.shape
    if (frames - 1) % TIME_STRIDE:
        raise ValueError(f"audio for {frames} frames: a whole number of latents has 4F - 3 frames")
    first = features[:, :1].expand(-1, TIME_STRIDE - 1, -1)
    return torch.cat([first, features], dim=1).reshape(batch, -1, TIME_STRIDE * channels)


def pin(latents: Tensor, given: Tensor | None) -> Tensor:
    """Latents [B, C, F, h, w] with the first frames overwritten by those that are given clean [B, C, 1.., h, w]."""
    return latents if given is None else torch.cat([given.to(latents), latents[:, :, given.shape[2] :]], dim=2)


@dataclass(frozen=True)
class Conditions:
    """Conditions of `frames` consecutive latent frames, the first of which has index `first` in its clip.

    text: [B, L, text_dim], padding positions zero. reference: [B, 16, 1, h, w] standardised latent of the image, or
    None for a plain text-to-video network. audio: [B, F, 4C] grouped features, or None for a network without audio.
    prefix: latent frames at the start of the clip that are given clean: 1, the image itself, or more where a window
    continues an earlier one.
    """

    text: Tensor
    reference: Tensor | None = None
    audio: Tensor | None = None
    first: int = 0
    prefix: int = 1

    def block(self, start: int, count: int) -> Conditions:
        """The `count` latent frames from index `start` of the clip on."""
        if self.audio is None:
            return replace(self, first=start)
        low = start - self.first
        if low < 0 or low + count > self.audio.shape[1]:
            raise ValueError(
                f"audio covers latent frames {self.first} to {self.first + self.audio.shape[1] - 1}, "
                f"asked for {start} to {start + count - 1}"
            )
        return replace(self, audio=self.audio[:, low : low + count], first=start)

    @property
    def image(self) -> Tensor | None:
        """What latent frame 0 of the clip is, before every pass and in the result: the reference image's latent. None
        for frames that begin later, and where there is no image."""
        return None if self.first else self.reference

    def without_audio(self) -> Conditions:
        """The same with silence as "no audio": zero features before the audio pack."""
        return self if self.audio is None else replace(self, audio=torch.zeros_like(self.audio))

    def null(self, text: Tensor) -> Conditions:
        """The unconditional side of guidance: negative prompt `text` [1 or B, L, text_dim], no audio, same image."""
        return replace(self.without_audio(), text=text.expand_as(self.text).to(self.text))

    def mask(self, frames: int, device: torch.device | None = None) -> Tensor:
        """[frames] the mask channel: 0 on the latent frames that are given clean, 1 elsewhere."""
        return (torch.arange(self.first, self.first + frames, device=device) >= self.prefix).float()

    def map(self, change) -> Conditions:
        """Applies a tensor function (a move, a cast, an index over the batch) to every tensor."""
        return replace(
            self,
            text=change(self.text),
            reference=None if self.reference is None else change(self.reference),
            audio=None if self.audio is None else change(self.audio),
        )

    @staticmethod
    def cat(parts: list[Conditions]) -> Conditions:
        """Joins conditions of the same frames along the batch."""
        assert len({part.first for part in parts}) == 1
        first = parts[0]
        return replace(
            first,
            text=torch.cat([part.text for part in parts]),
            reference=None if first.reference is None else torch.cat([part.reference for part in parts]),
            audio=None if first.audio is None else torch.cat([part.audio for part in parts]),
        )
