"""`bash scripts/train_teacher.sh`: the teacher, by flow matching on clips of the synthetic world.

Encodes the clips with the frozen VAE and audio encoder of a family, trains the transformer and the text encoder
together, and exports both (parts `teacher` and `text`) into that family.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from operator import mul
from pathlib import Path

import torch
from torch import Tensor

from livetalk.cli import CONFIGS, command_of
from livetalk.commands import finetune
from livetalk.commands.memory import clip_activations, table, training_rows
from livetalk.commands.train_nano import card_of, train_nano
from livetalk.config import InferenceRun, TeacherRun, flat, load
from livetalk.data import encoded
from livetalk.data.world.clip import World, shut_latents
from livetalk.data.world.prompts import Attributes, describe
from livetalk.data.world.take import generator
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.geometry import SPACE_STRIDE, frames_of_latents
from livetalk.models.dit import WanDiT, initialise
from livetalk.models.text import TextEncoder, file_tokenizer, published_name, train_tokenizer
from livetalk.parts import TOKENIZER, export_part, load_part, missing_parts, require_parts
from livetalk.training import distributed, tracking
from livetalk.training.buckets import mixed, room_to_compile
from livetalk.training.compiled import compile_network
from livetalk.training.teacher import FlowMatchingObjective, Prompts
from livetalk.training.trainer import Trainer

log = logging.getLogger(__name__)
FROZEN = ("vae", "audio")
DEBUG_PARTS = CONFIGS / "train_nano_debug.yaml"

KEYS = """
name=NAME              clips and checkpoints go to runs/NAME; the same name continues where a run stopped
family=FOLDER          the family whose VAE and audio encoder encode the clips, and which the teacher joins
keep_frames=false      encode clips as they are rendered and keep no pictures, which take 5 MB a clip
train.steps=N          length of the schedule
prepared=FOLDER        clips of your own videos, as prepare_data left them in runs/NAME, instead of the world's;
                       prepared=FOLDER,FOLDER: of several shapes, of which each step takes one
