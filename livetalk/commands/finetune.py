"""A teacher of any size fine-tuned by low-rank adapters: what `train_teacher lora.rank=N` does instead of the usual.

Only the adapters learn: the transformer is frozen, and the text encoder, whose features of the prompts are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from livetalk.commands.cached import AT_ONCE, text_encoder
from livetalk.commands.memory import bytes_of, clip_activations, kept_by_passes, samples_at_once
from livetalk.config import TeacherRun, flat
from livetalk.data.encoded import EncodedClips
from livetalk.geometry import PATCH
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.lora import adapt, without_adapters
from livetalk.parts import load_part, read_config, require_parts
from livetalk.training.buckets import mixed
from livetalk.training.compiled import compile_network
from livetalk.training.teacher import FlowMatchingObjective, PromptFeatures
from livetalk.training.trainer import Trainer


def base_of(run: TeacherRun) -> str:
    """The family whose teacher is adapted."""
    return run.start or run.family


def adapted(run: TeacherRun, device: torch.device) -> WanDiT:
    """The teacher with adapters. Raises ValueError if it is missing, or of other sizes than run.dit."""
    require_parts(base_of(run), ["teacher"])
    found = read_config(Path(base_of(run)) / "teacher", DiTConfig)
    if found != run.dit:
        raise ValueError(f"{base_of(run)}/teacher is {found}, the run's dit is {run.dit}: make dit the same")
    # What is spread over processes has one type of numbers.
    shard = run.train.shard
    held = torch.bfloat16 if run.train.precision == "bf16" and not shard else torch.float32
    dit = load_part(base_of(run), "teacher", "cpu" if shard else device, held)
    adapt(dit, run.lora.config)
    return dit


@torch.no_grad()
def prompts_of(run: TeacherRun, prompts: Sequence[list[str]], device: torch.device) -> list[PromptFeatures]:
    """Of the clips of each shape."""
    text = text_encoder(run, device)
    empty = text.encode([""]).bfloat16().to(device)

    def known(told: list[str]) -> Tensor:
        return torch.cat([text.encode(told[low : low + AT_ONCE]).bfloat16() for low in range(0, len(told), AT_ONCE)])

    return [PromptFeatures(known(told).to(device), empty) for told in prompts]


def trainer_of(run: TeacherRun, clips: Sequence[EncodedClips], folder: Path, device: torch.device) -> Trainer:
    """Trains the adapters on clips of one shape or several, which are on the device."""
    torch.manual_seed(run.train.seed)
    dit = adapted(run, device)
    compile_network(dit, run.train.compile)
    told = prompts_of(run, [some.prompts for some in clips], device)
    parts = [FlowMatchingObjective(dit, None, *own, run.flow) for own in zip(clips, told, strict=True)]
    objective = mixed(parts, [len(some) for some in clips], run.train.seed)
    return Trainer(objective, run.train, folder, device, told=flat(run))


def weights_of(run: TeacherRun, trainer: Trainer) -> dict[str, Tensor]:
    """The teacher with what was learnt, as one without adapters."""
    return without_adapters(trainer.whole_weights("dit"), run.lora.config)


def rows(run: TeacherRun, height: int, width: int) -> dict[str, int]:
    """Bytes that fine-tuning takes, for latents of height x width: the transformer in the run's precision, adapters in
    float32 with gradients and moments."""
    samples, latents = samples_at_once(run.train), run.flow.latents
    with torch.device("meta"):
        dit = WanDiT(run.dit)
        adapt(dit, run.lora.config)
    learning = [value for value in dit.parameters() if value.requires_grad]
    frozen = [value for value in dit.parameters() if not value.requires_grad]
    held = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    sizes = {"teacher: parameters": bytes_of(frozen, held), "adapters, gradients, moments": 4 * bytes_of(learning)}
    full = clip_activations(dit, samples, (latents, height, width), run.train.precision)
    tokens = samples * latents * height * width // PATCH**2
    return sizes | {"teacher: activations (estimate)": kept_by_passes(run.dit, tokens, full, run.train.recompute)}
