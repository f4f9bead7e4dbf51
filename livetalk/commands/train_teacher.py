"""`bash scripts/train_teacher.sh`: the bidirectional teacher, by flow matching on clips of the synthetic world.

Encodes the clips with the frozen VAE and audio encoder of a family, trains the transformer and the text encoder
together, and exports both (parts `teacher` and `text`) into that family.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from livetalk.commands.family import Card, device_of, export_part, settle_gpu
from livetalk.config import TeacherRun
from livetalk.data import encoded
from livetalk.data.world.clip import World
from livetalk.data.world.prompts import Attributes, describe
from livetalk.data.world.take import generator
from livetalk.geometry import frames_of_latents
from livetalk.models.dit import WanDiT, initialise
from livetalk.models.text import TextEncoder, file_tokenizer, published_name, train_tokenizer
from livetalk.parts import TOKENIZER, load_audio, load_vae
from livetalk.training import distributed
from livetalk.training.teacher import FlowMatchingObjective, Prompts
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)

def render(run: TeacherRun, folder: Path, device: torch.device, part: tuple[int, int]) -> None:
    """Renders a part of the training clips into `folder`, as far as they are not there yet."""
    frames = frames_of_latents(run.clip_latents)
    workers = min(run.workers, os.cpu_count() or 1) if run.clips > 64 else 0
    with World(run.world, device=device, workers=workers) as world:

        def make(start: int, stop: int) -> tuple[dict[str, Tensor], list[str]]:
            shown, sound, prompts = [], [], []
            for batch in world.stream("train", range(start, stop), frames):
                shown.append(batch.frames.cpu())
                sound += [torch.from_numpy(take.pcm) for take in batch.takes]
                prompts += [take.prompt for take in batch.takes]
            return {"frames": torch.cat(shown), "pcm": torch.stack(sound)}, prompts

        encoded.write(folder, run.clips, run.shard, {"world": asdict(run.world), "frames": frames}, make, part)


def encode(run: TeacherRun, source: Path, folder: Path, device: torch.device, part: tuple[int, int]) -> None:
    """Encodes a part of the rendered clips in `source` into `folder`, as far as they are not there yet."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae, audio = load_vae(run.family, device), load_audio(run.family, device)

    def make(start: int, stop: int) -> tuple[dict[str, Tensor], list[str]]:
        shard, prompts = encoded.read_shard(encoded.shard_path(source, start // run.shard))
        parts = [
            encoded.encode_excerpt(frames, pcm, vae, audio, dtype)
            for frames, pcm in zip(shard["frames"].split(run.chunk), shard["pcm"].split(run.chunk), strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, prompts

    description = {"encoders": encoded.fingerprint(vae, audio), "world": asdict(run.world)}
    encoded.write(folder, run.clips, run.shard, description, make, part)


def tokenizer_file(run: TeacherRun) -> Path:
    """The family's tokenizer, trained on prompts of the world where there is none yet."""
    path = Path(run.family) / "text" / TOKENIZER
    if not path.exists():
        rng = generator(run.world, "train", 99)
        prompts = [describe(Attributes.sample(rng), rng) for _ in range(20_000)]
        train_tokenizer(prompts, path, run.text.vocab)
    return path


def prompt_tokens(text: TextEncoder, prompts: list[str], device: torch.device) -> Prompts:
    ids, mask = text.tokens(prompts)
    empty_ids, empty_mask = text.tokens([""])
    return Prompts(*(value.to(device) for value in (ids, mask, empty_ids, empty_mask)))


def train_teacher(run: TeacherRun, dry_run: bool = False) -> None:
    device = distributed.join(device_of(run.device))
    settle_gpu()
    folder = Path("runs") / run.name / "teacher"
    own = (distributed.rank(), distributed.ranks())
    if own[0] == 0:
        print(f"train_teacher: {run.name} on {device}, {run.train.steps} steps, checkpoints in {folder}", flush=True)
    started = time.monotonic()
    render(run, folder.with_name("frames"), device, (run.part, run.parts) if run.parts > 1 else own)
    if run.parts > 1:
        print(f"part {run.part} of {run.parts} rendered: train with parts=1 when all are")
        return
    distributed.wait()
    encode(run, folder.with_name("frames"), folder.with_name("clips"), device, own)
    distributed.wait()
    log.info("encoded clips ready after %.1f s", time.monotonic() - started)
    clips = encoded.load(folder.with_name("clips")).to(device)
    torch.manual_seed(run.train.seed)
    text = TextEncoder(run.text, file_tokenizer(tokenizer_file(run))).to(device)
    dit = WanDiT(run.dit)
    initialise(dit, torch.Generator().manual_seed(run.train.seed))
    dit.to(device)
    prompts = prompt_tokens(text, clips.prompts, device)
    if run.train.compile:
        for block in dit.blocks:
            block.compile()
    trainer = Trainer(FlowMatchingObjective(dit, text, clips, prompts, run.flow), run.train, folder, device)
    trainer.fit(lambda step: export(run, trainer))
    distributed.leave()
    if own[0]:
        return
    print(f"checkpoint: {Path(run.family) / 'teacher'}")
    print("use it: bash scripts/inference.sh" + ("" if run.family == TeacherRun().family else f" model={run.family}"))


def export(run: TeacherRun, trainer: Trainer) -> dict[str, float]:
    """Writes the parts into the family, at every checkpoint, so that a run cut short leaves a teacher too."""
    weights, card = trainer.weights(), Card.of(run, trainer, trainer.scalars)
    dit, text = (
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for prefix in ("dit.", "text.")
    )
    export_part(run.family, "teacher", run.dit, dit, card)
    export_part(run.family, "text", run.text, {published_name(name): value for name, value in text.items()}, card)
    return {}
