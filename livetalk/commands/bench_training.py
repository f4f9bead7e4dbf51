"""`bash scripts/bench_training.sh`: seconds a training step, where they go, and how near to what the card can do.

Alone or by torchrun; weights are random, which costs as much as any others. Steps are timed twice: as they are, and
with a wait after every phase, for the shares.
"""

from __future__ import annotations

import gc
import json
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from livetalk.checks import made_folder
from livetalk.commands import memory
from livetalk.commands.memory import bytes_of
from livetalk.data.pairs import STORED, OdePairs
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation.benchmark import Limits, limits_of, wait
from livetalk.models.attention import BlockCausal
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.training import distributed, flops, sharding
from livetalk.training.bench import CASES, PRESETS, BenchTrainingRun
from livetalk.training.compiled import compile_network
from livetalk.training.dmd import CRITIC, STUDENT, DmdObjective, Iteration
from livetalk.training.ode import OdeConfig, OdeObjective
from livetalk.training.trainer import Trainer

PHASES = ("rollout", "student", "teacher", "critic", "backward", "optimiser")
CPU = torch.device("cpu")
SIZE = "1.3b"  # of student and critic

KEYS = """
preset=1.3b|debug     the published sizes, or the same in tiny
cases=[ode,dmd-14b]   what to time: ode, dmd-1.3b, dmd-14b (the teacher's size)
train.shard=true      spread over the processes of torchrun: torchrun --nproc-per-node 2 scripts/bench_training.py ...
samples=N             of a step and process; train.accumulate=N takes N times as many, in so many parts
steps=N warmup=N      timed, and so many before; then a step of everyone who has not learnt yet
train.compile=true|parts|blocks train.attention=auto|cudnn|flash|default
train.recompute=false train.offload=true train.regather=false train.no_sync=true train.sequence=2
"""


class Phases:
    """Seconds by phase. The outermost counts; a phase begins and ends with a wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on, self.within = device, False, False
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str):
        if not self.on or self.within:
            yield
            return
        self.within = True
        wait(self.device)
        started = time.perf_counter()
        try:
            yield
            wait(self.device)
        finally:
            self.within = False
        self.seconds[name] += time.perf_counter() - started

    def timed(self, name: str, act: Callable) -> Callable:
        @wraps(act)
        def timed(*arguments, **settings):
            with self.phase(name):
                return act(*arguments, **settings)

        return timed


class TimedTrainer(Trainer):
    phases: Phases

    def _backward(self, loss: Tensor) -> None:
        with self.phases.phase("backward"):
            super()._backward(loss)


class TimedDmd(DmdObjective):
    """Exit steps take turns instead of being drawn, so that few steps stand for many."""

    def shared(self, step: int) -> Iteration:
        return Iteration(step % len(self.timesteps), 0)


@dataclass(frozen=True)
class Case:
    """step: seconds of one; phases: seconds of one by phase, with waits; flops: of one, per process; memory: bytes at
    most in a process; samples: of a step, all processes together."""

    step: float
    phases: dict[str, float]
    flops: float
    memory: int
    samples: int

    def as_dict(self, limits: Limits) -> dict[str, float]:
        whole = sum(self.phases.values())
        return {
            "seconds a step": self.step,
            "seconds a step, with waits between phases": whole,
            "samples a second, all processes": self.samples / self.step,
            **{f"{name}, % of a step": 100 * value / whole for name, value in self.phases.items()},
            "peak memory of a process, GiB": self.memory / 2**30,
            "TFLOP a step and process": self.flops / 1e12,
            "model FLOP utilisation, %": 100 * self.flops / self.step / limits.flops,
        }


def bench_training(run: BenchTrainingRun, dry_run: bool = False) -> None:
    """Prints a table and, last, the JSON file that holds it."""
    if dry_run:
        print("\n".join(dry(run, case) for case in run.cases))
        return
    device = distributed.join(device_of(run.device))
    if distributed.rank() == 0:
        made_folder("output", run.output)
    settle_gpu()
    first, processes = distributed.rank() == 0, distributed.ranks()
    if first:
        print(
            f"bench_training: preset {run.preset} on {processes} x {device.type}, {run.steps} steps a case", flush=True
        )
    limits = limits_of(device, torch.bfloat16 if run.train.precision == "bf16" else torch.float32)
    cases = {}
    for name in run.cases:
        cases[name] = measure(run, name, device)
        if first:
            print(f"{name}: {cases[name].step:.2f} s a step, {cases[name].memory / 2**30:.1f} GiB", flush=True)
        free(device)
    distributed.leave()
    if first:
        told = about(device, processes, limits)
        output = Path(run.output) / f"{run.preset}-{run.geometry.width}x{run.geometry.height}-{processes}.json"
        content = {"about": told, "cases": {name: case.as_dict(limits) for name, case in cases.items()}}
        output.write_text(json.dumps(content | {"settings": asdict(run)}, indent=1) + "\n", encoding="utf-8")
        print("; ".join(f"{key} {value}" for key, value in told.items()))
        print(table(cases, limits))
        print(output)


def measure(run: BenchTrainingRun, name: str, device: torch.device) -> Case:
    """Builds a case with random weights and times its steps."""
    trainer, phases = trainer_of(run, name, device)
    warm_up(trainer, run.warmup)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = trainer.step
    step = seconds_of(trainer, run.steps, device)
    # The same steps again, so that turns and exits are the same.
    trainer.step, phases.on = began, True
    whole = seconds_of(trainer, run.steps, device)
    shares = {phase: phases.seconds[phase] / run.steps for phase in PHASES}
    shares["other"] = max(0.0, whole - sum(shares.values()))
    work = sum(arithmetic(run, name, at) for at in range(began, began + run.steps)) / run.steps
    samples = trainer.config.batch
    own = samples / distributed.ranks()
    return Case(step, shares, own * work, peak(device), samples)


def warm_up(trainer: Trainer, steps: int) -> None:
    """So many steps, and one of everyone who learns, since what is compiled is so at its first: once the steps are
    done, those in which nobody learns for the first time are skipped."""
    waiting = set(trainer.players)
    while steps > 0 or waiting:
        learning = set(trainer.turns_now())
        if steps > 0 or waiting & learning:
            trainer.update()
            waiting -= learning
        else:
            trainer.step += 1
        steps -= 1


def seconds_of(trainer: Trainer, steps: int, device: torch.device) -> float:
    """Of one of `steps`, by the slowest process."""
    wait(device)
    distributed.wait()
    started = time.perf_counter()
    for _ in range(steps):
        trainer.update()
    wait(device)
    return slowest((time.perf_counter() - started) / steps, device)


def slowest(value: float, device: torch.device) -> float:
    """The largest of all processes' values."""
    if distributed.ranks() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return float(box)


