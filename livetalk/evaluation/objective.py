"""How the judges learn: losses as pure functions, augmentation, and one objective with its held-out error table.

A training batch is a dict on the judges' device:
  frames      uint8 [B, T, H, W, 3], T >= 8 (16 to 81 frames; B >= 8 with several identities, for contrast)
  tracks      dict of float [B, T]: every name of JudgesConfig.tracks, and "speech" (1 where the clip speaks, else 0)
  identity    int64 [B], equal where two clips show one person
  attributes  float [B, K] in [0, 1] in the order of JudgesConfig.attributes, nan where a prompt does not say
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from livetalk.checks import above, at_least, shares
from livetalk.evaluation.judges import Judges, prepare
from livetalk.evaluation.metrics import (
    blinks_per_minute,
    masked_pearson,
    mean_or_nan,
    roc_auc,
    verification_accuracy,
)
from livetalk.geometry import FPS

CORRUPTIONS = ("natural", "double speed", "held", "shuffled")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the losses and strengths of the augmentation.

    Shift and zoom are fractions of the frame, light and noise fractions of the range of values, and `spoil` the share
    of clips that are blurred and of those that are noisy: a generator's VAE blurs, and the judges must read through it.
    """

    identity_frames: int = 6
    temperature: float = 0.1
    mouth_weight: float = 2.0
    correlation_weight: float = 0.3
    identity_weight: float = 0.3
    video_weight: float = 0.3
    quality_weight: float = 0.1
    spoil: float = 0.6
    noise: float = 0.06
    light: float = 0.15
    shift: float = 0.03
    zoom: float = 0.06
    swap: float = 0.5

    def __post_init__(self) -> None:
        at_least(1, self, "identity_frames")
        above(0, self, "temperature")
        at_least(0, self, "mouth_weight", "correlation_weight", "identity_weight", "video_weight", "quality_weight")
        at_least(0, self, "noise")
        shares(self, "spoil", "light", "shift", "zoom", "swap")


# --- losses -------------------------------------------------------------------------------------------------------


def track_loss(predicted: torch.Tensor, target: torch.Tensor, mouth_weight: float) -> torch.Tensor:
    """Smooth L1 of standardised tracks [B, T, R], the mouth's opening (column 0) counted `mouth_weight` times."""
    weight = torch.ones(predicted.shape[-1], device=predicted.device)
    weight[0] = mouth_weight
    loss = F.smooth_l1_loss(predicted.float(), target, reduction="none", beta=0.3)
    return (loss * weight / weight.sum()).sum(-1).mean()


def correlation_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - Pearson over time of curves [B, T], mean over the clips whose target moves (deviation above 0.05)."""
    a = predicted.float() - predicted.float().mean(1, keepdim=True)
    b = target - target.mean(1, keepdim=True)
    moves = (b.pow(2).mean(1) > 0.05**2).float()
    value = (a * b).sum(1) / (a.pow(2).sum(1).clamp_min(1e-4) * b.pow(2).sum(1).clamp_min(1e-4)).sqrt()
    return ((1 - value) * moves).sum() / moves.sum().clamp_min(1)


def contrastive_loss(embedding: torch.Tensor, identity: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out) of unit embeddings [N, E] with labels [N]."""
    own = torch.eye(len(identity), dtype=torch.bool, device=embedding.device)
    score = (embedding.float() @ embedding.float().T / temperature).masked_fill(own, -1e4)
    log_share = score - score.logsumexp(1, keepdim=True)
    same = ((identity[:, None] == identity[None]) & ~own).float()
    count = same.sum(1)
    loss = -(log_share * same).sum(1) / count.clamp_min(1)
    return loss[count > 0].sum() / (count > 0).sum().clamp_min(1)


