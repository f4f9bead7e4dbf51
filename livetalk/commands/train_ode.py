"""`bash scripts/train_ode.sh`: ODE initialisation of the causal student from the teacher's weights.

Trains on runs/NAME/pairs, judges itself on the held-out pairs at every checkpoint, exports the one of lowest error
as part `student`, and says by a stated rule whether it has converged. All that was seen on the way is in runs/NAME/ode:
metrics.jsonl, report.json and sheets of pictures.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from livetalk.cli import CONFIGS
from livetalk.commands.generate_ode_pairs import make_pairs
from livetalk.commands.memory import activation_bytes, table, training_rows
from livetalk.commands.train_nano import weights_of
from livetalk.conditions import Conditions
from livetalk.config import InferenceRun, OdeRun, PairsRun, flat, load
from livetalk.data import encoded, pairs
from livetalk.devices import device_of, settle_gpu
from livetalk.families import CausalSampler
from livetalk.geometry import TIME_STRIDE
from livetalk.models.attention import BlockCausal
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.parts import Card, export_part, load_part, missing_parts, read_config, require_parts
from livetalk.rollout import gaussian
from livetalk.training import distributed
from livetalk.training.ode import DEV_ERROR, OdeObjective, Verdict, seam_ratio, verdict
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)
SHEET_CLIPS, SHEET_FRAMES = 4, 8

KEYS = """
name=NAME          pairs are read from runs/NAME/pairs, checkpoints and reports go to runs/NAME/ode
family=FOLDER      the family whose teacher the student starts from, and which the student joins
pairs=FOLDER       pairs to use instead
train.steps=N      length of the schedule; train.until=N stops earlier, to go on later
Without --config: configs/train_ode.yaml where there is a GPU, else configs/train_ode_debug.yaml.
"""


def train_ode(run: OdeRun, dry_run: bool = False) -> None:
    """Trains, exports; prints the verdict, the checkpoint and, last, the inference command that uses it."""
    if dry_run:
        print(memory(run))
        return
    device = distributed.join(device_of(run.device))
    settle_gpu()
    folder = Path("runs") / run.name / "ode"
    first = distributed.rank() == 0
    if first:
        print(f"train_ode: {run.name} on {device}, {run.train.steps} steps, checkpoints in {folder}", flush=True)
    sources = ready_pairs(run, device)
    require_parts(run.family, ("vae", "text", "teacher"))
    training = Training(run, sources, folder, device)
    training.trainer.fit(training.evaluate)
    if first and (missing_parts(run.family, ["student"]) or not training.history()):
        training.evaluate(training.trainer.step)
    distributed.leave()
    if first:
        training.report()
        print(training.verdict())
        print(f"checkpoint: {Path(run.family) / 'student'}")
        print(f"use it: {inference_command(run)}")


def ready_pairs(run: OdeRun, device: torch.device) -> Path:
    """The folder of pairs, made first where they are missing and the run says how."""
    folder = Path(run.pairs) if run.pairs else Path("runs") / run.name / "pairs"
    there = all(pairs.complete(folder / split) for split in ("train", "dev"))
    if not there and run.pairs_config and not run.pairs:
        make_pairs(pairs_run(run), device, (distributed.rank(), distributed.ranks()))
    return folder


def pairs_run(run: OdeRun) -> PairsRun:
    """The run that makes this run's pairs."""
    path = Path(run.pairs_config)
    settings = load(path if path.is_absolute() else CONFIGS / path, run="generate_ode_pairs")
    return replace(settings, name=run.name, family=run.family, device=run.device)


