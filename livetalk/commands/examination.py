"""What is seen of a student at a checkpoint: videos for held-out pairs, and figures of them beside the teacher's."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from livetalk.data.pairs import TRACKS, OdePairs
from livetalk.devices import precision_of
from livetalk.evaluation import metrics
from livetalk.evaluation.evaluate import POSE, image_figures
from livetalk.evaluation.judges import Judges, load_judges
from livetalk.evaluation.report import contact_sheet, finite
from livetalk.geometry import frame_span
from livetalk.media import VideoWriter, pixels_of
from livetalk.models.vae import WanVAE
from livetalk.parts import load_part, missing_parts
from livetalk.training.ode import seam_ratio

log = logging.getLogger(__name__)
SHEET_CLIPS, SHEET_FRAMES = 4, 8
TOGETHER = 16
"""Clips decoded and looked at at a time."""


def moves(latents: Tensor) -> Tensor:
    """Mean change [B] between latent frames of [B, C, F, h, w]; the step from the reference image is left out."""
    return (latents[:, :, 2:] - latents[:, :, 1:-1]).abs().mean(dim=(1, 2, 3, 4))


def likeness(latents: Tensor, truth: Tensor, block: int) -> dict[str, float]:
    """Of the student's and the teacher's latents [B, C, F, h, w] for the same conditions.

    motion: mean change between latent frames, contrast: deviation over space, each over the teacher's; seams: see
    seam_ratio.
    """

    def contrast(x: Tensor) -> float:
        return float(x[:, :, 1:].std(dim=(3, 4)).mean())

    motion = float(moves(latents).mean() / moves(truth).mean())
    figures = {"motion": motion, "contrast": contrast(latents) / contrast(truth)}
    if latents.shape[2] > block:
        figures |= {"seams": seam_ratio(latents, block), "seams of the teacher": seam_ratio(truth, block)}
    return figures


@dataclass(frozen=True)
class Seen:
    """Of N clips: frames uint8 [SHEET_CLIPS, T, H, W, 3] of the first; images: figures [N]; and, where there are
    judges, tracks [N, T] and identity [N, T, E]."""

    frames: Tensor
    images: dict[str, Tensor]
    tracks: dict[str, np.ndarray]
    identity: Tensor | None


class Examination:
    """Looks at a student's latents for `shown` held-out pairs, beside the teacher's for the same.

    The teacher's are looked at once, at the start. Without judges in the family only figures of pixels are made.
    """

    def __init__(self, family: str, held_out: OdePairs, shown: int, block: int) -> None:
        device = held_out.states.device
        self.chosen = torch.arange(min(shown, len(held_out)), device=device)
        self.truth = rearrange(held_out.states[self.chosen, -1], "b f c h w -> b c f h w").float()
        self.block, self.dtype = block, precision_of("auto", device)
        self.vae: WanVAE = load_part(family, "vae", device, self.dtype)
        self.judges: Judges | None = None
        if missing_parts(family, ["judges"]):
            log.warning("%s has no judges: no figures of mouth, identity and pose (bash scripts/train_nano.sh)", family)
        else:
            self.judges = load_judges(Path(family) / "judges", device)
        self.known = {name: held_out.tracks[name][self.chosen].float().cpu().numpy() for name in held_out.tracks}
        self.seams = tuple(frame_span(latent)[0] for latent in range(block, self.truth.shape[2], block))
        self.writes_videos = can_write_videos()
        self.seen = self.look(self.truth)
        self.teacher = self.figures_of(self.seen)

    @torch.no_grad()
    def look(self, latents: Tensor) -> Seen:
        """Decodes latents [N, C, F, h, w] and reads what judges read."""
        images, tracks, identity, kept = [], [], [], []
        for part in latents.split(TOGETHER):
            frames = pixels_of(self.vae.decode(part.to(self.dtype)))
            kept.append(frames[: max(0, SHEET_CLIPS - TOGETHER * len(kept))].clone())
            images.append(image_figures(frames, self.seams))
            if self.judges is not None:
                read = self.judges.read(frames)
                tracks.append(read.tracks)
                identity.append(read.identity)
        return Seen(
            torch.cat(kept),
            {name: torch.cat([part[name] for part in images]) for name in images[0]},
            {name: torch.cat([part[name] for part in tracks]).cpu().numpy() for name in (tracks[0] if tracks else ())},
            torch.cat(identity) if identity else None,
        )

    def figures(self, latents: Tensor) -> tuple[dict[str, float], Seen]:
        """Every figure of a student's latents, likeness and pose variance over the teacher's, and what was seen."""
        seen = self.look(latents)
        figures = likeness(latents, self.truth, self.block) | self.figures_of(seen)
        for name in POSE if seen.tracks else ():
            spread, true = (np.var(one.tracks[name], axis=1).mean() for one in (seen, self.seen))
            figures[f"variance of {name} / teacher"] = float(spread / max(true, 1e-12))
        return figures, seen

    def figures_of(self, seen: Seen) -> dict[str, float]:
        """Means over clips. The mouth is held against the truth's, where that is known, over frames with speech; and
        against the teacher's. What no clip can tell, as a correlation in silence, is left out."""
        means = {name: metrics.mean_or_nan(values) for name, values in self.clip_figures(seen).items()}
        figures = {name: value for name, value in means.items() if not math.isnan(value)}
        return figures | ({"A/V lag": float(self._sync(seen).lag)} if seen.tracks and self.known else {})

    def clip_figures(self, seen: Seen) -> dict[str, np.ndarray]:
        """The same for each clip [N]; nan where a clip cannot tell."""
        found = {name: values.double().cpu().numpy() for name, values in seen.images.items()}
        if seen.identity is None:
            return found
        # The first frame is the reference image's, given to teacher and student alike.
        alike = (seen.identity[:, 1:] * self.seen.identity[:, :1]).sum(-1).mean(1)
        found["identity similarity"] = alike.double().cpu().numpy()
        opening, teacher = (one.tracks["mouth_open"] for one in (seen, self.seen))
        found["mouth like the teacher's"] = metrics.masked_pearson(opening, teacher, self._speech(opening))
        if self.known:
            found["A/V correlation"] = self._sync(seen).per_clip
        return found

    def _sync(self, seen: Seen) -> metrics.Sync:
        opening = seen.tracks["mouth_open"]
        return metrics.av_correlation(opening, self.known[TRACKS[0]], self._speech(opening))

    def _speech(self, opening: np.ndarray) -> np.ndarray:
        """The frames [N, T] in which mouths count: with speech, where that is known."""
        return self.known["speech"] > 0.5 if self.known else np.ones(opening.shape, bool)

    def per_clip(self, latents: Tensor, seen: Seen) -> dict[str, list[float | None]]:
        """clip_figures of a student, and its motion over the teacher's mean; None where a clip cannot tell."""
        found = self.clip_figures(seen)
        found["motion"] = (moves(latents) / moves(self.truth).mean()).double().cpu().numpy()
        return {name: [finite(float(f"{value:.6g}")) for value in values] for name, values in found.items()}

    def show(self, seen: Seen, folder: Path, name: str) -> dict[str, Path]:
        """Writes sheets/NAME.png and videos/NAME.mp4 of the first clips, the teacher's above the student's."""
        both = {"teacher": self.seen.frames.cpu().numpy(), "student": seen.frames.cpu().numpy()}
        sheet = folder / "sheets" / f"{name}.png"
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(both, SHEET_FRAMES)).save(sheet)
        files = {"sheet": sheet}
        if self.writes_videos:
            rows = [rearrange(frames, "n t h w c -> t h (n w) c") for frames in both.values()]
            video = np.concatenate(rows, axis=1)
            files["video"] = folder / "videos" / f"{name}.mp4"
            with VideoWriter(files["video"], video.shape[1:3]) as writer:
                writer.write(video)
        return files


def can_write_videos() -> bool:
    """Whether ffmpeg is there; if not, a line says so."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        log.warning("no videos, pictures only (pip install imageio-ffmpeg): %s", error)
        return False
    return True