def attribute_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of prompt attributes [B, K] over the entries that are not nan."""
    if logits.shape != target.shape:
        raise ValueError(f"attributes are {tuple(target.shape)}, the judges are made for {tuple(logits.shape)}")
    known = ~target.isnan()
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.nan_to_num().float(), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)


# --- augmentation ---------------------------------------------------------------------------------------------------


def uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def shifted(x: torch.Tensor, config: ObjectiveConfig, generator: torch.Generator) -> torch.Tensor:
    """[B, T, C, H, W] moved and zoomed a little, alike over a clip. No rotation: it would change the roll."""
    zoom = 1 + config.zoom * (2 * uniform(generator, len(x), 1) - 1)
    move = 2 * config.shift * (2 * uniform(generator, len(x), 2) - 1)
    theta = torch.cat([torch.diag_embed(zoom.expand(-1, 2)), move[..., None]], dim=-1)
    # Frames travel as channels: one grid a clip instead of one a frame.
    flat = rearrange(x, "b t c h w -> b (t c) h w")
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    moved = F.grid_sample(flat, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return rearrange(moved, "b (t c) h w -> b t c h w", c=x.shape[2])


def blurred(x: torch.Tensor) -> torch.Tensor:
    """[B, T, C, H, W] through three 3x3 boxes: close to a Gaussian of sigma 1.4 pixels."""
    flat = rearrange(x, "b t c h w -> b (t c) h w")
    for _ in range(3):
        flat = F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False)
    return rearrange(flat, "b (t c) h w -> b t c h w", c=x.shape[2])


def augment(x: torch.Tensor, config: ObjectiveConfig, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepared frames [B, T, 3, S, S] -> spoiled frames and how much of blur and noise each clip got [B, 2] in [0, 1].

    Shift, zoom, light, blur and noise are drawn once a clip, so that spoiling does not look like motion.
    """
    count = len(x)
    x = shifted(x, config, generator)
    gain = 1 + config.light * (2 * uniform(generator, count, 1, 1, 1, 1) - 1)
    tint = 0.5 * config.light * (2 * uniform(generator, count, 1, 3, 1, 1) - 1)
    spoiled = (uniform(generator, count, 2) < config.spoil).float() * uniform(generator, count, 2)
    blur, noise = (rearrange(amount, "b -> b 1 1 1 1") for amount in spoiled.unbind(1))
    x = torch.lerp(x, blurred(x), blur)
    grain = torch.randn(x.shape, generator=generator, device=x.device)
    return x * gain + tint + 2 * config.noise * noise * grain, spoiled


