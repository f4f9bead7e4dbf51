"""`bash scripts/train_dmd.sh`: the causal student by Self-Forcing distribution matching, from the ODE student.

Takes pictures, sound and prompts from runs/NAME/pairs. At every checkpoint it exports the averaged weights as part
`student` and writes a sheet of pictures; metrics.jsonl and the sheets are in runs/NAME/dmd.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from livetalk.cli import CONFIGS
from livetalk.commands import train_ode
from livetalk.commands.memory import activation_bytes, bytes_of, table, training_rows
from livetalk.commands.train_nano import weights_of
from livetalk.conditions import Conditions
from livetalk.config import DmdRun, flat, load
from livetalk.data import encoded, pairs
from livetalk.data.pairs import OdePairs
from livetalk.devices import device_of, settle_gpu
from livetalk.geometry import TIME_STRIDE
from livetalk.models.attention import FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.parts import CARD, Card, Part, export_part, load_part, missing_parts, read_config, require_parts
from livetalk.training import distributed
from livetalk.training.dmd import CRITIC, STUDENT, DmdObjective
from livetalk.training.ode import seam_ratio
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)
KEPT = "student_ode"
FROZEN, BLACK = 0.3, 0.5
"""Below these shares of the teacher's motion and contrast the student is said to have collapsed."""

KEYS = """
name=NAME          pairs are read from runs/NAME/pairs, checkpoints and sheets go to runs/NAME/dmd
family=FOLDER      the family whose ODE student and teacher it starts from, and which the student joins
pairs=FOLDER       pairs to use instead
train.steps=N      iterations, of which the student learns at every dmd.every-th; train.until=N stops earlier
train.lr, critic.lr, dmd.text_scale, dmd.audio_scale   rates, and the teacher's guidance
Without --config: configs/train_dmd.yaml where there is a GPU, else configs/train_dmd_debug.yaml.
"""


def train_dmd(run: DmdRun, dry_run: bool = False) -> None:
    """Trains, exports; prints the checkpoint and, last, the inference command that uses it."""
    if dry_run:
        print(memory(run))
        return
    device = distributed.join(device_of(run.device))
    settle_gpu()
    folder = Path("runs") / run.name / "dmd"
    first = distributed.rank() == 0
    if first:
        print(f"train_dmd: {run.name} on {device}, {run.train.steps} iterations, checkpoints in {folder}", flush=True)
    ready_student(run)
    if first:
        keep_ode_student(Path(run.family))
    distributed.wait()
    sources = train_ode.ready_pairs(run, device)
    require_parts(run.family, ("vae", "text", "teacher"))
    training = Training(run, sources, folder, device)
    training.trainer.fit(training.evaluate)
    if first and _made_by(Path(run.family) / "student") != run.run:
        training.evaluate(training.trainer.step)
    distributed.leave()
    if first:
        print(f"checkpoint: {Path(run.family) / 'student'}")
        print(f"use it: {train_ode.inference_command(run)}")


def ready_student(run: DmdRun) -> None:
    """Trains the ODE student first where there is none and the run says how."""
    lacking = missing_parts(run.family, ["student"]) and missing_parts(run.family, [KEPT])
    if lacking and run.ode_config and distributed.ranks() == 1:
        path = Path(run.ode_config)
        settings = load(path if path.is_absolute() else CONFIGS / path, run="train_ode")
        train_ode.train_ode(replace(settings, name=run.name, family=run.family, device=run.device, pairs=run.pairs))


def keep_ode_student(family: Path) -> None:
    """Copies a student that is not of this command to part `student_ode`. Raises ValueError if there is neither."""
    if not missing_parts(family, ["student"]) and _made_by(family / "student") != DmdRun().run:
        fresh = family / f".{KEPT}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(family / "student", fresh)
        shutil.rmtree(family / KEPT, ignore_errors=True)
        fresh.rename(family / KEPT)
    if missing_parts(family, [KEPT]):
        raise ValueError(f"no ODE student in {family}: make it with bash scripts/train_ode.sh")


def _made_by(part: Path) -> str:
    """The command that made a part, "" where no card says it."""
    card = part / CARD
    return json.loads(card.read_text(encoding="utf-8"))["settings"].get("run", "") if card.is_file() else ""


@dataclass(frozen=True)
class HeldOut:
    """Pairs and the features [N, L, text_dim] of their prompts."""

    pairs: OdePairs
    text: Tensor


