"""Training the nano audio encoder: which sound is said at each frame, and how far and wide the mouth stands.

Sound is disturbed (training/disturb.py), so that other voices, rooms and microphones say the same to the encoder. An
encoder on whose features a transformer was trained can go on learning without it: what it said of undisturbed sound it
must keep saying, and say of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from livetalk.checks import at_least, decays
from livetalk.geometry import SAMPLES_PER_FRAME
from livetalk.models.audio import AudioEncoder, AudioHeads
from livetalk.training.disturb import Disturbances, disturbed

NEAR = (-3, 4)
"""Frames around one whose sounds and mouths must agree when its like is looked for."""


@dataclass(frozen=True)
class AudioTrainingConfig:
    """frames: length of a training excerpt; naming, curves: weights of the classes and of the mouth's curves; others:
    share of a batch from the other engines, where there are some; kept: weight of features to keep, where there are
    some."""

    frames: int = 12
    naming: float = 1.0
    curves: float = 2.0
    others: float = 0.25
    kept: float = 2.0
    disturbances: Disturbances = Disturbances()

    def __post_init__(self) -> None:
        at_least(1, self, "frames")
        at_least(0, self, "naming", "curves", "kept")
        decays(self, "others")


@dataclass(frozen=True)
class LabelledSound:
    """pcm [N, T * 1000]; classes int64 [N, T] of the sound said at each frame; curves [N, T, 2] mouth opening and
    width, standardised over the set or another; features [N, T, C]: what the encoder is to say of it, if anything."""

    pcm: Tensor
    classes: Tensor
    curves: Tensor
    features: Tensor | None = None

    @property
    def frames(self) -> int:
        return self.classes.shape[1]


class AudioObjective:
    """Trains `encoder` and `heads` on excerpts of `sound` and, in part, of `others`.

    Where one holds features both must. Raises ValueError if clips are shorter than excerpts.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        heads: AudioHeads,
        sound: LabelledSound,
        config: AudioTrainingConfig,
        others: LabelledSound | None = None,
    ) -> None:
        self.encoder, self.heads, self.config = encoder, heads, config
        self.sets = [sound] if others is None else [sound, others]
        for one in self.sets:
            if not 1 <= config.frames <= one.frames:
                raise ValueError(
                    f"excerpts of {config.frames} frames do not fit clips of {one.frames}: make the clips longer"
                )
            assert (one.features is None) == (sound.features is None)
        # Channels differ in scale by orders of magnitude.
        self.scale = None if sound.features is None else sound.features[:256].float().std((0, 1)).clamp_min(1e-4)

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "heads": self.heads}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        away = round(config.others * batch) if len(self.sets) > 1 else 0
        parts = [self._sample(self.sets[0], batch - away, generator)]
        if away:
            parts.append(self._sample(self.sets[1], away, generator))
        pcm, classes, curves = (torch.cat([part[i] for part in parts]) for i in range(3))
        features = self.encoder.windows(disturbed(pcm, config.disturbances, generator), config.frames)
        logits, predicted = self.heads(features)
        naming = F.cross_entropy(logits.float().flatten(0, 1), classes.flatten())
        tracing = F.smooth_l1_loss(predicted.float(), curves)
        loss = config.naming * naming + config.curves * tracing
        figures = {"naming": naming.detach(), "tracing": tracing.detach()}
        if self.scale is not None:
            kept = torch.cat([part[3] for part in parts])
            keeping = F.smooth_l1_loss(features.float() / self.scale, kept / self.scale, beta=0.5)
            loss, figures = loss + config.kept * keeping, figures | {"keeping": keeping.detach()}
        return loss, figures

    def kind(self, step: int) -> None:
        """All steps are of one kind (trainer.Objective)."""

    def _sample(self, sound: LabelledSound, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Excerpts [count, ...]: the sound of all their windows, silence where a clip has none; classes, curves and
        features of their frames."""
        config, heard, device = self.config, self.encoder.config, sound.pcm.device
        chosen = torch.randint(len(sound.pcm), (count, 1), generator=generator, device=device)
        start = torch.randint(sound.frames - config.frames + 1, (count, 1), generator=generator, device=device)
        frames = start + torch.arange(config.frames, device=device)
        span = torch.arange((config.frames - 1) * SAMPLES_PER_FRAME + heard.window, device=device)
        samples = start * SAMPLES_PER_FRAME + span - (heard.window - heard.lookahead)
        end = sound.pcm.shape[1]
        pcm = sound.pcm[chosen, samples.clamp(0, end - 1)].float() * ((samples >= 0) & (samples < end))
        drawn = (pcm, sound.classes[chosen, frames], sound.curves[chosen, frames])
        return drawn if sound.features is None else (*drawn, sound.features[chosen, frames].float())


@torch.no_grad()
def spoken(encoder: AudioEncoder, pcm: Tensor, frames: int, chunk: int = 16) -> Tensor:
    """Features [N, frames, C] of clips [N, S], some at a time."""
    return torch.cat([encoder.features(part.float(), frames) for part in pcm.split(chunk)])


@torch.no_grad()
def alike(sound: LabelledSound, others: LabelledSound, classes: int, count: int = 6, chunk: int = 512) -> Tensor:
    """What an encoder should say of `others`, which it does not know: [M, T, C], the mean of `sound.features` at the
    `count` frames around which most nearly the same sounds, of so many classes, are said and the mouth moves alike."""
    known, asked = _circumstances(sound, classes), _circumstances(others, classes)
    length, features = known.square().sum(1), sound.features.flatten(0, 1)
    found = []
    for part in asked.split(chunk):
        nearest = (length - 2 * part @ known.T).topk(count, largest=False).indices
        found.append(features[nearest].float().mean(1).to(features.dtype))
    return rearrange(torch.cat(found), "(n t) c -> n t c", t=others.frames)


def _circumstances(sound: LabelledSound, classes: int) -> Tensor:
    """[N * T, D]: classes and curves of the frames around each, of which the nearest count most. The mouth is on its
    way to a sound before it is said, hence half a frame later."""
    told = torch.cat([0.8 * F.one_hot(sound.classes, classes), 0.7 * sound.curves], dim=-1)
    places = torch.arange(sound.frames, device=told.device)
    around = [
        told[:, (places + step).clamp(0, sound.frames - 1)] / (1 + abs(step - 0.5) / 1.5)
        for step in range(NEAR[0], NEAR[1] + 1)
    ]
    return torch.cat(around, dim=-1).flatten(0, 1)


@torch.no_grad()
def fit_heads(heads: AudioHeads, features: Tensor, sound: LabelledSound, ridge: float = 1e-3) -> None:
    """Sets heads by least squares on known features [N, T, C], so that an encoder which goes on is not torn about by
    heads that know nothing."""
    x = features.flatten(0, 1).float()
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1).double()
    classes = F.one_hot(sound.classes.flatten(), heads.classes.out_features)
    y = torch.cat([classes, sound.curves.flatten(0, 1)], dim=1).double()
    square = x.T @ x / len(x)
    square += ridge * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    weights = torch.linalg.solve(square, x.T @ y / len(x)).float()
    # As logits, shares of one are too timid.
    weights[:, : heads.classes.out_features] *= 12
    for layer, part in zip((heads.classes, heads.curves), weights.split([classes.shape[1], 2], dim=1), strict=True):
        layer.weight.copy_(part[:-1].T)
        layer.bias.copy_(part[-1])


@torch.no_grad()
def figures(encoder: AudioEncoder, heads: AudioHeads, sound: LabelledSound) -> dict[str, float]:
    """On held-out clips: share of frames whose sound is named right, Pearson of opening and width over all frames."""
    logits, curves = [], []
    for pcm in sound.pcm.split(16):
        part = heads(encoder.features(pcm.float(), sound.frames))
        logits.append(part[0].float())
        curves.append(part[1].float())
    right = (torch.cat(logits).argmax(-1) == sound.classes).float().mean()
    read, truth = torch.cat(curves).flatten(0, 1), sound.curves.flatten(0, 1)
    pearson = [torch.corrcoef(torch.stack([read[:, i], truth[:, i]]))[0, 1].item() for i in range(2)]
    return {"named right": right.item(), "opening Pearson": pearson[0], "width Pearson": pearson[1]}