start=FOLDER           a family whose teacher and text encoder to begin with, instead of random weights
lora.rank=N            fine-tune the family's teacher, or that of `start`, by adapters of rank N
flow.places.shut_more=N  how much more lids count where they are shut, at noise levels flow.places.lids_at=[0,0.85]
flow.causal=3          fine-tune the family's teacher so that blocks of 3 latent frames see no later ones
world.face_model=FILE  a packed ICT-FaceKit head (bash scripts/build_face_model.sh); "tiny" is made in code
Without --config: configs/train_teacher.yaml where there is a GPU, else configs/train_teacher_debug.yaml.
"""


def frozen_parts(run: TeacherRun) -> None:
    """Sees to the parts of the family that encode the clips. Raises ValueError, with how to make them, if they are
    missing; but a run on the head made in code, whose world needs no file, makes them itself."""
    if run.prepared or run.world.face_model != "tiny":
        require_parts(run.family, FROZEN)
    elif missing_parts(run.family, FROZEN):
        settings = load(DEBUG_PARTS, run="train_nano")
        train_nano(replace(settings, name=run.name, family=run.family, device=run.device, world=run.world))


Made = tuple[dict[str, Tensor], list[str]]


@contextmanager
def drawing(run: TeacherRun, device: torch.device) -> Iterator[Callable[[int, int], Made]]:
    """What renders the training clips from one to before another: frames uint8, sound, when lids are shut; prompts."""
    frames = frames_of_latents(run.clip_latents)
    workers = min(run.workers, os.cpu_count() or 1) if run.clips > 64 else 0
    with World(run.world, device=device, workers=workers) as world:

        def draw(start: int, stop: int) -> Made:
            shown, takes, blinks = [], [], []
            for batch in world.stream("train", range(start, stop), frames):
                shown.append(batch.frames.cpu())  # a shard is a gigabyte
                takes += batch.takes
                blinks += [torch.from_numpy(tracks["blink"]) for tracks in batch.tracks]
            pcm = torch.stack([torch.from_numpy(take.pcm) for take in takes])
            made = {"frames": torch.cat(shown), "pcm": pcm, "shut": shut_latents(torch.stack(blinks))}
            return made, [take.prompt for take in takes]

        yield draw


@contextmanager
def rendered(run: TeacherRun, folder: Path) -> Iterator[Callable[[int, int], Made]]:
    """What reads the same of what `render` left."""
    yield lambda start, stop: encoded.read_shard(encoded.shard_path(folder, start // run.shard))


def render(run: TeacherRun, folder: Path, device: torch.device, part: tuple[int, int]) -> None:
    """Renders a part of the training clips into `folder`, as far as they are not there yet."""
    description = {"world": asdict(run.world), "frames": frames_of_latents(run.clip_latents)}
    with drawing(run, device) as draw:
        encoded.write(folder, run.clips, run.shard, description, draw, part)


def encode(run: TeacherRun, source: Path, folder: Path, device: torch.device, part: tuple[int, int]) -> None:
    """Encodes a part of the clips into `folder`, as far as they are not there yet: of those rendered in `source`, or,
    where frames are not kept, as they are rendered."""
    dtype = precision_of("auto", device)
    vae, audio = (load_part(run.family, name, device) for name in FROZEN)
    description = {"encoders": encoded.fingerprint(vae, audio), "world": asdict(run.world)}
    with rendered(run, source) if run.keep_frames else drawing(run, device) as clips:

        def make(start: int, stop: int) -> Made:
            shard, prompts = clips(start, stop)
            parts = [
                encoded.encode_excerpt(frames, pcm, vae, audio, dtype)
                for frames, pcm in zip(shard["frames"].split(run.chunk), shard["pcm"].split(run.chunk), strict=True)
            ]
            known = {"shut": shard["shut"]} if "shut" in shard else {}
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} | known, prompts

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
    """Renders, encodes, trains, exports; prints the checkpoint and, last, the inference command that uses it."""
    if dry_run:
        print(memory(run))
        return
    if run.lora.rank and not run.prepared:
        raise ValueError(f"lora.rank={run.lora.rank}: adapters learn from prepared clips, say prepared=runs/NAME")
    device = distributed.join(device_of(run.device))
    settle_gpu()
    made = made_parts(run)
    folder = Path("runs") / run.name / made[0]
    own = (distributed.rank(), distributed.ranks())
    if own[0] == 0:
        print(f"train_teacher: {run.name} on {device}, {run.train.steps} steps, checkpoints in {folder}", flush=True)
        if run.encodes:  # rendering alone needs none
            frozen_parts(run)
    mode = run.tracking if own[0] == 0 and run.parts == 1 else "off"
    tracker = tracking.start(mode, run.project, f"{run.name}/{folder.name}", folder, flat(run))
    distributed.wait()
    if not prepare_clips(run, folder.parent, device, own):
        return
    trainer = trainer_of(run, folder, device)
    trainer.fit(lambda step: export(run, trainer), tracker.log)
    if own[0] == 0 and missing_parts(run.family, made):
        export(run, trainer)  # a run that had ended before, whose family is gone
    tracker.finish()
    distributed.leave()
    if own[0] == 0:
        print(f"checkpoint: {Path(run.family) / made[0]}")
        print(f"use it: {pairs_command(run) if run.flow.causal else inference_command(run)}")


def prepare_clips(run: TeacherRun, folder: Path, device: torch.device, own: tuple[int, int]) -> bool:
    """Renders to folder/frames and encodes to folder/clips what is not there yet; False if other processes, started by
    hand with other values of `part`, have to do their parts too."""
    if run.prepared:
        return True
    started, own = time.monotonic(), (run.part, run.parts) if run.parts > 1 else own
    if run.keep_frames:
        render(run, folder / "frames", device, own)
        distributed.wait()
    if run.encodes:
        encode(run, folder / "frames", folder / "clips", device, own)
        distributed.wait()
        log.info("encoded clips ready after %.1f s", time.monotonic() - started)
    if run.parts > 1:
        print(f"part {run.part} of {run.parts} is there: train with parts=1 when all are")
    return run.parts == 1


def clips_of(run: TeacherRun, made: Path) -> list[encoded.EncodedClips]:
    """The clips of the world that were encoded into a folder, or prepared ones, of each shape. Raises ValueError as
    load_prepared."""
    if not run.prepared:
        return [encoded.load(made)]
    vae, audio = (load_part(run.family, name) for name in FROZEN)
    encoders = encoded.fingerprint(vae, audio)
    return [encoded.load_prepared(folder, encoders) for folder in prepared_clips(run)]


def prepared_clips(run: TeacherRun) -> list[Path]:
    """Where prepare_data left the clips to train on, of each shape."""
    return [folder / "clips" for folder in encoded.several(run.prepared)]


def sizes_of(run: TeacherRun) -> list[tuple[int, int]]:
    """Height and width in pixels of the clips of each shape."""
    if not run.prepared:
        return [(run.world.size, run.world.size)]
    return [tuple(encoded.description_of(folder)["size"]) for folder in prepared_clips(run)]


def trainer_of(run: TeacherRun, folder: Path, device: torch.device) -> Trainer:
    clips = [some.to(device) for some in clips_of(run, folder.with_name("clips"))]
    if run.train.compile:
        room_to_compile(len(clips))
    if run.lora.rank:
        return finetune.trainer_of(run, clips, folder, device)
    torch.manual_seed(run.train.seed)
    text = TextEncoder(run.text, file_tokenizer(tokenizer_file(run))).to(device)
    dit = WanDiT(run.dit)
    initialise(dit, torch.Generator().manual_seed(run.train.seed))
    dit.to(device)
    start = run.start or (run.family if run.flow.causal else "")
    if start:
        require_parts(start, ("teacher", "text"))
        dit.load_state_dict(load_part(start, "teacher").state_dict())
        text.load_state_dict(load_part(start, "text").state_dict())
    text.requires_grad_(not run.flow.causal)
    compile_network(dit, run.train.compile)
    parts = [
        FlowMatchingObjective(dit, text, some, prompt_tokens(text, some.prompts, device), run.flow) for some in clips
    ]
    objective = mixed(parts, [len(some) for some in clips], run.train.seed)
    return Trainer(objective, run.train, folder, device, told=flat(run))


def made_parts(run: TeacherRun) -> tuple[str, ...]:
    """The parts that the run adds to its family, the transformer first."""
    if run.lora.rank:
        return ("teacher",)
    return ("teacher_causal",) if run.flow.causal else ("teacher", "text")


def pairs_command(run: TeacherRun) -> str:
    """The command that makes pairs with this run's causal teacher."""
    return command_of("generate_ode_pairs", {"family": run.family, "source": made_parts(run)[0]})


