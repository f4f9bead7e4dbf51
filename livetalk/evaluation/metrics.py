"""Measures over arrays: curves, feature clouds and frames, each with the interval it deserves.

Curves are numpy arrays [N, T] (N clips of T frames at 16 fps), frames are torch tensors, uint8 [B, T, H, W, 3].
Nothing here knows a model or a judge. Lags are in frames and positive when the picture comes late.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce

MAX_LAG = 4  # frames either way in which the one lag of a split is looked for
MIN_SPEECH = 8  # frames with speech below which a clip says nothing about lip-sync
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, and the number of clips it rests on. `low` and `high` may be nan: not known."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def plain(value: float, count: int) -> Estimate:
    """A figure without an interval."""
    return Estimate(float(value), math.nan, math.nan, count)


def mean_interval(values: np.ndarray) -> Estimate:
    """Mean of per-clip values [N] with its normal 95% interval; nan entries are clips that do not count."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    if values.size == 1:
        return plain(mean, 1)
    half = 1.959964 * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Estimate(mean, mean - half, mean + half, int(values.size))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, draws: int = 200, seed: int = 0
) -> Estimate:
    """Percentile bootstrap over clips: `statistic` maps indices [count] to a figure; all of them give the value."""
    rng = np.random.default_rng(seed)
    samples = np.asarray([statistic(rng.integers(0, count, count)) for _ in range(draws)], dtype=np.float64)
    value, known = float(statistic(np.arange(count))), samples[~np.isnan(samples)]
    if math.isnan(value) or known.size == 0:
        return plain(value, count)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Mean of first - second over the clips that both have, e.g. student minus teacher on the same test clips."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values need the same clips, got {first.shape} and {second.shape}")
    return mean_interval(first - second)


# --- curves -----------------------------------------------------------------------------------------------------


