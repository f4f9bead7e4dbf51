"""Self-Forcing distribution matching: the student learns on its own rollouts what the teacher would change in them.

Per iteration the student is rolled out block by block through the cache of inference (Self Forcing, arXiv:2506.08009).
A guided teacher and a critic, which follows the student's distribution, denoise the noised result; their difference is
the student's gradient (DMD, arXiv:2311.18828; DMD2, arXiv:2405.14867). B batch, F latent frames, C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from livetalk import flow
from livetalk.checks import at_least
from livetalk.conditions import Conditions
from livetalk.data.pairs import OdePairs
from livetalk.geometry import PATCH, tokens_of
from livetalk.models.attention import FullAttention
from livetalk.models.dit import Parts, WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.rollout import gaussian, new_cache, rollout
from livetalk.training.losses import critic_flow_errors, critic_input, dmd_gradient, dmd_loss
from livetalk.training.narrow import Narrow
from livetalk.training.sequence import flow_of, require_rows

STUDENT, CRITIC = "student", "critic"
SCORED = (20.0, 980.0)
"""Timesteps at which results are scored lie between these."""


@dataclass(frozen=True)
class DmdConfig(flow.Guided):
    """The guidance (flow.Guided) is the teacher's; the critic has none.

    every: the student learns at every so-many-th iteration, the critic at each; critic_first: iterations in which the
    critic learns alone. windowed: roll out with the window and anchors of inference, or with all that came before.
    latents: length of a rollout, 0: the teacher's window. Of longer ones a random window is scored, of which the first
    `prefix` latent frames are given clean, as to a teacher that continues a clip.
    """

    every: int = 5
    critic_first: int = 0
    windowed: bool = True
    latents: int = 0
    prefix: int = 4

    def __post_init__(self) -> None:
        at_least(1, self, "every", "prefix")
        at_least(0, self, "critic_first", "latents")
        self.check_guidance("dmd.")

    def learns(self, step: int) -> bool:
        """Whether the student learns at a step, beside the critic."""
        return step >= self.critic_first and (step + 1) % self.every == 0


@dataclass(frozen=True)
class Iteration:
    """What all samples, players and processes of an iteration share, so that its shapes are known on the host.

    exit: index of the timestep at which blocks leave; start: first latent frame of the scored window.
    """

    exit: int
    start: int


def draw_iteration(seed: int, step: int, timesteps: int, starts: range) -> Iteration:
    """Depends on the run's seed and the step alone, not on the process."""
    # Another stream than the batch's, whose first draw would otherwise decide the exit step too.
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) ^ 0x5DEECE66D) & 0xFFFF_FFFF)
    leave, start = torch.randint(2**31, (2,), generator=generator).tolist()
    return Iteration(leave % timesteps, starts[start % len(starts)])


def score_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """[B] float64 timesteps: one integer a sample, uniform in [0, 1000), shifted, clamped to SCORED."""
    drawn = torch.randint(flow.LEVELS, (batch,), generator=generator, device=generator.device)
    return (flow.LEVELS * flow.shift_sigma(flow.sigma_of(drawn))).clamp(*SCORED)


