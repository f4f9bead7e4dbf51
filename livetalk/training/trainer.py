"""One training loop for every objective.

An objective names its trained modules and turns (step, generator) into a loss. Batches and noise are functions of the
run's seed and the step alone, so a resumed run repeats an uninterrupted one and no random state has to be saved.

Modules learn together, or, in a game such as DMD, as players with a loss, an optimiser and an average each.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import ChainMap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from livetalk.checks import above, at_least, decays
from livetalk.models.dit import WanDiT
from livetalk.training import checkpoint, distributed, going_on, sharding
from livetalk.training.compiled import WAYS
from livetalk.training.ema import EMA
from livetalk.training.graphed import GraphedStep
from livetalk.training.kernels import KERNELS, attending, kernel_for
from livetalk.training.sharded_checkpoint import ShardedCheckpoints
from livetalk.training.sharding import Sharding

log = logging.getLogger(__name__)
PROBE = (20, 100)
"""Between these steps of a run the speed is measured: the first ones compile and warm up."""
TOLD = "run"
"""Where a checkpoint keeps the settings of its run."""


@dataclass(frozen=True)
class Learning:
    """How the modules of an optimiser learn, by AdamW. ema: decay of the averaged weights, 0 for none."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 100
    final_lr: float = 0.0
    clip: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, self, "lr", "weight_decay", "warmup", "final_lr")
        above(0, self, "clip")
        decays(self, "betas", "ema")

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step of `steps`: linear warm-up, then a cosine down to final_lr * lr."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class TrainConfig(Sharding, Learning):
    """steps: length of the whole schedule; until: step to stop at, for training in slices (0: the end). seconds: if not
    0, how long the run may take: steps is then set by the speed measured over the first PROBE steps. batch: samples a
    step, of all processes together.

    precision: "bf16" (autocast, float32 masters) or "fp32"; graph: on a GPU, capture the step as a CUDA graph
    (training/graphed.py); compile: true, or "parts" or "blocks" for one of the two ways (training/compiled.py).
    recompute: see WanDiT, for less memory and more time; accumulate: parts of a batch, one after the other, whose
    gradients are added up. attention: the kernel that is tried first, one of KERNELS (training/kernels.py).
    """

    steps: int = 1000
    until: int = 0
    seconds: float = 0.0
    batch: int = 64
    seed: int = 0
    precision: str = "bf16"
    compile: bool | str = False
    graph: bool = False
    attention: str = "auto"
    recompute: bool = False
    accumulate: int = 1
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        Sharding.__post_init__(self)
        Learning.__post_init__(self)
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision {self.precision!r}: choose bf16 or fp32")
        if not isinstance(self.compile, bool) and self.compile not in WAYS:
            raise ValueError(f"compile={self.compile}: choose true, false, {' or '.join(WAYS)}")
        if self.attention not in KERNELS:
            raise ValueError(f"attention={self.attention}: choose {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")
        at_least(1, self, "steps", "batch", "accumulate", "log_every", "save_every", "keep")
        at_least(0, self, "until", "seconds", "seed")
        if self.shard and self.graph:
            raise ValueError("graph=true and shard=true do not go together: captured steps cannot gather weights")
        if self.at_once and self.accumulate > 1:
            raise ValueError(f"at_once={self.at_once} decides the parts of a batch: leave accumulate out")

    @property
    def end(self) -> int:
        return min(self.steps, self.until) if self.until else self.steps

    def rate(self, step: int) -> float:
        return self.rate_at(step, self.steps)

    def parts(self, processes: int) -> int:
        """How many parts of the batch each process takes one after the other. Raises ValueError if it does not split
        evenly."""
        if processes % self.sequence:
            raise ValueError(f"sequence={self.sequence} does not divide {processes} processes")
        groups = processes // self.sequence
        parts = max(1, self.batch // (groups * self.at_once)) if self.at_once else self.accumulate
        if self.batch % (groups * parts) or self.at_once and self.batch != groups * parts * self.at_once:
            split = f"batch {self.batch} does not split over {groups} processes"
            if self.at_once:
                raise ValueError(
                    f"{split} that take {self.at_once} at once: give a multiple of {groups * self.at_once}"
                )
            raise ValueError(split + (f" and {parts} parts" if parts > 1 else ""))
        return parts


class Objective(Protocol):
    def modules(self) -> dict[str, nn.Module]:
        """The trained modules by name."""

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of one step and scalars worth logging; all randomness from `generator`."""

    def kind(self, step: int) -> Hashable:
        """Steps of one kind run the same operations on the same shapes. Asked for only where steps are captured."""

    tokens: int
    """Of the clips that transformers are trained on, of the largest where there are several. Asked for only where one
    is trained."""


class Game(Protocol):
    """An objective whose modules are players, each with a loss of its own."""

    def modules(self) -> dict[str, nn.Module]:
        """The players by name."""

    def turns(self, step: int) -> Sequence[str]:
        """Who learns at a step, one after another."""

    def loss(self, step: int, batch: int, generator: torch.Generator, player: str) -> tuple[Tensor, dict[str, Tensor]]:
        """As an Objective's, for one player; it gives no gradient to the others."""

    def kind(self, step: int) -> Hashable:
        """As an Objective's; the turns are part of it."""


class Player:
    """Modules that learn together: their optimiser and their average."""

    def __init__(self, modules: nn.ModuleDict, config: Learning, device: torch.device, captured: bool) -> None:
        self.modules, self.config, self.captured = modules, config, captured
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(config.lr, device=device) if captured else config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda",
            capturable=captured,
        )
        self.ema = EMA(modules, config.ema) if config.ema else None

    def set_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            # A captured step reads the rate from a tensor on the card, so there it is changed in place.
            group["lr"] = group["lr"].fill_(rate) if self.captured else rate

    def descend(self) -> Tensor:
        """One update from the gradients that are there; returns their norm before clipping."""
        distributed.average_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        return sharding.whole(norm)

    def restore(self, optimiser: dict, ema: dict[str, Tensor], device: torch.device) -> None:
        """ema: {} from a run that had no average, which begins one with the weights it goes on from."""
        self.optimiser.load_state_dict(optimiser)
        if self.ema:
            self.ema.weights = ema or EMA(self.modules, self.config.ema).weights
        for group in self.optimiser.param_groups:
            # How the saved run went is no matter: an eager one may go on captured, and the other way round.
            group["capturable"] = self.captured
            group["lr"] = torch.tensor(self.config.lr, device=device) if self.captured else self.config.lr


