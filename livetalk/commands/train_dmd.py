"""`bash scripts/train_dmd.sh`: the causal student by Self-Forcing distribution matching, from the ODE student.

Takes pictures, sound and prompts from runs/NAME/pairs. At every checkpoint it samples held-out clips, shows them to the
family's judges, and exports the averaged weights as part `student` if they are the best so far by a stated rule
(HealthConfig); metrics.jsonl, report.json, sheets and videos are in runs/NAME/dmd.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from livetalk.cli import CONFIGS
from livetalk.commands import train_ode
from livetalk.commands.cached import text_encoder
from livetalk.commands.examination import Examination
from livetalk.commands.generate_ode_pairs import PREPARED
from livetalk.commands.memory import (
    clip_activations,
    kept_by_passes,
    kept_whole,
    samples_at_once,
    spread_lines,
    table,
    training_rows,
)
from livetalk.commands.train_ode import made_by
from livetalk.config import DmdRun, flat, load
from livetalk.data import encoded, pairs
from livetalk.data.curation.listing import held_out_elsewhere
from livetalk.data.pairs import OdePairs
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.models.dit import WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.parts import load_part, missing_parts, require_parts, sized
from livetalk.training import distributed, health, sharding
from livetalk.training.buckets import mixed, room_to_compile
from livetalk.training.compiled import compile_network
from livetalk.training.dmd import CRITIC, STUDENT, DmdObjective
from livetalk.training.tracking import Tracker
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)
KEPT = "student_ode"
SPREAD = ("teacher: parameters", *train_ode.SPREAD, *(row.replace(STUDENT, CRITIC) for row in train_ode.SPREAD))
"""Rows of the memory plan that processes share."""

KEYS = """
name=NAME          pairs are read from runs/NAME/pairs, checkpoints and sheets go to runs/NAME/dmd
family=FOLDER      the family whose ODE student and teacher it starts from, and which the student joins
pairs=FOLDER       pairs to use instead
prepared=FOLDER    clips of your own videos instead of pairs, as prepare_data left them in runs/NAME
                   pairs or prepared=FOLDER,FOLDER: of several shapes, of which each step takes one
train.steps=N      iterations, of which the student learns at every dmd.every-th; train.until=N stops earlier
tracking=offline   figures, sheets and videos to Weights & Biases too: off, offline, online; project=NAME
score=score        follow the judgement of the family's part `score`, a larger teacher
size=1.3b score_size=14b  what teacher and score must be of; a dry run needs no weights then
train.lr, critic.lr, dmd.text_scale, dmd.audio_scale   rates, and the teacher's guidance; dmd.parallel=0.3: share that
                       is kept of what guidance on sound does to the size of motion; dmd.skip.scale: guidance by itself
                       without layer dmd.skip.layer, at noise levels dmd.skip.levels
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
    tracker = train_ode.tracker_of(run, folder)
    ready_student(run)
    if first:
        keep_ode_student(Path(run.family))
    distributed.wait()
    needed = ("vae", "text", "teacher", run.source, run.score, *(["audio"] if run.prepared else []))
    sources = encoded.several(run.prepared) if run.prepared else train_ode.ready_pairs(run, device)
    if first and run.prepared and (both := held_out_elsewhere(sources)):
        log.warning("%d videos, such as %s, are held out and trained on: figures say little", len(both), min(both))
    require_parts(run.family, needed)
    for part, size in (("teacher", run.size), (run.score, run.score_size if run.score == "score" else run.size)):
        sized(run.family, part, size)
    training = Training(run, sources, folder, device, tracker)
    training.fit()
    tracker.finish()
    distributed.leave()
    if first:
        found = training.conclusions()
        print(f"best: step {found['best step']}{'' if found['best is healthy'] else ', but none is healthy'}")
        print(f"checkpoint: {Path(run.family) / 'student'}")
        print(f"use it: {train_ode.inference_command(run)}")