def by_noise(name: str, values: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Means of values [B] over the quarters of a batch by timestep [B], least noise first; fewer for a tiny batch."""
    parts = values.detach()[t.argsort()].tensor_split(min(4, len(values)))
    return {f"{name} at noise {i}/{len(parts)}": part.mean() for i, part in enumerate(parts, 1)}


def longer(conditions: Conditions, latents: int) -> Conditions:
    """The conditions for `latents` latent frames: the sound, where it is shorter, begins again.

    Its first group, one video frame four times, is heard once only.
    """
    there = conditions.audio.shape[1]
    index = torch.arange(latents, device=conditions.audio.device)
    index = torch.where(index < there, index, (index - 1) % (there - 1) + 1)
    return replace(conditions, audio=conditions.audio[:, index])


@dataclass(frozen=True)
class Scored:
    """The window [B, C, F, h, w] of a rollout that the networks score, as a clip of its own that begins at index 0.

    given: the latent frames at its start that are shown clean: the reference image, or the end of what came before.
    No gradient reaches them.
    """

    latents: Tensor
    given: Tensor
    conditions: Conditions

    def noised(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """At levels sigma [B], the given frames clean."""
        noisy = critic_input(self.latents.detach(), noise, sigma, self.given[:, :, :1])
        return torch.cat([self.given, noisy[:, :, self.given.shape[2] :]], dim=2)


class DmdObjective:
    """Two players: the causal student and the bidirectional critic, which estimates the student's distribution.

    The conditions are those of pairs, which live where the networks do; text: features [N, L, text_dim] of their
    prompts, null: [1, L, text_dim] of the negative one. timesteps and cache: as at inference. group:
    the processes that share the tokens of what is scored (sequence.py).
    """

    def __init__(
        self,
        student: WanDiT,
        critic: WanDiT,
        teacher: WanDiT,
        pairs: OdePairs,
        text: Tensor,
        null: Tensor,
        timesteps: tuple[float, ...],
        cache: CacheConfig,
        config: DmdConfig,
        seed: int = 0,
        group: ProcessGroup | None = None,
    ) -> None:
        require_rows(pairs.states.shape[-2], group)
        self.group = group
        self.window = pairs.states.shape[2]
        self.latents = config.latents or self.window
        if self.latents % cache.block or self.window % cache.block or self.latents < self.window:
            raise ValueError(
                f"rollouts of {self.latents} latent frames, scored over {self.window}: both must be whole blocks of "
                f"{cache.block}, and rollouts no shorter than what is scored"
            )
        if self.latents > self.window and config.prefix >= self.window:
            raise ValueError(f"prefix {config.prefix} leaves nothing to score of a window of {self.window}")
        config.skip.require(teacher)
        self.student, self.critic, self.teacher = student, critic, teacher
        self.pairs, self.text, self.null = pairs, text, null
        self.timesteps, self.config, self.seed = timesteps, config, seed
        whole = replace(cache, window=self.latents, anchors=0)
        self.cache_config = cache if config.windowed else whole
        self.starts = range(0, self.latents - self.window + 1, cache.block)
        # One a batch size, for ever: captured steps go on writing to the memory that they were captured with.
        self.caches: dict[tuple[int, torch.dtype], KVCache] = {}
        self.narrow: Narrow | None = None

    def modules(self) -> dict[str, nn.Module]:
        return {STUDENT: self.student, CRITIC: self.critic}

    @property
    def tokens(self) -> int:
        _, _, frames, _, height, width = self.pairs.states.shape
        return tokens_of(frames, height, width)

    def turns(self, step: int) -> tuple[str, ...]:
        """Who learns at a step, in order."""
        return (STUDENT, CRITIC) if self.config.learns(step) else (CRITIC,)

    def shared(self, step: int) -> Iteration:
        return draw_iteration(self.seed, step, len(self.timesteps), self.starts)

    def kind(self, step: int) -> Hashable:
        """All that the host decides about a step: who learns, where blocks leave, which window is scored."""
        return self.turns(step), self.shared(step)

    def loss(self, step: int, batch: int, generator: torch.Generator, player: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The player's own loss, on a batch and a rollout of its own."""
        device = self.pairs.states.device
        chosen = torch.randint(len(self.pairs), (batch,), generator=generator, device=device)
        conditions = longer(self.pairs.conditions(chosen, self.text[chosen]), self.latents)
        shared = self.shared(step)
        with torch.set_grad_enabled(player == STUDENT):
            scored = self.generate(conditions, shared, generator)
        if player == CRITIC:
            return self.critic_loss(scored, generator)
        loss, metrics = self.student_loss(scored, generator)
        # Filled on the device: a captured step must not copy from the host.
        return loss, {"exit": torch.full((), shared.exit, dtype=torch.float32, device=device), **metrics}

    def generate(self, conditions: Conditions, shared: Iteration, generator: torch.Generator) -> Scored:
        """Rolls the student out to the end of the scored window; blocks inside it carry gradient where that is on."""
        device, dtype = conditions.reference.device, conditions.reference.dtype
        start, stop, block = shared.start, shared.start + self.window, self.cache_config.block
        prefix = self.config.prefix if start else 1
        blocks = rollout(
            self.student,
            conditions,
            stop,
            self.timesteps[: shared.exit + 1],
            self._cache_for(conditions),
            gaussian(generator, dtype, device),
            graded=range(start + prefix // block * block, stop),
            plain=self._plain(device.type),
        )
        latents = torch.cat(list(_from(blocks, start // block)), dim=2)
        given = latents[:, :, :prefix].detach()
        latents = torch.cat([given, latents[:, :, prefix:]], dim=2)
        heard = replace(conditions.block(start, self.window), first=0, prefix=prefix)
        return Scored(latents, given, heard)

    def student_loss(self, scored: Scored, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Distribution matching: the critic's clean prediction against the guided teacher's, at one level a sample."""
        with torch.no_grad():
            t, noise = self._levels(scored, generator)
            noisy = scored.noised(noise, flow.sigma_of(t))
            fake = self._clean(self.critic, noisy, t, scored.conditions)
            real = self.guided(noisy, t, scored.conditions)
            gradient = dmd_gradient(scored.latents, fake, real)
        size = gradient.abs().flatten(1).mean(1)
        return dmd_loss(scored.latents, gradient), {"gradient": size.mean(), **by_noise("gradient", size, t)}

    def critic_loss(self, scored: Scored, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching on what the student generates; the frames that are given clean are not scored."""
        t, noise = self._levels(scored, generator)
        sigma = flow.sigma_of(t)
        noisy = scored.noised(noise, sigma)
        fake = self._clean(self.critic, noisy, t, scored.conditions)
        # The loss leaves out one frame, the first that it is shown.
        late = [value[:, :, scored.given.shape[2] - 1 :] for value in (fake, noisy, scored.latents, noise)]
        errors = critic_flow_errors(*late, sigma)
        return errors.mean(), by_noise("loss", errors, t)

    def guided(self, noisy: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The teacher's clean prediction [B, C, F, h, w] under guidance, in float64; in one pass but for that without a
        layer."""
        guidance, sides = self.config.guidance, (conditions.null(self.null), conditions.without_audio(), conditions)
        told = guidance.chosen(sides)
        many = len(told)
        clean = self._clean(self.teacher, noisy.repeat(many, 1, 1, 1, 1), t.repeat(many), Conditions.cat(told))
        found = clean.double().chunk(many)
        guided, skip = guidance.combined(found, lambda full: full, conditions.prefix), guidance.skip
        if skip.scale:
            without = self._clean(self.teacher, noisy, t, conditions, skip.layer)
            guided = guided + flow.expand(skip.at(flow.sigma_of(t)), noisy) * (found[-1] - without.double())
        return guided

    def _clean(self, dit: WanDiT, noisy: Tensor, t: Tensor, conditions: Conditions, *skip: int) -> Tensor:
        predicted = flow_of(dit, noisy, t, conditions, FullAttention(), self.group, *skip)
        return flow.x0_from_flow(noisy, predicted, flow.sigma_of(t))

    def _levels(self, scored: Scored, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        latents = scored.latents
        t = score_timesteps(latents.shape[0], generator)
        return t, torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)

    def _plain(self, kind: str) -> WanDiT:
        """The student for passes without gradient: another only where compiled parts would cast weights every time, and
        not where they are gathered, and cast, for every pass."""
        student = self.student
        if student.parts == Parts() or isinstance(student, FSDPModule) or not torch.is_autocast_enabled(kind):
            return student
        if self.narrow is None:
            self.narrow = Narrow(student, torch.get_autocast_dtype(kind))
        return self.narrow.refresh()

    def _cache_for(self, conditions: Conditions) -> KVCache:
        """The cache of all rollouts of a batch size: the graded passes keep copies, so it may be used again."""
        reference = conditions.reference
        batch, _, _, height, width = reference.shape
        kind = reference.device.type
        # Keys and values are what autocast makes of them; a wider type would hold the same numbers.
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else reference.dtype
        if (batch, dtype) not in self.caches:
            self.caches[batch, dtype] = new_cache(
                self.student,
                self.cache_config,
                rows=height // PATCH,
                columns=width // PATCH,
                batch=batch,
                dtype=dtype,
                device=reference.device,
                turned=True,
            )
        return self.caches[batch, dtype]


def _from(blocks: Iterator[Tensor], first: int) -> Iterator[Tensor]:
    """All blocks but the first ones, which are generated nevertheless."""
    for index, block in enumerate(blocks):
        if index >= first:
            yield block
