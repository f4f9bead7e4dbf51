"""`bash scripts/evaluate.sh`: the figures of a family of weights on a split of the synthetic world.

Truth, the VAE's reconstruction and the teacher (at one guidance scale, or at several for choosing one on dev) are
measured side by side by the family's frozen judges.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from livetalk.commands.memory import bytes_of, table
from livetalk.conditions import Conditions, group_audio
from livetalk.config import EvaluateRun
from livetalk.data.world.clip import World
from livetalk.data.world.prompts import measure
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation.evaluate import EvaluationConfig, evaluate, reconstruction_table
from livetalk.evaluation.judges import Judges, JudgesConfig, load_judges
from livetalk.evaluation.report import main_table, write_report
from livetalk.geometry import latents_of_frames
from livetalk.parts import family_part, load_part, read_config, require_parts
from livetalk.training.autoencoder import to_unit
from OmniAvatar.sampling import Guidance, sample

log = logging.getLogger(__name__)
PARTS = ("vae", "audio", "text", "teacher")

KEYS = """
family=FOLDER      the family to measure, by its own frozen judges
split=NAME         dev, test or test-voice2; settings are chosen on dev, figures reported on test
scales=[2.0]       guidance on text and sound, one column of figures each
clips=N steps=N    how many clips, and sampling steps for each
Without --config: configs/evaluate.yaml where there is a GPU, else configs/evaluate_debug.yaml.
"""


@dataclass(frozen=True)
class EvaluationClip:
    """A clip of the world with what its prompt asks for (evaluation/evaluate.py's Clip)."""

    frames: np.ndarray
    reference: np.ndarray
    tracks: dict
    prompt: str
    pcm: np.ndarray
    attributes: dict[str, str]
    index: int


def make_clips(world: World, split: str, count: int, frames: int) -> list[EvaluationClip]:
    clips = []
    for batch in world.stream(split, range(count), frames):
        pictures = batch.frames.cpu().numpy()
        for take, shown, tracks in zip(batch.takes, pictures, batch.tracks, strict=True):
            wanted = asdict(take.attributes)
            clips.append(EvaluationClip(shown, shown[0], tracks, take.prompt, take.pcm, wanted, take.index))
    return clips


class Family:
    """The parts of a family on one device, as callables for the evaluation."""

    def __init__(self, run: EvaluateRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.dtype = precision_of("auto", device)
        self.vae = load_part(run.family, "vae", device, self.dtype)
        self.audio, self.text, self.teacher = (load_part(run.family, name, device) for name in PARTS[1:])

    @torch.no_grad()
    def conditions(self, clips: Sequence[EvaluationClip]) -> Conditions:
        images = torch.from_numpy(np.stack([clip.reference for clip in clips])).to(self.device)[:, None]
        pcm = torch.from_numpy(np.stack([clip.pcm for clip in clips])).to(self.device)
        audio = self.audio.features(pcm, frames=clips[0].frames.shape[0])
        text = self.text.encode([clip.prompt for clip in clips])
        return Conditions(text, self.vae.encode(self._video(images)).float(), group_audio(audio))

    def guided(self, scale: float) -> Callable[[Sequence[EvaluationClip]], Tensor]:
        """The teacher at one guidance scale on text and audio; a clip's noise depends on the seed and its index."""

        def sampler(clips: Sequence[EvaluationClip]) -> Tensor:
            conditions = self.conditions(clips)
            latents = latents_of_frames(clips[0].frames.shape[0])
            shape = (16, latents, *conditions.reference.shape[-2:])
            noise = torch.stack([self._noise(clip.index, shape) for clip in clips]).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                null = self.text.encode([self.run.negative_prompt])
                made = sample(
                    self.teacher, conditions, null, noise, steps=self.run.steps, guidance=Guidance(scale, scale)
                )
            return self.decode(made)

        return sampler

    @torch.no_grad()
    def reconstruct(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] through the VAE and back."""
        return self.decode(self.vae.encode(self._video(frames.to(self.device))))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        video = self.vae.decode(latents.to(self.dtype)).float()
        return video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)

    def _video(self, frames: Tensor) -> Tensor:
        return to_unit(frames).to(self.dtype)

    def _noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.run.seed * 1_000_003 + index))


def evaluate_family(run: EvaluateRun, dry_run: bool = False) -> None:
    """Prints the tables and, last, the folder that holds them. Raises ValueError for what the user can mend."""
    device = device_of(run.device)
    require_parts(run.family, (*PARTS, "judges"))
    if dry_run:
        print(memory(run, device))
        return
    settle_gpu()
    family = Family(run, device)
    judges = load_judges(Path(run.family) / "judges", device)
    workers = min(16, os.cpu_count() or 1) if run.clips > 64 else 0
    with World(run.world, device=device, workers=workers) as world:
        clips = make_clips(world, run.split, run.clips, run.frames)
    log.info("%d clips of split %s rendered", len(clips), run.split)
    config = EvaluationConfig(batch=run.batch)
    rebuilt = reconstruction_table(family.reconstruct, clips, judges, config, device)
    samplers = {"VAE": lambda some: family.reconstruct(torch.from_numpy(np.stack([clip.frames for clip in some])))}
    samplers |= {f"teacher, guidance {scale:g}": family.guided(scale) for scale in run.scales}
    title = f"{run.split}, {len(clips)} clips, {run.steps} steps"
    report = evaluate(samplers, clips, judges, config, measure, lambda clip: clip.attributes, title)
    folder = Path(run.output)
    write_report(report, folder / "generation")
    write_report(rebuilt, folder / "reconstruction")
    print(main_table(rebuilt))
    print(main_table(report))
    print(folder)


def memory(run: EvaluateRun, device: torch.device) -> str:
    """What an evaluation would take. The rows marked so are estimates from above of what is alive together."""
    dtype, size = precision_of("auto", device), run.world.size
    with torch.device("meta"):
        modules = {name: family_part(run.family, name).build() for name in PARTS}
        judges = Judges(read_config(Path(run.family) / "judges", JudgesConfig))
    rows = {name: bytes_of(module.parameters(), dtype if name == "vae" else None) for name, module in modules.items()}
    rows["judges"] = bytes_of(judges.parameters())
    tokens = run.batch * latents_of_frames(run.frames) * (size // 16) ** 2
    config, pixels = modules["teacher"].config, run.frames * size**2
    rows["clips, in main memory"] = run.clips * pixels * 3
    rows["transformer pass (estimate)"] = tokens * (8 * config.dim + 2 * config.ffn_dim) * dtype.itemsize
    rows["decoder (estimate)"] = run.batch * pixels * 6 * modules["vae"].config.base_dim * dtype.itemsize
    return table(f"evaluate: {run.family} on {device}, {run.clips} clips of {run.frames} frames", rows)