class Trainer:
    """Trains an objective's modules in `folder`, from the last whole checkpoint if there is one.

    players: how each module of a Game learns; {} for an Objective, whose modules learn together as `config` says.
    told: all settings of the run by dotted name, which a run that goes on compares (going_on.py); by default those of
    `config`.
    """

    def __init__(
        self,
        objective: Objective | Game,
        config: TrainConfig,
        folder: Path,
        device: torch.device | str = "cpu",
        players: Mapping[str, Learning] = MappingProxyType({}),
        told: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.objective, self.config, self.folder = objective, config, Path(folder)
        self.told = dict(told) or {f"train.{name}": value for name, value in asdict(config).items()}
        self.device = torch.device(device)
        self.parts = config.parts(distributed.ranks())
        self.share = config.batch // (distributed.ranks() // config.sequence * self.parts)
        self.modules = self._placed(objective.modules())
        tokens = objective.tokens if any(isinstance(module, WanDiT) for module in self.modules.values()) else 0
        self.kernel = kernel_for(config.attention, self.device, config.precision, self.modules.values(), tokens)
        self.sharded = ShardedCheckpoints(self.folder) if config.shard else None
        self.graphed = GraphedStep(self._learn, self.device) if config.graph and self.on_gpu else None
        assert not players or set(players) == set(self.modules)
        captured = self.graphed is not None
        self.players = {
            name: Player(nn.ModuleDict({name: self.modules[name]}), learning, self.device, captured)
            for name, learning in players.items()
        } or {"": Player(self.modules, config, self.device, captured)}
        self.step = 0
        self.scalars: dict[str, float] = {}

    def _placed(self, modules: dict[str, nn.Module]) -> nn.ModuleDict:
        """The trained modules, on the device or spread over the devices of all processes."""
        config = self.config
        for module in nn.ModuleDict(modules).modules():
            if isinstance(module, WanDiT):
                module.recompute = config.recompute
        if not config.shard:
            return nn.ModuleDict(modules).to(self.device)
        return nn.ModuleDict(
            {name: sharding.shard(module, config, self.device, config.precision) for name, module in modules.items()}
        )

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def weights(self) -> dict[str, Tensor]:
        """The weights to use: averaged where averaging is on."""
        averaged = [player.ema.weights for player in self.players.values() if player.ema]
        return dict(ChainMap(*averaged, self.modules.state_dict()))

    def whole_weights(self, name: str) -> dict[str, Tensor]:
        """The weights to use of one module, all in this process: of a sharded run those last saved, read from disk."""
        if self.sharded:
            return self.sharded.read_weights(name)
        start = f"{name}."
        return {key.removeprefix(start): value for key, value in self.weights().items() if key.startswith(start)}

    def resume(self) -> bool:
        """Continues from the newest whole checkpoint; False if there is none. Raises ValueError if that is of another
        run than this one (going_on.py)."""
        before = checkpoint.latest_settings(self.folder)
        if before and TOLD in before.settings:
            going_on.compare(self.folder, before.step, before.settings[TOLD], self.told)
        if self.sharded:
            found = self.sharded.load_latest(self.players.values())
            step, settings = (found["step"], found["settings"]) if found else (0, {})
        else:
            found = checkpoint.load_latest(self.folder, self.device)
            step, settings = (found.step, found.settings) if found else (0, {})
        if found is None:
            return False
        if not self.sharded:
            self._restore(found)
        self.step = step
        if self.config.seconds and self.step >= PROBE[1]:
            self.config = replace(self.config, steps=settings["steps"])
        return True

    def _restore(self, state: checkpoint.State) -> None:
        theirs, ours = (
            {name: value.shape for name, value in one.items()} for one in (state.weights, self.modules.state_dict())
        )
        going_on.require_same(self.folder / checkpoint.name_of(state.step), theirs, ours)
        self.modules.load_state_dict(state.weights, strict=True)
        for name, player in self.players.items():
            averaged = {key: value for key, value in state.ema.items() if key.startswith(name and f"{name}.")}
            player.restore(state.optimiser[name] if name else state.optimiser, averaged, self.device)
        if self.graphed:
            self.graphed.forget()

    def save(self) -> None:
        """Writes a checkpoint: in the first process, or every process its parts, in the background."""
        settings = asdict(self.config) | {TOLD: self.told}
        if self.sharded:
            self.sharded.save(self.step, self.players.values(), settings, self.config.keep)
            return
        if distributed.rank():
            return
        ema = dict(ChainMap(*(player.ema.weights for player in self.players.values() if player.ema)))
        optimiser = {name: player.optimiser.state_dict() for name, player in self.players.items()}
        optimiser = optimiser.get("", optimiser)
        state = checkpoint.State(self.step, dict(self.modules.state_dict()), ema, optimiser)
        checkpoint.save(self.folder, state, settings, keep=self.config.keep)

    def settle(self) -> None:
        """Waits until what was saved is on disk."""
        if self.sharded:
            self.sharded.finish()

    def fit(
        self,
        evaluate: Callable[[int], dict] | None = None,
        watch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Trains until the configured end, logging to the console and to metrics.jsonl. Returns the last scalars.

        evaluate: figures of the step that was just saved; watch: sees what is logged, and may raise to stop the run
        before more is saved. Both in the first process alone; but a sharded run evaluates in every process, since
        passes need all of them.
        """
        remedy = "the same command goes on from the last whole checkpoint"
        with distributed.failing(lambda: f"at step {self.step} of {self.folder}; {remedy}"):
            return self._fit(evaluate, watch)

    def _fit(self, evaluate: Callable[[int], dict] | None, watch: Callable | None) -> dict[str, float]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.resume():
            log.info("continuing %s at step %d", self.folder, self.step)
        if self.step >= self.config.end:
            log.warning(
                "%s is at step %d already: nothing to train; give more steps or another name=", self.folder, self.step
            )
        started, first = time.monotonic(), self.step
        probe = (started, first)
        while self.step < self.config.end:
            metrics = self.update()
            if self.step in (first + 1, first + 20) or self.step % self.config.log_every == 0:
                self.scalars = self._report(metrics, started, first)
                if watch and not distributed.rank():
                    watch(self.step, self.scalars)
            if self.config.seconds and self.step in PROBE:
                probe = self._plan(started, probe)
            if self.step % self.config.save_every == 0 or self.step == self.config.end:
                self._check(self._numbers(metrics))
                self.save()
                if evaluate and (self.sharded or not distributed.rank()):
                    self._record({"step": self.step, **evaluate(self.step)})
                distributed.wait()
        self.settle()
        if self.graphed and distributed.ranks() > 1:
            self.graphed.forget()  # NCCL waits, when processes part, for graphs that still use it
        return self.scalars

    def _plan(self, started: float, probe: tuple[float, int]) -> tuple[float, int]:
        """Sets the length of the schedule from the speed between the PROBE steps and the time that is left.

        probe: when, and at which step, the measurement began: at the first of them, or where the run goes on between
        them. Returns the like of now.
        """
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.monotonic()
        if self.step == PROBE[1]:
            pace = (now - probe[0]) / (PROBE[1] - probe[1])
            steps = self.step + int((started + self.config.seconds - now) / pace)
            steps = distributed.agreed(max(self.step + 1, steps), self.device)
            self.config = replace(self.config, steps=steps)
            log.info("%.1f ms/step: %d steps fit into %.0f s", 1e3 * pace, steps, self.config.seconds)
        return now, self.step

    def turns_now(self) -> Sequence[str]:
        """The players that learn at this step."""
        return ("",) if "" in self.players else self.objective.turns(self.step)

    def update(self) -> dict[str, Tensor]:
        """One step of all whose turn it is; scalars worth logging."""
        learning = [self.players[name] for name in self.turns_now()]
        for player in learning:
            player.set_rate(player.config.rate_at(self.step, self.config.steps))
        seed = self.config.seed * 1_000_003 + self.step
        with attending(self.kernel):
            if self.graphed:
                metrics = self.graphed(self.objective.kind(self.step), distributed.seed(seed))
            else:
                metrics = self._learn(*self._generators(seed))
        self.step += 1
        for player in learning:
            if player.ema:
                player.ema.update(player.modules, self.step)
        return metrics

    def _generators(self, seed: int) -> list[torch.Generator]:
        """One for all parts of a process; where sharded one a part, whose numbers do not depend on who takes it."""
        if not self.sharded:
            return [torch.Generator(self.device).manual_seed(distributed.seed(seed))]
        first = distributed.rank() // self.config.sequence * self.parts
        seeds = [distributed.seed(seed, first + part) for part in range(self.parts)]
        return [torch.Generator(self.device).manual_seed(own) for own in seeds]

    def _learn(self, *generators: torch.Generator) -> dict[str, Tensor]:
        """One step of gradient descent for all whose turn it is; its random numbers come from the generators alone."""
        if "" in self.players:
            return self._descend(self.players[""], self.objective.loss, generators)
        metrics = {}
        for name in self.turns_now():
            found = self._descend(self.players[name], partial(self.objective.loss, player=name), generators)
            metrics |= {f"{name} {key}": value for key, value in found.items()}
        return metrics

    def _descend(self, player: Player, loss_of: Callable, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Generators: one a part of the batch, or one for all parts."""
        player.optimiser.zero_grad(set_to_none=True)
        found = []
        for part in range(self.parts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss, metrics = loss_of(self.step, self.share, generators[part % len(generators)])
            if self.config.no_sync:
                sharding.exchange(player.modules, now=part == self.parts - 1)
            self._backward(loss / self.parts)
            found.append({"loss": loss.detach(), **metrics})
        if self.config.no_sync:
            sharding.let_go(player.modules)
        norm = player.descend()
        means = {name: sum(part[name] for part in found) / len(found) for name in found[0]}
        return {"loss": means.pop("loss"), "grad_norm": norm, **means}

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _numbers(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """On the host; where sharded, means over the processes."""
        scalars = {name: float(value) for name, value in metrics.items()}
        return distributed.means(scalars, self.device) if self.sharded else scalars

    def _report(self, metrics: dict[str, Tensor], started: float, first: int) -> dict[str, float]:
        scalars = self._numbers(metrics)
        self._check(scalars)
        if distributed.rank():
            return scalars
        seconds = (time.monotonic() - started) / (self.step - first)
        left = seconds * (self.config.end - self.step)
        text = " ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        log.info(
            "step %d/%d %s | %.0f ms/step, %.1f min left", self.step, self.config.end, text, 1e3 * seconds, left / 60
        )
        self._record({"step": self.step, "seconds_per_step": seconds, **scalars})
        return scalars

    def _check(self, scalars: dict[str, float]) -> None:
        """Raises FloatingPointError unless all are finite, before anything is saved."""
        if wild := [f"{name} {value}" for name, value in scalars.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"step {self.step}: not finite: {', '.join(wild)}; the last good checkpoint in {self.folder} is kept. "
                "Run again with a lower train.lr"
            )

    def _record(self, row: dict) -> None:
        if distributed.rank():
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