def peak(device: torch.device) -> int:
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    # On a CPU that of the whole process since it began.
    used = 2**10 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if used is None else used
    return int(slowest(float(used), device))


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def trainer_of(run: BenchTrainingRun, name: str, device: torch.device) -> tuple[Trainer, Phases]:
    """A trainer of random weights on random pairs, and what times its phases."""
    sizes, groups = PRESETS[run.preset], max(1, distributed.ranks() // run.train.sequence)
    train = replace(run.train, batch=run.samples * run.train.accumulate * groups, warmup=0)
    group = sharding.sequence_group(train.sequence)
    pairs, text = random_pairs(run, device)
    student = network(run, sizes[SIZE], device, learns=True, cached=bool(CASES[name]))
    phases, folder = Phases(device), Path(run.output)
    if not CASES[name]:
        objective = OdeObjective(student, pairs, text[1:], run.geometry.block, OdeConfig(), group)
        objective.predict = phases.timed("student", objective.predict)
        trainer = TimedTrainer(objective, train, folder, device)
    else:
        critic = network(run, sizes[SIZE], device, learns=True)
        teacher = network(run, sizes[CASES[name]], device, learns=False)
        geometry = run.geometry
        cache = CacheConfig(geometry.window, geometry.anchors, geometry.block)
        known = (pairs, text[1:], text[:1], run.timesteps, cache, run.dmd)
        objective = TimedDmd(student, critic, teacher, *known, group=group)
        objective.generate = phases.timed("rollout", objective.generate)
        objective.guided = phases.timed("teacher", objective.guided)
        objective._clean = phases.timed("critic", objective._clean)  # the teacher's own is inside of `guided`
        trainer = TimedTrainer(objective, train, folder, device, {STUDENT: train, CRITIC: run.critic})
    trainer.phases = phases
    for player in trainer.players.values():
        player.descend = phases.timed("optimiser", player.descend)
    return trainer, phases


def network(
    run: BenchTrainingRun, sizes: DiTConfig, device: torch.device, learns: bool, cached: bool = False
) -> WanDiT:
    """Random weights, made where they stay: a teacher of 14B never lies on the host. cached: it is rolled out."""
    dtype = torch.float32 if learns else precision_of(run.teacher_precision, device)
    with torch.device("meta"):
        dit = WanDiT(sizes).to(dtype).eval().requires_grad_(learns)
    compile_network(dit, run.train.compile, cached)
    if run.train.shard:
        sharding.shard(dit, run.train, device, run.train.precision)
    dit.to_empty(device="cpu" if run.train.offload else device)
    with torch.no_grad():
        for name, value in dit.named_parameters():
            own = sharding.local(value)
            own.fill_(1.0) if "norm" in name and name.endswith("weight") else own.normal_(std=0.02)
    return dit


def random_pairs(run: BenchTrainingRun, device: torch.device) -> tuple[OdePairs, Tensor]:
    """Pairs, and features of a negative prompt and of theirs."""
    sizes, geometry, count = PRESETS[run.preset][SIZE], run.geometry, max(2, run.samples)
    states = (count, len(run.timesteps) + 1, geometry.clip_latents, sizes.out_channels)
    states = torch.randn(*states, geometry.latent_height, geometry.latent_width, device=device, dtype=STORED)
    audio = torch.randn(count, geometry.clip_frames, sizes.audio_dim, device=device, dtype=STORED)
    text = torch.randn(count + 1, sizes.text_len, sizes.text_dim, device=device)
    return OdePairs(states, audio, ["a"] * count, run.timesteps), text


def arithmetic(run: BenchTrainingRun, name: str, step: int) -> int:
    """FLOP of a step with one sample."""
    sizes = PRESETS[run.preset]
    if not CASES[name]:
        return flops.ode_flops(sizes[SIZE], run.geometry)
    config = run.dmd
    learns = config.learns(step)
    three = (sizes[SIZE], sizes[SIZE], sizes[CASES[name]])
    return flops.dmd_flops(*three, run.geometry, step % len(run.timesteps), config.guidance.passes, learns)


def about(device: torch.device, processes: int, limits: Limits) -> dict[str, str]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "card": f"{processes} x {card}",
        "matrix products": f"{limits.flops / 1e12:.3g} TFLOP/s",
        "PyTorch": torch.__version__,
    }


