"""Evaluation of generators that are known only as callables: frozen judges look at their frames beside the truth's.

    report = evaluate({"student": sampler}, clips, judges)
    write_report(report, folder)

A sampler takes a list of clips and returns their videos, uint8 [B, T, H, W, 3], frame j at j/16 s. "truth", the clips'
own frames, is always measured beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from livetalk.evaluation import metrics
from livetalk.evaluation.eyes import eye_figures
from livetalk.evaluation.judges import Judges
from livetalk.evaluation.metrics import mean_interval
from livetalk.evaluation.report import Report
from livetalk.geometry import FPS

log = logging.getLogger(__name__)

TRUTH = "truth"
POSE = ("pitch", "yaw", "roll")


class Clip(Protocol):
    """What evaluation needs of a clip; the world's clips are such."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    reference: np.ndarray  # uint8 [H, W, 3]
    tracks: dict  # float [T] each: "mouth_open" and "speech" are read here
    prompt: str


Sampler = Callable[[Sequence[Clip]], torch.Tensor]
Motion = Callable[[dict[str, np.ndarray]], dict]  # tracks [T] of one clip -> attribute: value found
Wanted = Callable[[Clip], dict]  # attribute: value that the clip's prompt states


@dataclass(frozen=True)
class EvaluationConfig:
    """How a split is measured. Every `feature_stride`-th frame enters the frame Frechet distance.

    `seams` are the frames at which a block or window begins; without them no seam row is made.
    """

    batch: int = 16
    feature_stride: int = 4
    bootstraps: int = 100
    sheets: int = 6
    shift_seconds: float = 0.2
    seams: tuple[int, ...] = ()


@dataclass(frozen=True)
class Footage:
    """Everything measured on one method's N videos of T frames; frames themselves are kept for a few clips only.

    tracks: [N, T] each; similarity [N] to the clip's own reference image; embedding [N, E] mean over frames;
    frame_features [N, n, D]; video_features [N, D']; images: per-clip figures [N].
    """

    tracks: dict[str, np.ndarray]
    similarity: np.ndarray
    embedding: np.ndarray
    reference: np.ndarray
    frame_features: np.ndarray
    video_features: np.ndarray
    images: dict[str, np.ndarray]
    sheet: np.ndarray


def true_frames(clips: Sequence[Clip]) -> torch.Tensor:
    """The sampler of the truth."""
    return torch.from_numpy(np.stack([clip.frames for clip in clips]))


