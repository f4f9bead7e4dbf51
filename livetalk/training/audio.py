"""Training the nano audio encoder: which sound is said at each frame, and how far and wide the mouth stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk.geometry import SAMPLES_PER_FRAME
from livetalk.models.audio import AudioEncoder, AudioHeads


@dataclass(frozen=True)
class AudioTrainingConfig:
    """frames: length of a training excerpt. gain: spread of loudness in dB; noise: loudest added noise, as a share of
    the sound's own level; curves: weight of the mouth curves beside the classes."""

    frames: int = 40
    gain: float = 6.0
    noise: float = 0.15
    curves: float = 2.0


@dataclass(frozen=True)
class LabelledSound:
    """pcm [N, T * 1000]; classes int64 [N, T] of the sound said at each frame; curves [N, T, 2] mouth opening and
    width, standardised over the set."""

    pcm: Tensor
    classes: Tensor
    curves: Tensor


class AudioObjective:
    """Trains `encoder` and `heads` on excerpts of `sound`. Raises ValueError if its clips are shorter than those."""

    def __init__(
        self, encoder: AudioEncoder, heads: AudioHeads, sound: LabelledSound, config: AudioTrainingConfig
    ) -> None:
        frames = sound.classes.shape[1]
        if not 1 <= config.frames <= frames:
            raise ValueError(f"excerpts of {config.frames} frames do not fit clips of {frames}: make the clips longer")
        self.encoder, self.heads, self.sound, self.config = encoder, heads, sound, config

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "heads": self.heads}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pcm, classes, curves = self._sample(batch, generator)
        logits, predicted = self.heads(self.encoder.features(pcm, frames=self.config.frames))
        naming = F.cross_entropy(logits.float().flatten(0, 1), classes.flatten())
        tracing = F.smooth_l1_loss(predicted.float(), curves)
        return naming + self.config.curves * tracing, {"naming": naming.detach(), "tracing": tracing.detach()}

    def kind(self, step: int) -> None:
        """All steps are of one kind (trainer.Objective)."""

    def _sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Excerpts at random gains with random noise; the sound behind an excerpt's end is part of it."""
        sound, config = self.sound, self.config
        device = sound.pcm.device
        chosen = torch.randint(len(sound.pcm), (batch, 1), generator=generator, device=device)
        # Four frames of sound (250 ms) follow the last frame of an excerpt, so that no lookahead is cut; silence
        # where the clip ends earlier.
        last = sound.classes.shape[1] - config.frames - 4
        start = torch.randint(max(1, last + 1), (batch, 1), generator=generator, device=device)
        frames = start + torch.arange(config.frames, device=device)
        length = (config.frames + 4) * SAMPLES_PER_FRAME
        samples = start * SAMPLES_PER_FRAME + torch.arange(length, device=device)
        end = sound.pcm.shape[1]
        pcm = sound.pcm[chosen, samples.clamp_max(end - 1)].float() * (samples < end)
        draw = torch.rand(2, batch, 1, generator=generator, device=device)
        pcm = pcm * 10 ** (config.gain * (2 * draw[0] - 1) / 20)
        level = pcm.square().mean(1, keepdim=True).sqrt()
        noise = torch.randn(pcm.shape, generator=generator, device=device)
        pcm = pcm + config.noise * draw[1] ** 2 * level * noise
        return pcm, sound.classes[chosen, frames], sound.curves[chosen, frames]


@torch.no_grad()
def figures(encoder: AudioEncoder, heads: AudioHeads, sound: LabelledSound) -> dict[str, float]:
    """On held-out clips: share of frames whose sound is named right, Pearson of opening and width over all frames."""
    frames = sound.classes.shape[1]
    logits, curves = [], []
    for pcm in sound.pcm.split(16):
        part = heads(encoder.features(pcm.float(), frames))
        logits.append(part[0].float())
        curves.append(part[1].float())
    right = (torch.cat(logits).argmax(-1) == sound.classes).float().mean()
    read, truth = torch.cat(curves).flatten(0, 1), sound.curves.flatten(0, 1)
    pearson = [torch.corrcoef(torch.stack([read[:, i], truth[:, i]]))[0, 1].item() for i in range(2)]
    return {"named right": right.item(), "opening Pearson": pearson[0], "width Pearson": pearson[1]}