def masked_pearson(read: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pearson correlation per clip of curves [N, T] over the frames where mask [N, T] holds -> [N].

    A clip with fewer than MIN_SPEECH such frames, or whose truth is constant there, is nan: it says nothing. A
    constant `read` curve counts 0: a frozen mouth is a failure, not a missing value.
    """
    mask = np.asarray(mask, dtype=np.float64)
    count = mask.sum(1)

    def centred(curve: np.ndarray) -> np.ndarray:
        curve = np.asarray(curve, dtype=np.float64)
        mean = (curve * mask).sum(1, keepdims=True) / np.maximum(count, 1)[:, None]
        return (curve - mean) * mask

    a, b = centred(read), centred(truth)
    energy_a, energy_b = (a * a).sum(1), (b * b).sum(1)
    floor = 1e-12 * np.maximum(count, 1)
    value = (a * b).sum(1) / np.sqrt(np.maximum(energy_a, floor) * np.maximum(energy_b, floor))
    value = np.where(energy_a <= floor, 0.0, value)
    return np.where((count < MIN_SPEECH) | (energy_b <= floor), np.nan, value)


def lagged_pearson(read: np.ndarray, truth: np.ndarray, mask: np.ndarray, lag: int) -> np.ndarray:
    """masked_pearson of the frame t + lag of `read` with frame t of `truth`, where both exist -> [N]."""
    length = read.shape[1]
    assert abs(lag) < length, (lag, length)
    start, stop = max(0, -lag), min(length, length - lag)
    return masked_pearson(read[:, start + lag : stop + lag], truth[:, start:stop], mask[:, start:stop])


@dataclass(frozen=True)
class Sync:
    """A/V correlation of a split: the one lag of all its clips, the per-clip values there, the mean at every lag."""

    lag: int
    per_clip: np.ndarray
    by_lag: dict[int, float]

    @property
    def known(self) -> bool:
        """Whether any clip says something."""
        return not math.isnan(self.by_lag[self.lag])

    @property
    def estimate(self) -> Estimate:
        return mean_interval(self.per_clip)


def mean_or_nan(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


def av_correlation(read: np.ndarray, truth: np.ndarray, speech: np.ndarray, lag: int | None = None) -> Sync:
    """Lip-sync of a split: Pearson per clip over frames with speech, at ONE lag for all clips.

    `read` [N, T] is the mouth opening a judge reads from pixels, `truth` [N, T] the curve of the world, `speech`
    [N, T] true where the clip speaks. Without `lag` the lag within +-MAX_LAG with the best mean is taken; a lag per
    clip would flatter unrelated clips.
    """
    if not read.shape == truth.shape == speech.shape:
        raise ValueError(f"curves differ in shape: {read.shape}, {truth.shape}, {speech.shape}")
    lags = range(-MAX_LAG, MAX_LAG + 1) if lag is None else (lag,)
    values = {step: lagged_pearson(read, truth, speech, step) for step in lags}
    by_lag = {step: mean_or_nan(value) for step, value in values.items()}
    best = max(by_lag, key=lambda step: (-math.inf if math.isnan(by_lag[step]) else by_lag[step], -abs(step)))
    return Sync(best, values[best], by_lag)


def shift_curves(curves: np.ndarray, frames: float) -> np.ndarray:
    """Curves [N, T] delayed by a fraction of frames, linearly interpolated, the ends held."""
    index = np.clip(np.arange(curves.shape[1]) - frames, 0, curves.shape[1] - 1)
    low = np.floor(index).astype(int)
    high = np.minimum(low + 1, curves.shape[1] - 1)
    return curves[:, low] + (curves[:, high] - curves[:, low]) * (index - low)


def shift_mask(mask: np.ndarray, frames: float) -> np.ndarray:
    """A mask [N, T] delayed by the nearest whole number of frames; what comes in at the ends is false."""
    step = round(frames)
    out = np.zeros_like(mask, dtype=bool)
    source = np.arange(mask.shape[1]) - step
    inside = (source >= 0) & (source < mask.shape[1])
    out[:, inside] = np.asarray(mask, dtype=bool)[:, source[inside]]
    return out


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A fixed permutation of `count` clips in which none keeps its place (one random cycle)."""
    if count < 2:
        raise ValueError(f"shuffling needs at least 2 clips, got {count}")
    order = np.random.default_rng(seed).permutation(count)
    out = np.empty(count, dtype=int)
    out[order] = np.roll(order, 1)
    return out


def quiet_frames(speech: np.ndarray, margin: int = 3) -> np.ndarray:
    """Frames at least `margin` frames away from any speech, [N, T]: coarticulation moves the lips before the sound."""
    speech = np.asarray(speech, dtype=bool)
    near = speech.copy()
    for step in range(1, margin + 1):
        near[:, step:] |= speech[:, :-step]
        near[:, :-step] |= speech[:, step:]
    return ~near


def opening_in_silence(opening: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """Mean mouth opening [N] over the quiet frames of each clip; nan where a clip has none."""
    quiet = quiet_frames(speech)
    count = quiet.sum(1)
    return np.where(count > 0, (opening * quiet).sum(1) / np.maximum(count, 1), np.nan)


def share_open(opening: np.ndarray, speech: np.ndarray, threshold: float) -> np.ndarray:
    """Share [N] of the quiet frames of each clip in which the mouth is open wider than `threshold`."""
    return opening_in_silence((opening > threshold).astype(np.float64), speech)


def blinks_per_minute(eye_open: np.ndarray, fps: int, depth: float = 0.5) -> np.ndarray:
    """Blink rate [N] of lid-gap curves [N, T]: onsets below `depth` of the clip's own open gap (90th percentile).

    A blink ends only above 0.5 * (1 + depth) of that gap, so that noise at the threshold is not counted twice.
    """
    opened = np.quantile(eye_open, 0.9, axis=1, keepdims=True)
    ratio = eye_open / np.where(np.abs(opened) < 1e-9, 1e-9, opened)
    closed = np.zeros(len(ratio), dtype=bool)
    onsets = np.zeros(len(ratio))
    for column in ratio.T:
        onset = ~closed & (column < depth)
        onsets += onset
        closed = np.where(closed, column < 0.5 * (1 + depth), onset)
    return onsets * 60 * fps / eye_open.shape[1]


def variance_ratio(read: np.ndarray, truth: np.ndarray) -> Estimate:
    """Mean within-clip variance of `read` [N, T] over that of `truth` [N, T], bootstrapped over clips. 1 is right."""
    a, b = np.var(read, axis=1), np.var(truth, axis=1)
    return bootstrap_interval(lambda i: _over(float(a[i].mean()), float(b[i].mean())), len(a))


def mean_ratio(read: np.ndarray, truth: np.ndarray) -> Estimate:
    """Mean of per-clip values [N] over that of the truth [N], bootstrapped over clips; nan clips do not count."""
    return bootstrap_interval(lambda i: _over(mean_or_nan(read[i]), mean_or_nan(truth[i])), len(read))


def _over(value: float, reference: float) -> float:
    """Their ratio; nan where the reference is nothing, or less, so that no share of it can be told."""
    return value / reference if reference > 1e-12 else math.nan


def agreement(found: list[dict], wanted: list[dict]) -> np.ndarray:
    """Share [N] of the attributes a prompt asks for that are found in the judged motion of its clip.

    `wanted[i]` maps attribute to value for what the prompt of clip i states, `found[i]` to what was measured; a
    prompt that states nothing is nan.
    """
    out = []
    for measured, asked in zip(found, wanted, strict=True):
        missing = set(asked) - set(measured)
        if missing:
            raise ValueError(f"the motion measure does not report {sorted(missing)}; it reports {sorted(measured)}")
        out.append(np.mean([measured[key] == value for key, value in asked.items()]) if asked else np.nan)
    return np.asarray(out, dtype=np.float64)


# --- feature clouds -----------------------------------------------------------------------------------------------


Moments = tuple[np.ndarray, np.ndarray]
"""Mean [D] and covariance [D, D] in float64."""


def moments(features: np.ndarray, shrinkage: float = 0.0) -> Moments:
    """Mean [D] and covariance [D, D] in float64 of features [N, D]; `shrinkage` mixes in that much of the diagonal."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a covariance needs features [N >= 2, D], got {features.shape}")
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    return features.mean(0), (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))


def moments_of_clips(features: np.ndarray, shrinkage: float = 0.0) -> Callable[[np.ndarray], Moments]:
    """`moments` of the features [N, D] or [N, n, D] of any choice of clips, by index and repeats counted.

    Sums are taken once a clip, so that hundreds of choices cost no more than a few.
    """
    if features.ndim not in (2, 3) or len(features) < 2:
        raise ValueError(f"a covariance needs features [N >= 2, D] or [N >= 2, n, D], got {features.shape}")
    clips = features.astype(np.float64).reshape(len(features), -1, features.shape[-1])
    centre = clips.mean((0, 1))
    clips = clips - centre
    sums, squares = clips.sum(1), np.matmul(clips.transpose(0, 2, 1), clips)

    def choose(index: np.ndarray) -> Moments:
        weight, count = np.bincount(index, minlength=len(clips)).astype(np.float64), len(index) * clips.shape[1]
        mean = weight @ sums / count
        covariance = (np.tensordot(weight, squares, 1) - count * np.outer(mean, mean)) / (count - 1)
        return mean + centre, (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))

    return choose


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix; eigenvalues that rounding made negative become 0."""
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_of_moments(first: Moments, second: Moments, eps: float = 1e-9) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982).

    The trace of (S1 S2)^(1/2) is taken from the symmetric S1^(1/2) S2 S1^(1/2), which stays real when a covariance
    is singular; `eps` times the mean variance is added to both diagonals.
    """
    (mean_a, cov_a), (mean_b, cov_b) = first, second
    if cov_a.shape != cov_b.shape:
        raise ValueError(f"features differ in width: {cov_a.shape[0]} and {cov_b.shape[0]}")
    ridge = eps * 0.5 * (np.trace(cov_a) + np.trace(cov_b)) / len(cov_a) * np.eye(len(cov_a))
    cov_a, cov_b = cov_a + ridge, cov_b + ridge
    root = square_root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(max(np.sum((mean_a - mean_b) ** 2) + trace, 0.0))


def frechet(first: np.ndarray, second: np.ndarray, shrinkage: float = 0.0, eps: float = 1e-9) -> float:
    """Squared Frechet distance of the Gaussians fitted to features [N, D] and [M, D]."""
    return frechet_of_moments(moments(first, shrinkage), moments(second, shrinkage), eps)


def frechet_of_clips(first: np.ndarray, second: np.ndarray, draws: int = 100, shrinkage: float = 0.02) -> Estimate:
    """Frechet distance of features [N, D] or [N, n, D] (n frames of a clip), bootstrapped over the clips of `first`.

    Repeating clips biases the bootstrap upwards, so that only its width is used, around the plain value.
    """
    truth, draw = moments_of_clips(second, shrinkage), moments_of_clips(first, shrinkage)
    fixed = truth(np.arange(len(second)))
    raw = bootstrap_interval(lambda index: frechet_of_moments(draw(index), fixed), len(first), draws)
    return around(raw)


def frechet_ratio(
    first: np.ndarray, second: np.ndarray, truth: np.ndarray, draws: int = 100, shrinkage: float = 0.02
) -> Estimate:
    """Frechet distance of `first` from `truth` over that of `second`, all [N, D] or [N, n, D] of the same N clips.

    Both are drawn with the same clips in the bootstrap; as in frechet_of_clips only its width is used.
    """
    if first.shape != second.shape:
        raise ValueError(f"a ratio needs the same clips, got features {first.shape} and {second.shape}")
    draw, other = (moments_of_clips(features, shrinkage) for features in (first, second))
    fixed = moments_of_clips(truth, shrinkage)(np.arange(len(truth)))

    def ratio(index: np.ndarray) -> float:
        return _over(frechet_of_moments(draw(index), fixed), frechet_of_moments(other(index), fixed))

    return around(bootstrap_interval(ratio, len(first), draws))


def around(raw: Estimate) -> Estimate:
    """The width of a bootstrap interval laid around its value, for figures that repeated clips bias."""
    half = 0.5 * (raw.high - raw.low)
    return Estimate(raw.value, max(raw.value - half, 0.0), raw.value + half, raw.count)


def roc_auc(same: np.ndarray, different: np.ndarray) -> float:
    """Probability that a score of `same` [N] exceeds one of `different` [M], ties counted half."""
    scores = np.concatenate([same, different])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    above = rank[: len(same)].sum() - len(same) * (len(same) + 1) / 2
    return float(above / (len(same) * len(different)))


def verification_accuracy(same: np.ndarray, different: np.ndarray) -> float:
    """Best mean of true-accept and true-reject rate over all thresholds."""
    cuts = np.unique(np.concatenate([same, different]))
    accept = 1 - np.searchsorted(np.sort(same), cuts) / len(same)
    reject = np.searchsorted(np.sort(different), cuts) / len(different)
    return float(np.max(0.5 * (accept + reject)))


# --- frames -------------------------------------------------------------------------------------------------------


def unit(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 in [0, 1], same layout."""
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [..., H, W, 3], got {frames.dtype} {tuple(frames.shape)}")
    return frames.float() / 255


def luma(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> brightness [..., H, W] in [0, 1]."""
    return (unit(frames) * torch.tensor(LUMA, device=frames.device)).sum(-1)


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio in dB per clip, of uint8 [B, T, H, W, 3] -> [B]; capped at 100 for equal clips."""
    error = reduce((unit(first) - unit(second)) ** 2, "b t h w c -> b", "mean")
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Structural similarity of brightness per clip [B] (Wang et al. 2004: 11x11 Gaussian window of sigma 1.5)."""
    offset = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offset**2) / (2 * 1.5**2))
    weights = (window / window.sum()).tolist()

    def smooth(x: torch.Tensor) -> torch.Tensor:
        # Shifted sums and no convolution: TF32 would spoil the difference of squares.
        height, width = x.shape[-2] - 10, x.shape[-1] - 10
        x = sum(weight * x[..., i : i + height, :] for i, weight in enumerate(weights))
        return sum(weight * x[..., i : i + width] for i, weight in enumerate(weights))

    a, b = luma(first), luma(second)
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    cov = smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return reduce(value, "b t h w -> b", "mean")


def sharpness(frames: torch.Tensor) -> torch.Tensor:
    """Variance of the Laplacian of brightness (0..255 scale) per frame, [B, T, H, W, 3] -> [B, T]."""
    x = luma(frames) * 255
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return rearrange(around - 4 * x[..., 1:-1, 1:-1], "b t h w -> b t (h w)").var(-1)


def flicker(frames: torch.Tensor) -> torch.Tensor:
    """Mean absolute second difference in time (0..255 scale) per clip [B]: flashing costs more than smooth motion."""
    x = luma(frames) * 255
    if x.shape[1] < 3:
        raise ValueError(f"flicker needs at least 3 frames, got {x.shape[1]}")
    return reduce((x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]).abs(), "b t h w -> b", "mean")


def black_frames(frames: torch.Tensor, level: float = 0.06) -> torch.Tensor:
    """Share of frames per clip [B] that are black (mean brightness under `level`) or flat (deviation under 0.02)."""
    x = rearrange(luma(frames), "b t h w -> b t (h w)")
    return ((x.mean(-1) < level) | (x.std(-1) < 0.02)).float().mean(1)


def saturation(frames: torch.Tensor) -> torch.Tensor:
    """Share of colour values per clip [B] that are clipped at 0 or 255."""
    return reduce(((frames == 0) | (frames == 255)).float(), "b t h w c -> b", "mean")


def frozen_share(frames: torch.Tensor, level: float = 0.05) -> torch.Tensor:
    """Share of frame steps per clip [B] whose mean absolute change (0..255 scale) is under `level`."""
    x = luma(frames) * 255
    return (reduce((x[:, 1:] - x[:, :-1]).abs(), "b t h w -> b t", "mean") < level).float().mean(1)


def seam_difference(frames: torch.Tensor, seams: list[int]) -> torch.Tensor:
    """Mean frame difference at seams over that elsewhere, per clip [B]; 1 means that seams do not show.

    `seams` are the indices of the first frames of a block or window: the difference of frame s and s - 1 counts.
    """
    x = luma(frames) * 255
    change = reduce((x[:, 1:] - x[:, :-1]).abs(), "b t h w -> b t", "mean")
    at = torch.zeros(change.shape[1], dtype=torch.bool, device=frames.device)
    for seam in seams:
        if not 1 <= seam < frames.shape[1]:
            raise ValueError(f"seam {seam} is outside a clip of {frames.shape[1]} frames: give 1 .. T-1")
        at[seam - 1] = True
    if not at.any() or at.all():
        raise ValueError(f"seams {seams} leave nothing to compare in {frames.shape[1]} frames")
    return change[:, at].mean(1) / change[:, ~at].mean(1).clamp_min(1e-6)


def mean_colour(frames: torch.Tensor) -> torch.Tensor:
    """Mean colour (0..1) of clips, [B, T, H, W, 3] -> [B, 3]: compares the end of a long clip with its start."""
    return reduce(unit(frames), "b t h w c -> b c", "mean")
