"""`bash scripts/train_ode.sh`: ODE initialisation of the causal student from the teacher's weights.

Trains on runs/NAME/pairs, judges itself on the held-out pairs at every checkpoint, exports the one of lowest error
as part `student`, and says by a stated rule whether it has converged. All that was seen on the way is in runs/NAME/ode:
metrics.jsonl, clips.jsonl (figures of each clip), report.json, sheets and videos.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from livetalk.cli import CONFIGS, command_of
from livetalk.commands.cached import AT_ONCE, CachedText, text_encoder
from livetalk.commands.examination import Examination
from livetalk.commands.generate_ode_pairs import PREPARED, make_pairs
from livetalk.commands.memory import (
    clip_activations,
    kept_by_passes,
    kept_whole,
    samples_at_once,
    spread_lines,
    table,
    training_rows,
)
from livetalk.commands.train_nano import weights_of
from livetalk.config import DmdRun, InferenceRun, OdeRun, PairsRun, flat, load
from livetalk.data import encoded, pairs
from livetalk.data.pairs import OdePairs
from livetalk.devices import device_of, settle_gpu
from livetalk.families import CausalSampler
from livetalk.geometry import SPACE_STRIDE, Geometry
from livetalk.models.attention import BlockCausal
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.text import TextEncoder
from livetalk.parts import Card, card_of, export_part, load_part, missing_parts, require_parts, sized
from livetalk.rollout import gaussian
from livetalk.training import distributed, sharding, tracking
from livetalk.training.buckets import mixed, room_to_compile
from livetalk.training.compiled import compile_network
from livetalk.training.health import Watch
from livetalk.training.ode import DEV_ERROR, OdeObjective, Verdict, verdict
from livetalk.training.tracking import Tracker
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)
STUDENT = "student"
SPREAD = tuple(f"student: {what}" for what in ("parameters", "gradients", "optimiser", "averaged"))
"""Rows of the memory plan that processes share."""
CLIPS = "clips.jsonl"

KEYS = """
name=NAME          pairs are read from runs/NAME/pairs, checkpoints and reports go to runs/NAME/ode
family=FOLDER      the family whose teacher the student starts from, and which the student joins
source=teacher_causal  pairs are the causal teacher's, and the student starts from that
pairs=FOLDER       pairs to use instead; pairs=FOLDER,FOLDER: of several shapes, of which each step takes one
size=1.3b          what the teacher must be of; a dry run needs no weights then
train.steps=N      length of the schedule; train.until=N stops earlier, to go on later
tracking=offline   figures, sheets and videos to Weights & Biases too: off, offline, online; project=NAME
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
    tracker = tracker_of(run, folder)
    sources = ready_pairs(run, device)
    require_parts(run.family, ("vae", "text", run.source))
    sized(run.family, run.source, run.size)
    training = Training(run, sources, folder, device, tracker)
    training.fit()
    tracker.finish()
    distributed.leave()
    if first:
        training.report()
        print(training.verdict())
        print(f"checkpoint: {Path(run.family) / 'student'}")
        print(f"use it: {inference_command(run)}")


def tracker_of(run: OdeRun | DmdRun, folder: Path) -> Tracker:
    """Tracks the first process. Raises ValueError as tracking.start does."""
    mode = run.tracking if distributed.rank() == 0 else "off"
    return tracking.start(mode, run.project, f"{run.name}/{folder.name}", folder, flat(run))


def ready_pairs(run: OdeRun, device: torch.device) -> list[Path]:
    """The folders of pairs, of one shape each, made first where they are missing and the run says how."""
    if run.pairs:
        return encoded.several(run.pairs)
    folder = Path("runs") / run.name / "pairs"
    there = all(pairs.complete(folder / split) for split in ("train", "dev"))
    if not there and run.pairs_config:
        make_pairs(pairs_run(run), device, (distributed.rank(), distributed.ranks()))
    return [folder]


def pairs_run(run: OdeRun) -> PairsRun:
    """The run that makes this run's pairs."""
    path = Path(run.pairs_config)
    settings = load(path if path.is_absolute() else CONFIGS / path, run="generate_ode_pairs")
    parallel = 1.0 if run.source == "teacher_causal" else settings.parallel
    return replace(settings, name=run.name, family=run.family, device=run.device, source=run.source, parallel=parallel)