def swap_surroundings(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Frames [N, 3, S, S] of which `share` get another frame's surroundings outside a soft ellipse about the head.

    Without it an identity judge learns rooms and clothes.
    """
    count, size = len(x), x.shape[-1]
    centre = 0.5 + 0.1 * (uniform(generator, count, 2) - 0.5)
    radius = 0.34 + 0.12 * uniform(generator, count, 2)
    axis = (torch.arange(size, device=x.device) + 0.5) / size
    across = rearrange((axis - centre[:, :1]) / radius[:, :1], "n w -> n 1 1 w")
    down = rearrange((axis - centre[:, 1:]) / (1.15 * radius[:, 1:]), "n h -> n 1 h 1")
    inside = torch.sigmoid(12 * (1 - (across**2 + down**2).sqrt()))
    kept = torch.where(uniform(generator, count, 1, 1, 1) < share, inside, torch.ones_like(inside))
    other = x[torch.randperm(count, generator=generator, device=x.device)]
    return torch.lerp(other, x, kept)


def corrupt_time(x: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences [B, T, D] -> sequences with their time damaged and the kind of damage [B], an index of CORRUPTIONS."""
    count, length = x.shape[:2]
    kind = torch.randint(len(CORRUPTIONS), (count,), generator=generator, device=x.device)
    step = torch.arange(length, device=x.device)
    groups = step // 6 * 6
    noise = uniform(generator, count, length)
    shuffled = (groups + noise).argsort(dim=1)
    double = (2 * step) % length
    orders = torch.stack([repeat(order, "t -> b t", b=count) for order in (step, double, step // 4 * 4)], dim=1)
    orders = torch.cat([orders, shuffled[:, None]], dim=1)
    order = orders[torch.arange(count, device=x.device), kind]
    return x.gather(1, repeat(order, "b t -> b t d", d=x.shape[2])), kind


# --- the objective --------------------------------------------------------------------------------------------------


class JudgesObjective(nn.Module):
    """Losses and held-out errors of a family of judges. Its parameters are the judges' and two heads of training.

    The heads make frame features keep blur and noise, and video features keep the flow of time: features that are
    blind to what generators get wrong would make a blind Frechet distance. Only `judges` is shipped.
    """

    def __init__(self, judges: Judges, config: ObjectiveConfig) -> None:
        super().__init__()
        self.judges = judges
        self.config = config
        self.quality = nn.Linear(judges.config.frame_features, 2)
        self.tempo = nn.Linear(judges.config.video_features, len(CORRUPTIONS))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[dict]) -> None:
        """Sets the mean and scale of the tracks from training batches. Call once, before the first step."""
        face = self.judges.face
        columns = [torch.stack([batch["tracks"][name].float().flatten() for name in face.tracks]) for batch in batches]
        values = torch.cat(columns, dim=1).to(face.track_mean.device)
        scale = values.std(1)
        if (scale < 1e-6).any():
            flat = [name for name, deviation in zip(face.tracks, scale.tolist(), strict=True) if deviation < 1e-6]
            raise ValueError(f"tracks {flat} are constant over the calibration batches: take more or other clips")
        face.track_mean.copy_(values.mean(1))
        face.track_scale.copy_(scale)

    def forward(self, batch: dict, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """A batch (see the module) -> scalar loss, its parts detached. `generator` lives on the batch's device."""
        config, judges = self.config, self.judges
        with torch.no_grad():
            clean = prepare(batch["frames"], judges.config.size)
            spoiled, strengths = augment(clean, config, generator)
        tracks, _, features = judges(spoiled)
        target = judges.face.standardise(batch["tracks"])
        parts = {
            "tracks": track_loss(tracks, target, config.mouth_weight),
            "correlation": correlation_loss(tracks[..., 0], target[..., 0]),
            "identity": self.identity_loss(clean, batch["identity"], generator),
            "video": self.video_loss(features.detach(), tracks.detach(), batch, generator),
            "quality": F.mse_loss(self.quality(features).float().mean(1), strengths),
        }
        loss = (
            parts["tracks"]
            + config.correlation_weight * parts["correlation"]
            + config.identity_weight * parts["identity"]
            + config.video_weight * parts["video"]
            + config.quality_weight * parts["quality"]
        )
        return loss, {name: part.detach() for name, part in parts.items()}

    def loss(self, batch: dict, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Same as calling the objective; wrap the objective itself for data-parallel training."""
        return self(batch, generator)

    def identity_loss(self, clean: torch.Tensor, identity: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Contrast over `identity_frames` frames a clip, each spoiled on its own and half of them in another room."""
        count, length = clean.shape[:2]
        with torch.no_grad():
            pick = uniform(generator, count, length).argsort(1)[:, : self.config.identity_frames]
            frames = clean[torch.arange(count, device=clean.device)[:, None], pick]
            frames, _ = augment(rearrange(frames, "b n c h w -> (b n) 1 c h w"), self.config, generator)
            frames = swap_surroundings(frames.squeeze(1), self.config.swap, generator)
        embedding, _ = self.judges.identity(frames)
        return contrastive_loss(embedding, identity.repeat_interleave(pick.shape[1]), self.config.temperature)

    def video_loss(
        self, features: torch.Tensor, tracks: torch.Tensor, batch: dict, generator: torch.Generator
    ) -> torch.Tensor:
        """Prompt attributes, speech and the flow of time, from frame readings that take no gradient."""
        judge = self.judges.video
        _, attributes, speech = judge(features, tracks)
        damaged, kind = corrupt_time(torch.cat([features, tracks], dim=-1), generator)
        video, _, _ = judge(*damaged.split([features.shape[-1], tracks.shape[-1]], dim=-1))
        return (
            attribute_loss(attributes, batch["attributes"])
            + F.binary_cross_entropy_with_logits(speech.float(), batch["tracks"]["speech"].float())
            + 0.3 * F.cross_entropy(self.tempo(video).float(), kind)
        )

    def evaluate(self, batches: Iterable[dict], seed: int = 0) -> dict[str, float]:
        """Errors on held-out batches as a flat table {track or task / measure: value}; judges read in float32."""
        readings, spoiled_mouth, truths = [], [], []
        for batch in batches:
            generator = torch.Generator(batch["frames"].device).manual_seed(seed + len(truths))
            readings.append(self.judges.read(batch["frames"]))
            spoiled, _ = augment(prepare(batch["frames"], self.judges.config.size), self.config, generator)
            spoiled_mouth.append(self.judges.read(spoiled).tracks["mouth_open"])
            truths.append(batch)
        if not truths:
            raise ValueError("evaluating the judges needs at least one batch, got none")
        names = self.judges.config.tracks
        read = {name: gather([reading.tracks[name] for reading in readings]) for name in names}
        truth = {name: gather([batch["tracks"][name] for batch in truths]) for name in (*names, "speech")}
        table = track_errors(read, truth)
        speech = truth["speech"] > 0.5
        spoiled_pearson = masked_pearson(gather(spoiled_mouth), truth["mouth_open"], speech)
        table["mouth_open/pearson in speech, spoiled frames"] = mean_or_nan(spoiled_pearson)
        table["speech/accuracy"] = float(((gather([r.speech for r in readings]) > 0) == speech).mean())
        table |= identity_errors(
            gather([r.identity for r in readings]), gather([batch["identity"] for batch in truths])
        )
        asked = gather([batch["attributes"] for batch in truths])
        return table | attribute_errors(gather([r.attributes for r in readings]), asked, self.judges.config.attributes)


def partners(identity: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """For clips `chosen` [n] of a pool with labels `identity` [N], a clip of the same person each [n].

    It is another clip where the person has one, else the same. A batch of clips and partners teaches the identity
    judge to look past scenes: contrast needs one person in two rooms.
    """
    order = identity.argsort(stable=True)
    ranked = identity[order]
    first = torch.searchsorted(ranked, identity[chosen])
    count = torch.searchsorted(ranked, identity[chosen], right=True) - first
    own = (order.argsort()[chosen] - first).long()
    step = 1 + (uniform(generator, len(chosen)) * (count - 1).clamp_min(1)).long()
    return order[first + (own + step) % count]


def gather(parts: list[torch.Tensor]) -> np.ndarray:
    """Tensors of clips [B, ...] -> one array."""
    return torch.cat([part.detach().cpu() for part in parts]).numpy()


def track_errors(read: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Per track: Pearson over all frames, mean Pearson within a clip, mean absolute error in the world's units."""
    table = {}
    speech = truth["speech"] > 0.5
    for name in read:
        a, b = read[name], truth[name]
        every = np.ones_like(b)
        table[f"{name}/pearson"] = float(masked_pearson(a.reshape(1, -1), b.reshape(1, -1), every.reshape(1, -1))[0])
        table[f"{name}/pearson in clip"] = mean_or_nan(masked_pearson(a, b, every))
        table[f"{name}/mean absolute error"] = float(np.abs(a - b).mean())
        table[f"{name}/deviation of truth"] = float(b.std())
    table["mouth_open/pearson in speech"] = mean_or_nan(masked_pearson(read["mouth_open"], truth["mouth_open"], speech))
    blinks = [blinks_per_minute(tracks["eye_open"], FPS) for tracks in (read, truth)]
    table["blinks a minute/truth"] = float(blinks[1].mean())
    table["blinks a minute/mean absolute error"] = float(np.abs(blinks[0] - blinks[1]).mean())
    return table


def identity_errors(embedding: np.ndarray, identity: np.ndarray) -> dict[str, float]:
    """Verification on three frames a clip of embeddings [N, T, E], labels [N].

    Where people appear in several clips, only pairs of different clips count as "same".
    """
    steps = np.unique(np.linspace(0, embedding.shape[1] - 1, 3).astype(int))
    flat = rearrange(embedding[:, steps], "n s e -> (n s) e")
    clip = np.repeat(np.arange(len(identity)), len(steps))
    person = np.repeat(identity, len(steps))
    score = flat @ flat.T
    upper = np.triu(np.ones_like(score, dtype=bool), 1)
    same = (person[:, None] == person[None]) & upper
    across = same & (clip[:, None] != clip[None])
    same = across if across.any() else same
    different = (person[:, None] != person[None]) & upper
    if not same.any() or not different.any():
        return {}
    return {
        "identity/auc": roc_auc(score[same], score[different]),
        "identity/accuracy": verification_accuracy(score[same], score[different]),
        "identity/cosine of one person": float(score[same].mean()),
        "identity/cosine of two people": float(score[different].mean()),
    }


def attribute_errors(logits: np.ndarray, asked: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """Per attribute: accuracy where the prompt says, beside the share of its commoner answer."""
    table = {}
    for column, name in enumerate(names):
        known = ~np.isnan(asked[:, column])
        if known.any():
            truth = asked[known, column] > 0.5
            table[f"attribute {name}/accuracy"] = float(((logits[known, column] > 0) == truth).mean())
            table[f"attribute {name}/commoner answer"] = float(max(truth.mean(), 1 - truth.mean()))
    return table