def ready_student(run: DmdRun) -> None:
    """Trains the ODE student first where there is none and the run says how."""
    lacking = missing_parts(run.family, ["student"]) and missing_parts(run.family, [KEPT])
    if lacking and run.ode_config and distributed.ranks() == 1:
        path = Path(run.ode_config)
        settings = load(path if path.is_absolute() else CONFIGS / path, run="train_ode")
        told = {"name": run.name, "family": run.family, "source": run.source, "device": run.device, "pairs": run.pairs}
        train_ode.train_ode(replace(settings, **told))


def keep_ode_student(family: Path) -> None:
    """Copies a student that is not of this command to part `student_ode`. Raises ValueError if there is neither."""
    if not missing_parts(family, ["student"]) and made_by(family / STUDENT) != DmdRun().run:
        fresh = family / f".{KEPT}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(family / "student", fresh)
        shutil.rmtree(family / KEPT, ignore_errors=True)
        fresh.rename(family / KEPT)
    if missing_parts(family, [KEPT]):
        raise ValueError(f"no ODE student in {family}: make it with bash scripts/train_ode.sh")


@dataclass(frozen=True)
class HeldOut:
    """Pairs and the features [N, L, text_dim] of their prompts."""

    pairs: OdePairs
    text: Tensor


def sources_of(run: DmdRun, device: torch.device) -> Callable[[Path, str], OdePairs]:
    """Reads a split of a folder of pairs, or of clips that prepare_data left, whose own pictures take the teacher's
    place."""
    if not run.prepared:
        fingerprint = encoded.fingerprint(load_part(run.family, run.source))
        return lambda folder, split: pairs.load(folder / split, run.causal.timesteps, fingerprint, device)
    encoders = encoded.fingerprint(*(load_part(run.family, name) for name in ("vae", "audio")))

    def read(folder: Path, split: str) -> OdePairs:
        clips = encoded.load_prepared(folder / PREPARED[split], encoders).to(device)
        return pairs.of_clips(clips, run.geometry.clip_latents, {"seed": run.train.seed, "prepared": str(folder)})

    return read


class Training(train_ode.Training):
    """The trainer, and the student as it is now, sampled for held-out clips at every checkpoint."""

    evaluated = "motion"

    def __init__(self, run: DmdRun, sources: list[Path], folder: Path, device: torch.device, tracker: Tracker) -> None:
        self.prepare(run, folder, device, tracker)
        student, self.probe = (load_part(run.family, KEPT, self.place) for _ in range(2))
        student.requires_grad_(True)
        critic = load_part(run.family, "teacher", self.place).requires_grad_(True)
        teacher = load_part(run.family, run.score, self.place, precision_of(run.teacher_precision, device))
        if run.train.compile:
            room_to_compile(len(sources))
        for network in (student, critic, teacher):
            compile_network(network, run.train.compile, cached=network is student)
        self.spread(self.probe)
        self.spread(teacher)
        text = text_encoder(run, device)
        read = sources_of(run, device)
        there = read(sources[0], "dev")
        train_ode.require_size(there, run.geometry, sources[0])
        self.held_out = HeldOut(there, train_ode.features_of(text, there.prompts))
        self.examination = Examination(run.family, self.held_out.pairs, run.shown, run.geometry.block)
        self.start, _ = self.examination.figures(self.sampled())
        log.info("the ODE student: %s", train_ode.line(self.start))
        with torch.no_grad():
            null = text.encode([run.negative_prompt])
        geometry, group = run.geometry, sharding.sequence_group(run.train.sequence)
        cache = CacheConfig(geometry.window, geometry.anchors, geometry.block, run.causal.positions)

        def part(source: Path) -> DmdObjective:
            known, timesteps = read(source, "train"), run.causal.timesteps
            told = train_ode.features_of(text, known.prompts)
            shared = (timesteps, cache, run.dmd, run.train.seed, group)
            return DmdObjective(student, critic, teacher, known, told, null, *shared)

        parts = [part(source) for source in sources]
        self.made_with = parts[0].pairs.settings
        objective = mixed(parts, [len(part.pairs) for part in parts], run.train.seed)
        players = {STUDENT: run.train, CRITIC: run.critic}
        self.trainer = Trainer(objective, run.train, folder, device, players, flat(run))

    def judged(self) -> dict[str, float]:
        """Nothing beyond what the examination sees."""
        return {}

    def best(self) -> dict:
        """The evaluation that HealthConfig.rule chooses."""
        return health.best(self.history(), self.examination.teacher, self.run.health)

    def lacks_student(self) -> bool:
        """Another command's student does not count."""
        return made_by(Path(self.run.family) / STUDENT) != self.run.run

    def conclusions(self) -> dict[str, object]:
        """Which checkpoint is the best, by which rule, and how strong the student's gradient is by exit step."""
        best = self.best()
        fit = health.healthy(best, self.examination.teacher, self.run.health)
        by_exit: dict[int, list[float]] = {}
        for row in self.rows():
            if f"{STUDENT} exit" in row:
                by_exit.setdefault(int(row[f"{STUDENT} exit"]), []).append(row[f"{STUDENT} grad_norm"])
        norms = {f"{self.run.causal.timesteps[i]:g}": fmean(found) for i, found in sorted(by_exit.items())}
        return {
            "best": self.run.health.rule,
            "best step": best["step"],
            "best is healthy": fit,
            "student grad_norm by exit timestep": norms,
        }