class Training:
    """The trainer, and the student as it is now, examined on held-out pairs at every checkpoint.

    The best student so far is kept as the family's part `student`, which no rotation of checkpoints touches.
    """

    evaluated = DEV_ERROR
    """What only rows of evaluations have."""

    def __init__(self, run: OdeRun, sources: list[Path], folder: Path, device: torch.device, tracker: Tracker) -> None:
        self.prepare(run, folder, device, tracker)
        student, self.probe = (load_part(run.family, run.source, self.place) for _ in range(2))
        fingerprint = encoded.fingerprint(student)
        self.spread(self.probe)
        text, group = text_encoder(run, device), sharding.sequence_group(run.train.sequence)

        def objectives(split: str, network: WanDiT) -> list[OdeObjective]:
            found = [pairs.load(source / split, run.causal.timesteps, fingerprint, device) for source in sources]
            require_size(found[0], run.geometry, sources[0])
            told = [features_of(text, one.prompts) for one in found]
            block, both = run.geometry.block, zip(found, told, strict=True)
            return [OdeObjective(network, *one, block, run.ode, group) for one in both]

        self.judges = objectives("dev", self.probe)
        self.held_out = self.judges[0]
        self.examination = Examination(run.family, self.held_out.pairs, run.shown, run.geometry.block)
        self.start = self.judged()
        log.info("before training: %s", line(self.start))
        student.requires_grad_(True)
        if run.train.compile:
            room_to_compile(len(sources))
        compile_network(student, run.train.compile)
        parts = objectives("train", student)
        self.made_with = parts[0].pairs.settings
        objective = mixed(parts, [len(part.pairs) for part in parts], run.train.seed)
        self.trainer = Trainer(objective, run.train, folder, device, told=flat(run))

    def prepare(self, run: OdeRun | DmdRun, folder: Path, device: torch.device, tracker: Tracker) -> None:
        """What is the same for every objective."""
        self.run, self.folder, self.device, self.tracker = run, folder, device, tracker
        self.last: dict[str, float] = {}
        # The host's memory is where networks wait to be spread over all devices.
        self.place = torch.device("cpu") if run.train.shard else device
        self.watch = Watch(run.health, folder, self.rows(), lambda: self.trainer.settle())

    def spread(self, network: WanDiT) -> None:
        """Spreads a network that does not learn over all processes, where the run is sharded."""
        if self.run.train.shard:
            sharding.shard(network, self.run.train, self.device, self.run.train.precision)

    def fit(self) -> None:
        self.trainer.fit(self.evaluate, self.logged)
        missing = self.lacks_student() or not self.history()
        if distributed.agreed(int(missing), self.device) and (self.run.train.shard or distributed.rank() == 0):
            self.evaluate(self.trainer.step)

    def logged(self, step: int, scalars: dict[str, float]) -> None:
        """What training logs: tracked, and watched for what goes wrong."""
        self.tracker.log(step, scalars)
        self.watch.scalars(step, scalars)

    def judged(self) -> dict[str, float]:
        """Errors of the probe's weights on all held-out pairs, and where these have several shapes on each."""
        with self._autocast():
            found = [judge.errors(self.probe, self.run.chunk) for judge in self.judges]
        counts = [len(judge.pairs) for judge in self.judges]
        means = {
            name: sum(one[name] * count for one, count in zip(found, counts, strict=True)) / sum(counts)
            for name in found[0]
        }
        if len(found) == 1:
            return means
        shapes = [shape_of(judge.pairs) for judge in self.judges]
        return means | {f"{DEV_ERROR}, {name}": one[DEV_ERROR] for name, one in zip(shapes, found, strict=True)}

    def evaluate(self, step: int) -> dict[str, float]:
        """Figures of the weights as they are, pictures, the report; exports the part if it is the best so far. Raises
        HopelessError. In a sharded run all processes sample, and the first one looks."""
        self.probe.load_state_dict(weights_of(self.trainer, STUDENT))
        latents, judged = self.sampled(), self.judged()
        if distributed.rank():
            return {}
        seen_figures, seen = self.examination.figures(latents)
        self.keep_clips(step, self.examination.per_clip(latents, seen))
        figures = judged | seen_figures
        files = self.examination.show(seen, self.folder, f"step-{step:07d}")
        log.info("step %d: %s", step, line(figures))
        beside = {f"teacher/{name}": value for name, value in self.examination.teacher.items()}
        self.tracker.log(step, {f"dev/{name}": value for name, value in figures.items()} | beside, files)
        self.watch.frames(step, figures, self.examination.teacher)
        self.last = {"step": step, **figures}
        if self.best()["step"] == step or self.lacks_student():
            self.export(step, figures)
        self.report()
        return figures

    def keep_clips(self, step: int, figures: dict[str, list]) -> None:
        """The figures of each clip, for intervals between runs: lines of clips.jsonl."""
        with open(self.folder / CLIPS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def export(self, step: int, figures: dict[str, float]) -> None:
        weights = self.trainer.whole_weights(STUDENT)
        rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
        known = {f"pairs made with.{name}": value for name, value in self.made_with.items() if name != "source"}
        card = Card(self.made_with["seed"], step, rounded, flat(self.run) | known)
        export_part(self.run.family, STUDENT, self.probe.config, weights, card)

    @torch.no_grad()
    def sampled(self) -> Tensor:
        """Latents [shown, 16, F, h, w] as inference makes them; the same noise and conditions every time."""
        run, found, chosen = self.run, self.held_out.pairs, self.examination.chosen
        conditions = found.conditions(chosen, self.held_out.text[chosen])
        noise = gaussian(torch.Generator().manual_seed(0), torch.float32, self.device)
        with self._autocast():
            blocks = list(CausalSampler(self.probe, run.geometry, run.causal).sample(conditions, noise))
        return torch.cat(blocks, dim=2).float()

    def rows(self) -> list[dict]:
        """What the run, and runs that it continues, wrote to metrics.jsonl."""
        return rows_of(self.folder / "metrics.jsonl")

    def history(self) -> list[dict]:
        """Every evaluation, in order, each step once."""
        rows = self.rows() + ([self.last] if self.last else [])
        return [row for _, row in sorted({row["step"]: row for row in rows if self.evaluated in row}.items())]

    def best(self) -> dict:
        """The evaluation of lowest dev error."""
        return min(self.history(), key=lambda row: row[DEV_ERROR])

    def lacks_student(self) -> bool:
        """Whether the family has no student to speak of."""
        return bool(missing_parts(self.run.family, [STUDENT]))

    def verdict(self) -> Verdict:
        return verdict([(row["step"], row[DEV_ERROR]) for row in self.history()], self.run.ode)

    def report(self) -> None:
        """Writes report.json."""
        content = {
            **self.conclusions(),
            "exported step": card_of(Path(self.run.family) / STUDENT).get("steps"),
            "start": self.start,
            "teacher": self.examination.teacher,
            "history": self.history(),
            "settings": flat(self.run),
        }
        partial = self.folder / ".report.json.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / "report.json")

    def conclusions(self) -> dict[str, object]:
        """Is the ODE initialisation good enough?"""
        found = self.verdict()
        return {"verdict": str(found), **asdict(found), "best": f"lowest {DEV_ERROR}"}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16")


@torch.no_grad()
def features_of(text: TextEncoder | CachedText, prompts: list[str]) -> Tensor:
    """Features [N, L, text_dim] of prompts."""
    return torch.cat([text.encode(prompts[low : low + AT_ONCE]) for low in range(0, len(prompts), AT_ONCE)])


def shape_of(found: OdePairs) -> str:
    """Width x height in pixels."""
    height, width = (SPACE_STRIDE * side for side in found.states.shape[-2:])
    return f"{width}x{height}"


def require_size(found: OdePairs, geometry: Geometry, folder: Path) -> None:
    """Raises ValueError unless pairs are of the size at which a run looks at its student."""
    if tuple(found.states.shape[-2:]) != (geometry.latent_height, geometry.latent_width):
        height, width = (SPACE_STRIDE * side for side in found.states.shape[-2:])
        raise ValueError(
            f"{folder} holds pairs of {shape_of(found)} pixels, the run's are {geometry.width}x{geometry.height}: say "
            f"geometry.height={height} geometry.width={width}"
        )


def rows_of(path: Path) -> list[dict]:
    """The lines of a .jsonl file, none where there is no file."""
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s, line %d, is torn (the run was killed there): left out", path, number)
    return found


def made_by(part: Path) -> str:
    """The command that made a part, "" where no card says it."""
    return card_of(part).get("settings", {}).get("run", "")


def line(figures: dict[str, float]) -> str:
    """For the log."""
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
    return command_of("inference", {key: value for key, value in wanted.items() if value != known[key]})


def geometries(run: OdeRun | DmdRun) -> list[Geometry]:
    """Those of the shapes that a run trains on; its own first."""
    prepared = run.prepared if isinstance(run, DmdRun) else ""
    named = prepared or run.pairs
    found = [run.geometry]
    for folder in encoded.several(named)[1:] if named else []:
        if prepared:
            height, width = encoded.description_of(folder / PREPARED["train"])["size"]
        else:
            height, width = (SPACE_STRIDE * side for side in pairs.shapes_of(folder / "train")["states"][-2:])
        found.append(replace(run.geometry, height=height, width=width))
    return found


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
    """What training would take on one device, with all pairs on it. Of several shapes the largest counts."""
    config, geometry = sized(run.family, run.source, run.size), max(geometries(run), key=lambda g: g.tokens_per_frame)
    samples = samples_at_once(run.train)
    with torch.device("meta"):
        student = WanDiT(config)
    shape = (geometry.clip_latents, geometry.latent_height, geometry.latent_width)
    activations = clip_activations(student, samples, shape, run.train.precision, BlockCausal(geometry.block))
    tokens = samples * geometry.clip_latents * geometry.tokens_per_frame
    kept = kept_by_passes(config, tokens, activations, run.train.recompute)
    rows = {"pairs": pairs_bytes(run, config)} | training_rows("student", [student], run.train, kept)
    title = f"train_ode: {run.name}, batch {run.train.batch}, {samples} at a time, {run.train.precision}"
    whole = kept_whole([student], run.train)
    return table(title, rows, more=spread_lines(rows, SPREAD, whole) if run.train.at_once else ())