def inference_command(run: TeacherRun) -> str:
    """The command that renders the bundled example with this run's teacher."""
    default = InferenceRun()
    wanted = {
        "model": default.model if run.family == TeacherRun().family else run.family,
        "sampler": "teacher",
        "geometry.height": sizes_of(run)[0][0],
        "geometry.width": sizes_of(run)[0][1],
        "geometry.clip_latents": run.flow.latents,
        "teacher.prefix": run.flow.prefix,
    }
    known = flat(default)
    return command_of("inference", {key: value for key, value in wanted.items() if value != known[key]})


def export(run: TeacherRun, trainer: Trainer) -> dict[str, float]:
    """Writes the parts into the family, at every checkpoint, so that a run cut short leaves a teacher too."""
    if distributed.rank():
        return {}
    card = card_of(run, trainer, trainer.scalars)
    made = made_parts(run)
    weights = finetune.weights_of(run, trainer) if run.lora.rank else trainer.whole_weights("dit")
    export_part(run.family, made[0], run.dit, weights, card)
    if "text" in made:
        text = {published_name(name): value for name, value in trainer.whole_weights("text").items()}
        export_part(run.family, "text", run.text, text, card)
    return {}


def memory(run: TeacherRun) -> str:
    """What training would take on one device, with all encoded clips on it; rendering and encoding take less. Of
    several shapes the largest counts."""
    latents, frames = run.flow.latents, frames_of_latents(run.clip_latents)
    counts = [encoded.description_of(at)["count"] for at in prepared_clips(run)] if run.prepared else [run.clips]
    sizes = [(high // SPACE_STRIDE, wide // SPACE_STRIDE) for high, wide in sizes_of(run)]
    channels = run.dit.audio_dim
    numbers = [run.clip_latents * run.dit.out_channels * high * wide + frames * channels for high, wide in sizes]
    rows = {"clips": sum(map(mul, counts, numbers)) * torch.bfloat16.itemsize}
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    title = f"train_teacher: {run.name}, batch {run.train.batch}, {run.train.precision}"
    if run.lora.rank:
        return table(title, rows | finetune.rows(run, height, width))
    with torch.device("meta"):
        dit, text = WanDiT(run.dit), TextEncoder(run.text)
    activations = clip_activations(dit, run.train.batch, (latents, height, width), run.train.precision)
    return table(title, rows | training_rows("teacher", [dit, text], run.train, activations))