def memory(run: DmdRun) -> str:
    """What training would take on one device, with all pairs on it. Of several shapes the largest counts, and a cache
    for each."""
    config, shapes = sized(run.family, "teacher", run.size), train_ode.geometries(run)
    geometry = max(shapes, key=lambda shape: shape.tokens_per_frame)
    score = sized(run.family, run.score, run.score_size if run.score == "score" else run.size)
    samples, latents = samples_at_once(run.train), run.dmd.latents or geometry.clip_latents
    with torch.device("meta"):
        student, critic, teacher = WanDiT(config), WanDiT(config), WanDiT(score)
    shape = (geometry.clip_latents, geometry.latent_height, geometry.latent_width)
    # One player's activations at a time: the student's graded passes together, or the critic's one.
    activations = clip_activations(student, samples, shape, run.train.precision)
    with torch.no_grad():  # what the scores take and give is what the student is
        assert not clip_activations(teacher, samples, shape, run.train.precision)
    tokens = samples * geometry.clip_latents * geometry.tokens_per_frame
    kept = kept_by_passes(config, tokens, activations, run.train.recompute)
    window = geometry.window if run.dmd.windowed else latents
    own = torch.bfloat16.itemsize if run.train.precision == "bf16" else torch.float32.itemsize
    of_each = config.layers * samples * config.dim * own  # keys, values and, at relative positions, rotated keys
    a_token = (3 if run.causal.positions == "relative" else 2) * window * of_each
    past = sum(min(start, window - geometry.block) for start in range(0, geometry.clip_latents, geometry.block))
    held = torch.bfloat16.itemsize if run.teacher_precision == "bfloat16" else torch.float32.itemsize
    rows = {
        "pairs": train_ode.pairs_bytes(run, config),
        "teacher: parameters": held * sum(value.numel() for value in teacher.parameters()),
        "keys and values of rollouts": a_token * sum(shape.tokens_per_frame for shape in shapes),
        "copies of them that graded passes keep": 2 * of_each * past * geometry.tokens_per_frame,
        **training_rows(STUDENT, [student], run.train, kept),
        **training_rows(CRITIC, [critic], replace(run.train, ema=run.critic.ema), 0),
    }
    title = f"train_dmd: {run.name}, batch {run.train.batch}, {samples} at a time, {run.train.precision}"
    whole = kept_whole([student, critic], run.train)
    return table(title, rows, more=spread_lines(rows, SPREAD, whole) if run.train.at_once else ())