def image_figures(frames: torch.Tensor, seams: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Figures of pixels per clip [B]."""
    figures = {
        "sharpness": metrics.sharpness(frames).mean(1),
        "flicker": metrics.flicker(frames),
        "black frames": metrics.black_frames(frames),
        "frozen frames": metrics.frozen_share(frames),
        "clipped colours": metrics.saturation(frames),
    }
    if seams:
        figures["seam difference"] = metrics.seam_difference(frames, list(seams))
    return figures


@torch.no_grad()
def watch(sampler: Sampler, clips: Sequence[Clip], judges: Judges, config: EvaluationConfig) -> Footage:
    """Samples every clip and lets the judges look. Raises ValueError when a sampler returns other than was asked."""
    device = judges.face.track_mean.device
    parts: list[dict[str, np.ndarray]] = []
    sheet: list[np.ndarray] = []
    for start in range(0, len(clips), config.batch):
        some = clips[start : start + config.batch]
        frames = sampler(some)
        expected = (len(some), *some[0].frames.shape)
        if frames.dtype != torch.uint8 or tuple(frames.shape) != expected:
            raise ValueError(
                f"a sampler must return uint8 {expected} for these clips, got {frames.dtype} {tuple(frames.shape)}"
            )
        frames = frames.to(device)
        sheet += [clip.cpu().numpy() for clip in frames[: max(0, config.sheets - len(sheet))]]
        references = torch.from_numpy(np.stack([clip.reference for clip in some])).to(device)
        seen, person = judges.read(frames), judges.read(references[:, None]).identity[:, 0]
        part = {f"track {name}": value for name, value in seen.tracks.items()}
        images = image_figures(frames, config.seams) | eye_figures(frames, lambda x: judges.read_tracks(x)["eye_open"])
        part |= {f"image {name}": value for name, value in images.items()}
        part["similarity"] = torch.einsum("bte,be->bt", seen.identity, person).mean(1)
        part["embedding"], part["reference"] = seen.identity.mean(1), person
        part["frames"], part["video"] = seen.frame_features[:, :: config.feature_stride], seen.video_features
        parts.append({name: value.cpu().numpy() for name, value in part.items()})
        log.info("watched %d of %d clips", start + len(some), len(clips))
    return collect(parts, sheet)


def collect(parts: list[dict[str, np.ndarray]], sheet: list[np.ndarray]) -> Footage:
    """Batches of figures -> Footage."""
    if not parts:
        raise ValueError("evaluation needs at least one clip, got none")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def named(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}

    return Footage(
        tracks=named("track "),
        similarity=whole["similarity"],
        embedding=whole["embedding"],
        reference=whole["reference"],
        frame_features=whole["frames"],
        video_features=whole["video"],
        images=named("image "),
        sheet=np.stack(sheet) if sheet else np.empty((0,)),
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def keep(report: Report, method: str, measure: str, values: np.ndarray, note: str = "") -> None:
    """A row that is the mean of per-clip values, kept for paired comparison."""
    report.add(method, measure, mean_interval(values), note)
    report.per_clip[method, measure] = values


def sync_rows(
    report: Report, method: str, opening: np.ndarray, truth: np.ndarray, speech: np.ndarray, seconds: float
) -> None:
    """A/V correlation with its lag, and the rows it must be read beside: shuffled sound and shifted sound."""
    own = metrics.av_correlation(opening, truth, speech)
    keep(report, method, "A/V correlation", own.per_clip)
    report.add(method, "A/V lag (frames)", metrics.plain(own.lag if own.known else np.nan, len(opening)))
    report.by_lag[method] = own.by_lag
    if len(opening) > 1:
        other = metrics.derangement(len(opening))
        shuffled = metrics.av_correlation(opening, truth[other], speech[other])
        keep(report, method, "A/V correlation, shuffled sound", shuffled.per_clip)
    for sign, name in ((1, "later"), (-1, "earlier")):
        frames = sign * seconds * FPS
        moved = metrics.av_correlation(
            opening, metrics.shift_curves(truth, frames), metrics.shift_mask(speech, frames), lag=own.lag
        )
        keep(report, method, f"A/V correlation, sound {1000 * seconds:.0f} ms {name}", moved.per_clip)


def rest_rows(report: Report, method: str, opening: np.ndarray, true_opening: np.ndarray, speech: np.ndarray) -> None:
    """Mouth in silence, by opening. "Open" is a quarter of the way from the truth's rest to its mean in speech."""
    keep(report, method, "mouth opening in silence", metrics.opening_in_silence(opening, speech))
    rest = metrics.mean_or_nan(metrics.opening_in_silence(true_opening, speech))
    if speech.any() and not np.isnan(rest):
        threshold = rest + 0.25 * (float(true_opening[speech].mean()) - rest)
        keep(report, method, "mouth open in silence (share)", metrics.share_open(opening, speech, threshold))


def identity_rows(report: Report, method: str, footage: Footage) -> None:
    """Cosine with the reference image, beside that with another clip's reference."""
    keep(report, method, "identity similarity", footage.similarity)
    if len(footage.similarity) > 1:
        other = footage.reference[metrics.derangement(len(footage.similarity))]
        keep(report, method, "identity similarity, another person", (footage.embedding * other).sum(1))


def motion_rows(report: Report, method: str, footage: Footage, wanted: list[dict], measure: Motion) -> None:
    """Share of the prompt's attributes found in the judged tracks, beside that of another clip's prompt (chance)."""
    count = len(wanted)
    found = [measure({name: curve[i] for name, curve in footage.tracks.items()}) for i in range(count)]
    keep(report, method, "prompt's motion found", metrics.agreement(found, wanted))
    if count > 1:
        other = [wanted[i] for i in metrics.derangement(count)]
        keep(report, method, "prompt's motion found, another prompt", metrics.agreement(found, other))


def frechet_rows(report: Report, method: str, footage: Footage, truth: Footage, draws: int) -> None:
    """Frechet distances to the truth's features; the truth itself is halved, which shows the floor of the measure."""
    count = len(footage.video_features)
    if count < 4:
        return
    for name in ("frame", "video"):
        mine, theirs = (f.frame_features if name == "frame" else f.video_features for f in (footage, truth))
        note = ""
        if footage is truth:
            mine, theirs, note = theirs[: count // 2], theirs[count // 2 :], "one half against the other: the floor"
        report.add(method, f"Frechet distance, {name}s", metrics.frechet_of_clips(mine, theirs, draws), note)


def liveliness_rows(report: Report, method: str, footage: Footage, truth: Footage) -> None:
    """Variance of pose and blink rate over the truth's, all as the judges see them."""
    for name in POSE:
        ratio = metrics.variance_ratio(footage.tracks[name], truth.tracks[name])
        report.add(method, f"variance of {name} / truth", ratio)
    blinks, true_blinks = (metrics.blinks_per_minute(f.tracks["eye_open"], FPS) for f in (footage, truth))
    keep(report, method, "blinks a minute", blinks)
    report.add(method, "blink rate / truth", metrics.mean_ratio(blinks, true_blinks))


def evaluate(
    samplers: dict[str, Sampler],
    clips: Sequence[Clip],
    judges: Judges,
    config: EvaluationConfig | None = None,
    measure: Motion | None = None,
    wanted: Wanted | None = None,
    title: str = "Evaluation",
) -> Report:
    """Every measure of every sampler over the same clips, the truth first. See the module for samplers.

    `measure` finds the motion in judged tracks and `wanted` says what a clip's prompt states; without both, the rows
    of the prompt's motion are left out.
    """
    config = EvaluationConfig() if config is None else config
    if TRUTH in samplers:
        raise ValueError(f"{TRUTH!r} is measured always: give the sampler another name")
    if (measure is None) != (wanted is None):
        raise ValueError("give both measure and wanted, or neither")
    report = Report(title, len(clips))
    curve, speech = (np.stack([np.asarray(clip.tracks[name]) for clip in clips]) for name in ("mouth_open", "speech"))
    speech = speech > 0.5
    asked = [wanted(clip) for clip in clips] if wanted is not None else []
    truth = watch(true_frames, clips, judges, config)
    for name, sampler in {TRUTH: true_frames, **samplers}.items():
        footage = truth if name == TRUTH else watch(sampler, clips, judges, config)
        opening = footage.tracks["mouth_open"]
        sync_rows(report, name, opening, curve, speech, config.shift_seconds)
        rest_rows(report, name, opening, truth.tracks["mouth_open"], speech)
        identity_rows(report, name, footage)
        if measure is not None:
            motion_rows(report, name, footage, asked, measure)
        frechet_rows(report, name, footage, truth, config.bootstraps)
        liveliness_rows(report, name, footage, truth)
        report.features[name, "frames"] = footage.frame_features
        report.features[name, "videos"] = footage.video_features
        for figure, values in footage.images.items():
            keep(report, name, figure, values)
        if len(footage.sheet):
            report.sheets[name] = footage.sheet
    return report


# --- other tables -----------------------------------------------------------------------------------------------------


def reconstruction_figures(frames: torch.Tensor, again: torch.Tensor) -> dict[str, torch.Tensor]:
    """Figures per clip [B] of reconstructions beside their originals, both uint8 [B, T, H, W, 3]."""
    return {
        "PSNR (dB)": metrics.psnr(frames, again),
        "SSIM": metrics.ssim(frames, again),
        "sharpness / truth": metrics.sharpness(again).mean(1) / metrics.sharpness(frames).mean(1).clamp_min(1e-6),
        "flicker / truth": metrics.flicker(again) / metrics.flicker(frames).clamp_min(1e-6),
    }


class Reconstructions:
    """How well autoencoders keep clips: PSNR, SSIM, sharpness and flicker; with judges also mouth and identity.

    Fed batch by batch, by whoever decodes, so that nothing is decoded for this table alone.
    """

    def __init__(self, judges: Judges | None = None) -> None:
        self.judges = judges
        self.parts: dict[str, list[dict[str, np.ndarray]]] = {}
        self.mouths: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    @torch.no_grad()
    def add(self, method: str, clips: Sequence[Clip], frames: torch.Tensor, again: torch.Tensor) -> None:
        """Clips, their frames uint8 [B, T, H, W, 3] and the reconstruction, on the same device. Raises ValueError
        unless that has the same shape and type."""
        if again.dtype != torch.uint8 or again.shape != frames.shape:
            raise ValueError(f"reconstruction must be uint8 {tuple(frames.shape)}, got {again.dtype} {again.shape}")
        part = reconstruction_figures(frames, again)
        if self.judges is not None:
            seen, true = self.judges.read(again), self.judges.read(frames)
            part["identity similarity"] = (seen.identity * true.identity).sum(-1).mean(1)
            speech = np.stack([np.asarray(clip.tracks["speech"]) for clip in clips]) > 0.5
            opening = (reading.tracks["mouth_open"].cpu().numpy() for reading in (seen, true))
            self.mouths.setdefault(method, []).append((*opening, speech))
        self.parts.setdefault(method, []).append({name: value.cpu().numpy() for name, value in part.items()})

    def report(self) -> Report:
        """Of all that was added."""
        report = Report("Reconstruction", max(sum(len(part["SSIM"]) for part in own) for own in self.parts.values()))
        for method, parts in self.parts.items():
            for name in parts[0]:
                keep(report, method, name, np.concatenate([part[name] for part in parts]))
            if self.judges is not None:
                columns = (np.concatenate(column) for column in zip(*self.mouths[method], strict=True))
                keep(report, method, "mouth read again, correlation", metrics.masked_pearson(*columns))
        return report


@torch.no_grad()
def drift_rows(
    report: Report,
    method: str,
    frames: torch.Tensor,
    clips: Sequence[Clip],
    judges: Judges,
    seconds: float = 10.0,
    lag: int = 0,
    note: str = "",
) -> None:
    """The last seconds of long videos uint8 [B, T, H, W, 3] against their first: 1 (colour: 0) means no drift.

    `clips` hold the truth's tracks [T] and the reference image; `lag` is the one lag of the split. What lies between
    the two ends is not looked at, so that videos and tracks may consist of them alone. The figures of both ends are
    kept per clip.
    """
    count = round(seconds * FPS)
    if frames.shape[1] < 2 * count:
        raise ValueError(f"drift over {seconds} s needs videos of {2 * count} frames or more, got {frames.shape[1]}")
    references = torch.from_numpy(np.stack([clip.reference for clip in clips])).to(frames.device)
    person = judges.read(references[:, None]).identity[:, 0]
    figures = []
    for part in (slice(0, count), slice(frames.shape[1] - count, frames.shape[1])):
        seen = judges.read(frames[:, part])
        curve, speech = (np.stack([np.asarray(c.tracks[k])[part] for c in clips]) for k in ("mouth_open", "speech"))
        opening = seen.tracks["mouth_open"].cpu().numpy()
        figures.append(
            {
                "A/V correlation": metrics.lagged_pearson(opening, curve, speech > 0.5, lag),
                "identity": torch.einsum("bte,be->b", seen.identity, person).cpu().numpy() / count,
                "sharpness": metrics.sharpness(frames[:, part]).mean(1).cpu().numpy(),
                "colour": metrics.mean_colour(frames[:, part]).cpu().numpy(),
            }
        )
    first, last = figures
    for name in ("A/V correlation", "identity", "sharpness"):
        report.add(method, drift_name(name, seconds), metrics.mean_ratio(last[name], first[name]), note)
    change = np.abs(last["colour"] - first["colour"])
    report.add(method, f"colour, last {seconds:.0f} s - first (0..1)", mean_interval(change.mean(1)), note)
    share = (change / np.maximum(first["colour"], 1 / 255)).mean(1)
    keep(report, method, drift_name("colour change", seconds), share, note)
    for end, found in (("first", first), ("last", last)):
        for name in ("A/V correlation", "identity", "sharpness"):
            report.per_clip[method, f"{name}, {end} {seconds:.0f} s"] = found[name]


def drift_name(figure: str, seconds: float) -> str:
    """The measure of drift_rows under which a figure of the end stands over that of the start."""
    return f"{figure}, last {seconds:.0f} s / first"