class Training:
    """The trainer, and the student as it is now, judged on held-out pairs at every checkpoint."""

    def __init__(self, run: OdeRun, sources: Path, folder: Path, device: torch.device) -> None:
        self.run, self.folder, self.device = run, folder, device
        student = load_part(run.family, "teacher", device)
        self.probe = load_part(run.family, "teacher", device)
        self.vae = load_part(run.family, "vae", device)
        fingerprint = encoded.fingerprint(student)
        text = load_part(run.family, "text", device)

        def objective(split: str, network: WanDiT) -> OdeObjective:
            found = pairs.load(sources / split, run.causal.timesteps, fingerprint, device)
            with torch.no_grad():
                features = torch.cat([text.encode(found.prompts[i : i + 256]) for i in range(0, len(found), 256)])
            return OdeObjective(network, found, features, run.geometry.block, run.ode)

        self.held_out = objective("dev", self.probe)
        self.start, self.last = self.judged(), {}
        log.info("before training: %s", _line(self.start))
        student.requires_grad_(True)
        if run.train.compile:
            for block in student.blocks:
                block.compile(dynamic=False)
        self.trainer = Trainer(objective("train", student), run.train, folder, device)

    def judged(self) -> dict[str, float]:
        """Errors of the probe's weights on all held-out pairs."""
        with self._autocast():
            return self.held_out.errors(self.probe, self.run.chunk)

    def evaluate(self, step: int) -> dict[str, float]:
        """Figures of the weights as they are, a sheet of pictures, the report; exports the part if its dev error is the
        lowest so far."""
        weights = weights_of(self.trainer, "student")
        self.probe.load_state_dict(weights)
        figures = self.judged()
        latents, truth = self.sampled()
        block = self.run.geometry.block
        if latents.shape[2] > block:
            figures |= {"seams": seam_ratio(latents, block), "seams of the teacher": seam_ratio(truth, block)}
        self.sheet(torch.cat([truth[:SHEET_CLIPS], latents[:SHEET_CLIPS]]), f"step-{step:07d}.png")
        log.info("step %d: %s", step, _line(figures))
        self.last = {"step": step, **figures}
        if self.best()["step"] == step or missing_parts(self.run.family, ["student"]):
            self.export(weights, step, figures)
        self.report()
        return figures

    def export(self, weights: dict[str, Tensor], step: int, figures: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
        made_with = self.trainer.objective.pairs.settings
        known = {f"pairs made with.{name}": value for name, value in made_with.items() if name != "source"}
        card = Card(made_with["seed"], step, rounded, flat(self.run) | known)
        export_part(self.run.family, "student", self.probe.config, weights, card)

    @torch.no_grad()
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Latents [shown, 16, F, h, w] as inference makes them, and the teacher's for the same conditions."""
        run, found = self.run, self.held_out.pairs
        chosen = torch.arange(min(run.shown, len(found)), device=self.device)
        conditions = found.conditions(chosen, self.held_out.text[chosen])
        noise = gaussian(torch.Generator().manual_seed(0), torch.float32, self.device)
        blocks = list(CausalSampler(self.probe, run.geometry, run.causal).sample(conditions, noise))
        truth = rearrange(found.states[chosen, -1], "b f c h w -> b c f h w").float()
        return torch.cat(blocks, dim=2), truth

    @torch.no_grad()
    def sheet(self, latents: Tensor, name: str) -> None:
        """A picture of clips below one another, frames evenly spaced: the teacher's first, then the student's."""
        rows = []
        for clip in latents.split(1):
            video = self.vae.decode(clip)[0].clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
            shown = torch.linspace(0, video.shape[1] - 1, SHEET_FRAMES).round().long().to(video.device)
            rows.append(rearrange(video[:, shown], "c t h w -> h (t w) c"))
        path = self.folder / "sheets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.cat(rows).cpu().numpy()).save(path)

    def history(self) -> list[dict]:
        """Every evaluation of the run and of runs that it continues, in order, each step once."""
        path = self.folder / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        rows += [self.last] if self.last else []
        return [row for _, row in sorted({row["step"]: row for row in rows if DEV_ERROR in row}.items())]

    def best(self) -> dict:
        """The evaluation of lowest dev error."""
        return min(self.history(), key=lambda row: row[DEV_ERROR])

    def verdict(self) -> Verdict:
        return verdict([(row["step"], row[DEV_ERROR]) for row in self.history()], self.run.ode)

    def report(self) -> None:
        """Writes report.json: is the ODE initialisation good enough?"""
        found = self.verdict()
        content = {
            "verdict": str(found),
            **asdict(found),
            "exported step": self.best()["step"],
            "start": self.start,
            "history": self.history(),
            "settings": flat(self.run),
        }
        partial = self.folder / ".report.json.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / "report.json")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16")


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def inference_command(run: OdeRun) -> str:
    """The command that renders the bundled example with this run's student."""
    default = InferenceRun()
    wanted = {
        "model": default.model if run.family == OdeRun().family else run.family,
        "sampler": "causal",
        **{f"geometry.{name}": value for name, value in flat(run.geometry).items()},
        "causal.positions": run.causal.positions,
    }
    known = flat(default)
    if run.causal.timesteps != default.causal.timesteps:
        wanted["causal.timesteps"] = f"[{','.join(map(str, run.causal.timesteps))}]"
    return " ".join(["bash scripts/inference.sh", *(f"{k}={v}" for k, v in wanted.items() if v != known[k])])


def pairs_bytes(run: OdeRun, config: DiTConfig) -> int:
    """Of the pairs that pairs_config makes; 0 for a run that does not say how they are made."""
    if not run.pairs_config:
        return 0
    settings, geometry = pairs_run(run), run.geometry
    latent = config.out_channels * geometry.latent_height * geometry.latent_width
    states = (len(run.causal.timesteps) + 1) * geometry.clip_latents * latent
    whole = settings.count + settings.held_out
    return whole * (states + geometry.clip_frames * config.audio_dim) * pairs.STORED.itemsize


def memory(run: OdeRun) -> str:
    """What training would take on one device, with all pairs on it."""
    there = not missing_parts(run.family, ["teacher"])
    config = read_config(Path(run.family) / "teacher", DiTConfig) if there else DiTConfig.nano()
    geometry, batch = run.geometry, run.train.batch
    with torch.device("meta"):
        student = WanDiT(config)

    def forward(dtype: torch.dtype) -> object:
        side = (geometry.latent_height, geometry.latent_width)
        noisy = torch.empty(batch, config.out_channels, geometry.clip_latents, *side, dtype=dtype)
        sound = torch.empty(batch, geometry.clip_latents, TIME_STRIDE * config.audio_dim, dtype=dtype)
        told = torch.empty(batch, config.text_len, config.text_dim, dtype=dtype)
        conditions = Conditions(told, noisy[:, :, :1], sound)
        return student(noisy, torch.empty(batch, geometry.clip_latents), conditions, BlockCausal(geometry.block))

    activations = activation_bytes(forward, [student], run.train.precision)
    rows = {"pairs": pairs_bytes(run, config)} | training_rows("student", [student], run.train, activations)
    return table(f"train_ode: {run.name}, batch {batch}, {run.train.precision}", rows)
