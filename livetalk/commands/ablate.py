"""`bash scripts/ablate.sh`: what choices of the recipe are worth, by DMD runs without each of them, over seeds.

One process runs variants x seeds one after the other, each a training of its own in runs/NAME/VARIANT-seedS, with a
family that shares all frozen parts. A finished one is never run again, a killed one goes on from its checkpoint. The
caches of inference are compared on long clips of one student, without training. runs/NAME/ablations.json holds all that
was found; it alone, put back there, lets another machine go on. The report is written to `output`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk import checks
from livetalk.checks import made_folder
from livetalk.cli import CONFIGS
from livetalk.commands.evaluate import STUDENTS, Bench
from livetalk.commands.generate_ode_pairs import make_pairs, start_parts
from livetalk.commands.train_dmd import KEPT, memory, train_dmd
from livetalk.commands.train_ode import CLIPS, STUDENT, made_by, rows_of, train_ode
from livetalk.config import END_SECONDS, AblateRun, DmdRun, EvaluateRun, OdeRun, PairsRun, flat, load
from livetalk.data import encoded, pairs
from livetalk.devices import device_of, settle_gpu
from livetalk.evaluation.ablations import BASELINE, CHECKPOINTS, LONG_FIGURES, report, row_at, write_plots
from livetalk.evaluation.evaluate import drift_name
from livetalk.evaluation.report import Report, figures, finite
from livetalk.families import CausalSampler
from livetalk.flow import Guidance, SkipLayer
from livetalk.parts import card_of, missing_parts, require_parts
from livetalk.training.dmd import DmdConfig

log = logging.getLogger(__name__)
SHARED = ("vae", "audio", "text", "judges", "teacher")
CACHES = {
    "anchors, relative": (True, "relative"),
    "anchors, absolute": (True, "absolute"),
    "no anchors, relative": (False, "relative"),
    "no anchors, absolute": (False, "absolute"),
}
RESULT, RESULTS, LONG = "result.json", "ablations.json", "long.json"

KEYS = """
name=NAME          everything goes to runs/NAME; the same name goes on where a run stopped
family=FOLDER      the family whose teacher and ODE student all runs share
variants=[baseline,short_ode,plain,spoiled] seeds=[0,1,2]  which runs
part=I parts=N     this process makes every N-th run from the I-th on, so that several share the work
seconds=S          begin nothing new after S seconds; what is left is said at the end
only=runs          or long: only the caches on long clips; or report: write the report of what is there
pairs=FOLDER       pairs to use instead of making count=N held_out=N of them
results=[FILE]     ablations.json of other machines, to be reported together with these
long_seconds=180 long_clips=N  the caches, on one student; 0: not at all
Without --config: configs/ablate.yaml where there is a GPU, else configs/ablate_debug.yaml.
"""


def ablate(run: AblateRun, dry_run: bool = False) -> None:
    """Prints the outcomes, what is left to run, and, last, the folder of the report."""
    whole = Ablation(run)
    if dry_run:
        print(memory(whole.dmd_run(BASELINE, 0)))
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("ablate is one process: start several with part=I parts=N instead of torchrun")
    made_folder("output", run.output)
    settle_gpu()
    print(f"ablate: {run.name} on {whole.device}, {len(whole.mine())} runs in {whole.folder}", flush=True)
    if run.only in ("", "runs"):
        whole.train()
    if whole.follows():
        whole.follow()
    whole.report()


def settings_of(name: str, run: str) -> Any:
    """The settings in a file of configs/, or at an absolute path."""
    path = Path(name)
    loaded = load(path if path.is_absolute() else CONFIGS / path, run=run)
    if loaded.run != run:
        raise ValueError(f"config {name} is for {loaded.run}: name one for {run}")
    return loaded


class Ablation:
    """The runs of an ablation, what they share, and what is known of them so far."""

    def __init__(self, run: AblateRun) -> None:
        self.run, self.device = run, device_of(run.device)
        self.folder = Path("runs") / run.name
        self.began = time.monotonic()
        self.dmd: DmdRun = settings_of(run.dmd_config, DmdRun().run)
        self.ode: OdeRun = settings_of(run.ode_config, OdeRun().run)
        made: PairsRun = settings_of(run.pairs_config, PairsRun().run)
        own = {"name": run.name, "family": run.family, "device": run.device, "source": self.dmd.source}
        sizes = {"count": run.count, "held_out": run.held_out, "workers": run.workers}
        self.made = replace(made, part=0, parts=1, **own, **sizes)
        self.evaluation = self._evaluation()

    def over(self) -> bool:
        """Whether nothing new may begin."""
        return 0 < self.run.seconds < time.monotonic() - self.began

    # What all runs share

    def clean(self) -> Path:
        """The folder of pairs, made first where they are missing; with them, in a world that needs no file, the family
        itself."""
        if self.run.pairs:
            require_parts(self.run.family, ("vae", "text", "teacher", self.dmd.source))
            return Path(self.run.pairs)
        folder = self.folder / "pairs"
        if not all(pairs.complete(folder / split) for split in ("train", "dev")):
            make_pairs(self.made, self.device, (0, 1))
            release()
        return folder

    def spoiled(self) -> Path:
        """The same clips, the share `spoiled` of those to train on spoiled; the held-out ones are the clean ones."""
        clean, folder = self.clean(), self.folder / "spoiled" / "pairs"
        if not pairs.complete(folder / "train"):
            count = json.loads((clean / "train" / encoded.INDEX).read_text(encoding="utf-8"))["count"]
            # DMD reads the conditions of pairs alone, so that the fewest steps between them will do.
            few = replace(self.made, steps=len(self.made.timesteps), compile=False, count=count)
            few = replace(few, name=f"{self.run.name}/spoiled", spoiled=self.run.spoiled)
            make_pairs(few, self.device, (0, 1), ["train"])
            release()
        if not (folder / "dev").is_dir():
            copy_whole(clean / "dev", folder / "dev")
        return folder

    def ode_student(self, short: bool) -> Path:
        """The part that runs start from. The family's own is copied once, since it may be replaced meanwhile."""
        folder = self.folder / ("ode-short" if short else "ode-converged")
        part, done = folder / "family" / STUDENT, folder / "done"
        if done.is_file():
            return part
        own = None if short else self._given_student()
        lay_family(Path(self.run.family), folder / "family", (*SHARED, self.dmd.source))
        if own is None:
            train_ode(self._ode_run(folder, short))
            release()
        else:
            copy_whole(own, part)
        done.touch()
        return part

    def _given_student(self) -> Path | None:
        """The one that train_dmd would start from."""
        family = Path(self.run.family)
        if made_by(family / STUDENT) == OdeRun().run:
            return family / STUDENT
        return None if missing_parts(family, [KEPT]) else family / KEPT

    def _ode_run(self, folder: Path, short: bool) -> OdeRun:
        own = {"name": f"{self.run.name}/{folder.name}", "family": str(folder / "family"), "device": self.run.device}
        ode = replace(self.ode, pairs=str(self.clean()), source=self.dmd.source, shown=self.run.shown, **own)
        if not short:
            return ode
        steps = self.run.short_ode
        warmup = min(ode.train.warmup, steps // 4)
        train = replace(ode.train, steps=steps, until=0, seconds=0.0, warmup=warmup, save_every=steps, compile=False)
        return replace(ode, train=train)

    # Runs

    def all(self) -> list[tuple[str, int]]:
        """Every seed of all variants before the next seed, so that what a time limit cuts off is seeds."""
        return [(variant, seed) for seed in self.run.seeds for variant in self.run.variants]

    def mine(self) -> list[tuple[str, int]]:
        return self.all()[self.run.part :: self.run.parts]

    def place(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant}-seed{seed}"

    def dmd_run(self, variant: str, seed: int) -> DmdRun:
        """The training of a variant. No alarm stops it: what goes wrong is the result."""
        run, folder = self.run, self.place(variant, seed)
        train = replace(
            self.dmd.train, steps=run.steps, until=0, seconds=0.0, save_every=run.save_every, seed=seed, keep=1
        )
        dmd, critic = self.dmd.dmd, self.dmd.critic
        if variant == "plain":
            dmd = replace(dmd, text_scale=run.plain_scale, audio_scale=run.plain_scale, parallel=1.0, skip=SkipLayer())
            train, critic = (replace(one, lr=one.lr * run.plain_rates) for one in (train, critic))
        own = {"name": f"{run.name}/{folder.name}", "family": str(folder / "family"), "device": run.device}
        clean = run.pairs or str(self.folder / "pairs")
        shared = {
            "pairs": str(self.folder / "spoiled" / "pairs") if variant == "spoiled" else clean,
            "shown": run.shown,
            "health": replace(self.dmd.health, patience=0),
        }
        return replace(self.dmd, dmd=dmd, train=train, critic=critic, **own, **shared)

    def decided_by(self, variant: str, seed: int) -> dict[str, Any]:
        """All settings that a result depends on, as JSON gives them back."""
        settings = {name: value for name, value in flat(self.dmd_run(variant, seed)).items() if name != "device"}
        settings |= {name: getattr(self.run, name) for name in ("count", "held_out")}
        settings |= {"short_ode": self.run.short_ode} if variant == "short_ode" else {}
        settings |= {"spoiled": self.run.spoiled} if variant == "spoiled" else {}
        return json.loads(json.dumps(settings))

    def train(self) -> None:
        """Runs what is not finished, until the time is over. Raises ValueError if other settings made what is there."""
        there = {(one["variant"], one["seed"]): one for one in self.known()["results"]}
        for variant, seed in self.mine():
            if (variant, seed) in there:
                settings = self.decided_by(variant, seed)
                self._require_same(f"{variant}, seed {seed}", there[variant, seed]["settings"], settings)
        for variant, seed in self.mine():
            if (variant, seed) in there:
                continue
            if self.over():
                return
            with locked(self.folder):
                start_parts(self.made)
                student = self.ode_student(short=variant == "short_ode")
                _ = self.spoiled() if variant == "spoiled" else self.clean()
            if self.over():
                return
            self.measure(variant, seed, student)

    def _require_same(self, what: str, there: dict, now: dict) -> None:
        differing = sorted(name for name in {*now, *there} if now.get(name) != there.get(name))
        if differing:
            raise ValueError(
                f"{self.folder} holds {what}, made with other settings ({', '.join(differing)}): give another name=, "
                "or remove it"
            )

    def measure(self, variant: str, seed: int, student: Path) -> None:
        """One run to its end, and its result."""
        folder, began, stopped = self.place(variant, seed), time.monotonic(), ""
        lay_family(Path(self.run.family), folder / "family", (*SHARED, self.dmd.source))
        if missing_parts(folder / "family", [KEPT]):
            copy_whole(student, folder / "family" / KEPT)
        log.info("%s, seed %d begins after %.0f s", variant, seed, began - self.began)
        try:
            train_dmd(self.dmd_run(variant, seed))
        except FloatingPointError as error:
            stopped = str(error).split(":")[0] + ": not finite"
            log.warning("%s, seed %d stopped: %s", variant, seed, error)
        release()
        result = {"variant": variant, "seed": seed, "stopped": stopped, "seconds": time.monotonic() - began}
        write_json(folder / RESULT, result | {"settings": self.decided_by(variant, seed)} | self._seen(folder))
        self.gather()

    def _seen(self, folder: Path) -> dict[str, Any]:
        """What a run's report says, and the figures of each clip at the two checkpoints that count."""
        path = folder / "dmd" / "report.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        history = [row | {"updates": updates(self.dmd.dmd, row["step"])} for row in found.get("history", [])]
        own = {
            "teacher": found.get("teacher", {}),
            "start": found.get("start", {}),
            "history": history,
            "best step": found.get("best step"),
            "healthy": found.get("best is healthy"),
        }
        clips = {row["step"]: row for row in rows_of(folder / "dmd" / CLIPS)}
        chosen = {at: row_at(own, at).get("step") for at in CHECKPOINTS}
        return own | {"clips": {at: clips[step] for at, step in chosen.items() if step in clips}}

    # Long clips

    def _evaluation(self) -> EvaluateRun:
        """How long clips are made and seen; ValueErrors of its own for what the user can mend."""
        run = self.run
        sizes = {"long_seconds": run.long_seconds, "long_clips": run.long_clips, "batch": run.batch}
        own = {"family": run.long_family or run.family, "device": run.device, "split": run.long_split}
        model = {"geometry": self.dmd.geometry, "causal": self.dmd.causal, "world": self.made.world}
        return EvaluateRun(workers=run.workers, **own, **sizes, **model)

    def follows(self) -> bool:
        """Whether long clips are this process's to make."""
        asked = self.run.only == "long" or (not self.run.only and self.run.part == 0)
        return asked and self.run.long_seconds > 0

    def followed(self) -> str:
        """The family whose student is followed; the one with the ODE student where none is there yet."""
        if self.run.long_family:
            return self.run.long_family
        with locked(self.folder):
            start_parts(self.made)
            if missing_parts(self.run.family, [STUDENT]) and missing_parts(self.run.family, [KEPT]):
                return str(self.ode_student(short=False).parent)
        return self.run.family

    def follow(self) -> None:
        """One student on long clips under each of CACHES that is not known yet, until the time is over."""
        known = self.known()["long"]
        left = [name for name in CACHES if name not in known]
        sizes = {name: getattr(self.evaluation, name) for name in ("split", "long_clips", "long_seconds")}
        for name, one in known.items():
            self._require_same(f"{name}, on long clips", one["settings"], sizes)
        if not left or self.over():
            return
        settings = replace(self.evaluation, family=self.followed())
        part = KEPT if missing_parts(settings.family, [STUDENT]) else STUDENT
        require_parts(settings.family, (*SHARED, part))
        bench = Bench(settings, self.device, [part])
        student = bench.family.students[STUDENTS[part]]
        clips, ends = bench.long_footage()
        for name in left:
            if self.over():
                return
            anchors, positions = CACHES[name]
            geometry = settings.geometry if anchors else replace(settings.geometry, anchors=0)
            method = CausalSampler(student.dit, geometry, replace(settings.causal, positions=positions))
            found = Report(name, len(clips))
            bench.drift(found, name, method, 0, clips, ends)
            write_json(self.folder / LONG, (known := known | {name: drifted(found, name) | {"settings": sizes}}))
            self.gather()
        del bench, student
        release()

    # What is known

    def known(self) -> dict[str, Any]:
        """Results and long clips of this machine and of the files `results`; this machine's own win."""
        sources = [*map(Path, self.run.results), self.folder / RESULTS]
        missing = [str(path) for path in sources[:-1] if not path.is_file()]
        if missing:
            raise ValueError(f"results: {', '.join(missing)} not found: name files {RESULTS}")
        found, long, students = {}, {}, {}
        for path in sources:
            content = read_json(path, {"results": [], "long": {}, "students": {}})
            found |= {(one["variant"], one["seed"]): one for one in content["results"]}
            long, students = long | content["long"], students | content["students"]
        for path in sorted(self.folder.glob(f"*/{RESULT}")):
            one = read_json(path, {})
            found[one["variant"], one["seed"]] = one
        for name in ("ode-converged", "ode-short"):
            if (self.folder / name / "done").is_file():
                students[name] = told_by(self.folder / name / "family" / STUDENT)
        results = [found[key] for key in sorted(found)]
        return {"results": results, "long": long | read_json(self.folder / LONG, {}), "students": students}

    def gather(self) -> dict[str, Any]:
        """Writes all that is known to ablations.json."""
        with locked(self.folder):
            content = {"run": self.run.run, "name": self.run.name, "settings": flat(self.run), **self.known()}
            write_json(self.folder / RESULTS, content)
        return content

    def left(self) -> list[str]:
        """What this process was asked for and has not done."""
        known = self.known()
        there = {(one["variant"], one["seed"]) for one in known["results"]}
        runs = [f"{variant} seed {seed}" for variant, seed in self.mine() if (variant, seed) not in there]
        caches = [name for name in CACHES if name not in known["long"]] if self.follows() else []
        return caches if self.run.only == "long" else runs + caches

    def report(self) -> None:
        """Writes report.md, its plots and ablations.json to `output`; prints outcomes and what is left."""
        content, folder = self.gather(), Path(self.run.output)
        folder.mkdir(parents=True, exist_ok=True)
        results = content["results"]
        text = report("Ablations", self.about(content), results, content["long"], self.long_about())
        (folder / "report.md").write_text(text, encoding="utf-8")
        write_plots(results, folder)
        write_json(folder / RESULTS, content)
        print("\n".join(line for line in text.splitlines() if line.startswith("- **")))
        left = self.left()
        print(f"left: {', '.join(left)}; the same command goes on" if left else "nothing is left")
        print(folder)

    def about(self, content: dict[str, Any]) -> str:
        """What was run, in a sentence or two."""
        run, baseline = self.run, self.dmd_run(BASELINE, 0)

        def said(variant: str) -> str:
            """By what was stored with its results, which may be of other settings than those of today."""
            of = [one["settings"] for one in content.get("results", ()) if one["variant"] == variant]
            it = of[0] if of else self.decided_by(variant, 0)
            skip = SkipLayer(it.get("dmd.skip.scale", 0.0), it.get("dmd.skip.layer", 0))
            guidance = Guidance(it["dmd.text_scale"], it["dmd.audio_scale"], it.get("dmd.parallel", 1.0), skip)
            return f"{guidance}, rates {it['train.lr']:.2g} and {it['critic.lr']:.2g}"

        starts = "; ".join(f"{name}: {told}" for name, told in content["students"].items())
        return (
            f"DMD for {run.steps} iterations ({updates(baseline.dmd, run.steps)} updates of the student), seen every "
            f"{run.save_every}, on {run.shown} held-out clips, the same for all. baseline: {said(BASELINE)}; plain: "
            f"{said('plain')}; spoiled: {run.spoiled:.0%} of the pairs; short_ode: {run.short_ode} steps of ODE "
            f"initialisation. The starts: {starts or 'not made yet'}."
        )

    def long_about(self) -> str:
        one = self.evaluation
        return (
            f"The student of {one.family} on {one.long_clips} clips of {one.long_seconds} s of split {one.split}: the "
            f"last {END_SECONDS} s against the first, read at lag 0. Anchors: {one.geometry.anchors} latent frames "
            f"of a window of {one.geometry.window}, or none. The student learnt with {one.causal.positions} positions."
        )


def updates(config: DmdConfig, step: int) -> int:
    """How often the student has learnt after `step` iterations (DmdObjective.turns)."""
    return max(0, step // config.every - config.critic_first // config.every)


def told_by(part: Path) -> str:
    """What the card of an ODE student says of it."""
    card = card_of(part)
    error = card.get("figures", {}).get("dev error")
    return f"{card.get('steps', 'unknown')} steps" + (f", dev error {error:.4f}" if error is not None else "")


def drifted(found: Report, name: str) -> dict[str, Any]:
    """The rows of a long method, and LONG_FIGURES of each clip, for JSON."""

    def ends(figure: str) -> list[np.ndarray]:
        return [found.per_clip[name, f"{figure}, {end} {END_SECONDS:.0f} s"] for end in ("first", "last")]

    start, end = ends("sharpness")
    values = (
        ends("A/V correlation")[1],
        ends("identity")[1],
        end / np.maximum(start, 1e-12),
        found.per_clip[name, drift_name("colour change", END_SECONDS)],
    )
    clips = {figure.name: [finite(float(v)) for v in row] for figure, row in zip(LONG_FIGURES, values, strict=True)}
    return {"figures": {row.measure: figures(row.estimate) for row in found.rows}, "clips": clips}


def lay_family(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """A family in `folder` whose parts `names` are links to those of `source`, as far as that has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(names):
        link, part = folder / name, source / name
        if link.is_symlink():
            link.unlink()
        if part.is_dir() and not link.exists():
            link.symlink_to(os.path.relpath(part.resolve(), folder.resolve()), target_is_directory=True)


def copy_whole(source: Path, folder: Path) -> None:
    """A copy of a folder that is there wholly or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def release() -> None:
    """Frees what a finished run held on the card: its trainer, which is part of cycles, and its captured graphs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: what all runs share is made once."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_json(path: Path, otherwise: dict) -> dict:
    return checks.read_json(path, f"name a whole {path.name}", otherwise) if path.is_file() else otherwise


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