def table(cases: dict[str, Case], limits: Limits) -> str:
    """Markdown, a column a case; under 20 lines."""
    columns = [case.as_dict(limits) for case in cases.values()]
    lines = ["| | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(f"{column[row]:.3g}" for column in columns) + " |" for row in columns[0]]
    return "\n".join(lines)


def dry(run: BenchTrainingRun, name: str) -> str:
    """What one process alone would hold."""
    sizes, geometry = PRESETS[run.preset], run.geometry
    with torch.device("meta"):
        student = WanDiT(sizes[SIZE])
    tokens = run.samples * geometry.clip_latents * geometry.tokens_per_frame
    shape = (geometry.clip_latents, geometry.latent_height, geometry.latent_width)
    attend = None if CASES[name] else BlockCausal(geometry.block)
    full = memory.clip_activations(student, run.samples, shape, run.train.precision, attend)
    kept = memory.kept_by_passes(student.config, tokens, full, run.train.recompute)
    rows = memory.training_rows(STUDENT, [student], run.train, kept)
    if CASES[name]:
        rows |= memory.training_rows(CRITIC, [student], replace(run.train, ema=run.critic.ema), 0)  # the other plays
        with torch.device("meta"):
            teacher = WanDiT(sizes[CASES[name]])
        rows["teacher: parameters"] = bytes_of(teacher.parameters(), precision_of(run.teacher_precision, CPU))
        cached = 2 * student.config.layers * geometry.window * geometry.tokens_per_frame * student.config.dim
        kept = STORED if run.train.precision == "bf16" else torch.float32
        rows["keys, also rotated, and values of a rollout"] = run.samples * cached * 3 // 2 * kept.itemsize
        block, window = geometry.block, geometry.window
        past = sum(min(start, window - block) for start in range(0, geometry.clip_latents, block))
        rows["copies of them that graded passes keep"] = run.samples * cached // window * past * kept.itemsize
    how = "recompute" if run.train.recompute else "all activations kept"
    return memory.table(f"bench_training, {name}: {run.samples} samples, {how}, one process", rows)