class Training(train_ode.Training):
    """The trainer, and the student as it is now, sampled for held-out clips at every checkpoint."""

    def __init__(self, run: DmdRun, sources: Path, folder: Path, device: torch.device) -> None:
        self.run, self.folder, self.device = run, folder, device
        kept = Path(run.family) / KEPT
        start = Part(KEPT, partial(WanDiT, read_config(kept, DiTConfig)), kept)
        student, self.probe = start.load(device).requires_grad_(True), start.load(device)
        teacher, critic = (load_part(run.family, "teacher", device) for _ in range(2))
        self.vae, text = (load_part(run.family, name, device) for name in ("vae", "text"))
        fingerprint = encoded.fingerprint(teacher)
        critic.requires_grad_(True)

        @torch.no_grad()
        def found(split: str) -> HeldOut:
            there = pairs.load(sources / split, run.causal.timesteps, fingerprint, device)
            parts = [text.encode(there.prompts[i : i + 256]) for i in range(0, len(there), 256)]
            return HeldOut(there, torch.cat(parts))

        self.held_out, known = found("dev"), found("train")
        with torch.no_grad():
            null = text.encode([run.negative_prompt])
        for block in [*teacher.blocks, *critic.blocks] if run.train.compile else []:
            block.compile(dynamic=False)
        geometry = run.geometry
        cache = CacheConfig(geometry.window, geometry.anchors, geometry.block, run.causal.positions)
        objective = DmdObjective(
            student,
            critic,
            teacher,
            known.pairs,
            known.text,
            null,
            run.causal.timesteps,
            cache,
            run.dmd,
            run.train.seed,
        )
        players = {STUDENT: run.train, CRITIC: run.critic}
        self.trainer = Trainer(objective, run.train, folder, device, players)

    def evaluate(self, step: int) -> dict[str, float]:
        """Figures of the averaged student, a sheet of pictures; exports the part."""
        weights = weights_of(self.trainer, STUDENT)
        self.probe.load_state_dict(weights)
        latents, truth = self.sampled()
        figures = likeness(latents, truth, self.run.geometry.block)
        if figures["motion"] < FROZEN or figures["contrast"] < BLACK:
            log.warning("step %d: the student turns still or dull; see the sheets, lower the rates or guidance", step)
        self.sheet(torch.cat([truth, latents]), f"step-{step:07d}.png")
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
        card = Card(self.held_out.pairs.settings["seed"], step, rounded, flat(self.run))
        export_part(self.run.family, "student", self.probe.config, weights, card)
        return figures


def likeness(latents: Tensor, truth: Tensor, block: int) -> dict[str, float]:
    """Of the student's and the teacher's latents [B, C, F, h, w] for the same conditions.

    motion: mean change between latent frames, contrast: deviation over space, each over the teacher's; seams: see
    seam_ratio.
    """

    def moves(x: Tensor) -> float:
        return float((x[:, :, 2:] - x[:, :, 1:-1]).abs().mean())

    def contrast(x: Tensor) -> float:
        return float(x[:, :, 1:].std(dim=(3, 4)).mean())

    figures = {"motion": moves(latents) / moves(truth), "contrast": contrast(latents) / contrast(truth)}
    if latents.shape[2] > block:
        figures |= {"seams": seam_ratio(latents, block), "seams of the teacher": seam_ratio(truth, block)}
    return figures


def memory(run: DmdRun) -> str:
    """What training would take on one device, with all pairs on it."""
    there = not missing_parts(run.family, ["teacher"])
    config = read_config(Path(run.family) / "teacher", DiTConfig) if there else DiTConfig.nano()
    geometry, batch = run.geometry, run.train.batch
    latents = run.dmd.latents or geometry.clip_latents
    with torch.device("meta"):
        student, critic = WanDiT(config), WanDiT(config)

    def forward(dtype: torch.dtype) -> object:
        side = (geometry.latent_height, geometry.latent_width)
        noisy = torch.empty(batch, config.out_channels, geometry.clip_latents, *side, dtype=dtype)
        sound = torch.empty(batch, geometry.clip_latents, TIME_STRIDE * config.audio_dim, dtype=dtype)
        told = torch.empty(batch, config.text_len, config.text_dim, dtype=dtype)
        return student(noisy, torch.empty(batch), Conditions(told, noisy[:, :, :1], sound), FullAttention())

    # One player's activations at a time: the student's graded passes together, or the critic's one.
    activations = activation_bytes(forward, [student], run.train.precision)
    window = geometry.window if run.dmd.windowed else latents
    cached = 2 * config.layers * batch * window * geometry.tokens_per_frame * config.dim * torch.float32.itemsize
    rows = {
        "pairs": train_ode.pairs_bytes(run, config),
        "teacher: parameters": bytes_of(critic.parameters(), torch.float32),
        "keys and values of a rollout": cached,
        **training_rows(STUDENT, [student], run.train, activations),
        **training_rows(CRITIC, [critic], replace(run.train, ema=run.critic.ema), 0),
    }
    return table(f"train_dmd: {run.name}, batch {batch}, {run.train.precision}", rows)
