"""`bash scripts/train_nano.sh`: the parts of the nano family that are frozen before any generator.

Stages, in order: vae; decoder, which trains the VAE's decoder further while its encoder, and so every latent made with
it, stays; small_decoder, another decoder of the same latents, for CPUs; judges; audio. Each trains on the same pool of
clips of the synthetic world, held on the device, continues from its own checkpoint, and exports its weights and a card.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from livetalk.commands.memory import activation_bytes, table, training_rows
from livetalk.config import NanoRun, flat
from livetalk.data import encoded
from livetalk.data.world.clip import World
from livetalk.data.world.labels import ATTRIBUTES, SOUND_CLASSES, attribute_vector, sound_classes
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation.judges import TRACKS, Judges
from livetalk.evaluation.objective import JudgesObjective, partners
from livetalk.geometry import SAMPLES_PER_FRAME, SPACE_STRIDE
from livetalk.media import to_unit
from livetalk.models import small_decoder
from livetalk.models.audio import AudioEncoder, AudioHeads
from livetalk.models.small_decoder import LatentDecoder, SmallDecoder, TrueColours
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.weights import load_into, tensors_of
from livetalk.parts import Card, export_part, load_part, missing_parts
from livetalk.training import audio as audio_training
from livetalk.training import distributed
from livetalk.training import small_decoder as small_decoder_training
from livetalk.training.audio import AudioObjective, LabelledSound
from livetalk.training.autoencoder import AutoencoderObjective, latent_statistics, psnr
from livetalk.training.compiled import compile_whole
from livetalk.training.disturb import disturbed
from livetalk.training.small_decoder import SmallDecoderObjective
from livetalk.training.trainer import TrainConfig, Trainer

log = logging.getLogger(__name__)
STAGES = ("vae", "decoder", "small_decoder", "judges", "audio")
START_LOG_VARIANCE = -6.0
"""Of the VAE's posterior: training starts with almost clean latents instead of drowning them in noise."""

KEYS = """
first=STAGE last=STAGE   the stages to run, in the order vae, decoder, small_decoder, judges, audio
name=NAME                checkpoints go to runs/NAME; the same name continues where a run stopped
family=FOLDER            where the finished parts go
frames_from=FOLDER       clips that train_teacher has rendered (runs/NAME/frames): for stages without truth
world.face_model=FILE    a packed ICT-FaceKit head (bash scripts/build_face_model.sh); "tiny" is made in code
audio_start=FILE         weights of an audio encoder that goes on and keeps what it says of undisturbed sound
audio_engines=[festival] speech engines heard beside the world's own, audio_others=N clips of each
vae_train.steps=N        and likewise decoder_train, small_decoder_train, judges_train and audio_train
Without --config: configs/train_nano.yaml where there is a GPU, else configs/train_nano_debug.yaml.
"""


@dataclass(frozen=True)
class Pool:
    """Clips of one split with their truth, on the training device. frames uint8 [N, T, H, W, 3]; tracks [N, T] each;
    pcm [N, T * 1000]; classes [N, T] of the sound said; identity [N]; attributes [N, K] of the prompts."""

    frames: Tensor
    tracks: dict[str, Tensor]
    pcm: Tensor
    classes: Tensor
    identity: Tensor
    attributes: Tensor

    def batch(self, chosen: Tensor, frames: slice = slice(None)) -> dict:
        """What the judges train on (evaluation/objective.py)."""
        return {
            "frames": self.frames[chosen, frames],
            "tracks": {name: track[chosen, frames] for name, track in self.tracks.items()},
            "identity": self.identity[chosen],
            "attributes": self.attributes[chosen],
        }

    def sound(self, mean: Tensor | None = None, scale: Tensor | None = None) -> LabelledSound:
        """Labels for the audio encoder; curves standardised by their own statistics, or by those of another pool."""
        curves = torch.stack([self.tracks["mouth_open"], self.tracks["mouth_width"]], dim=-1)
        mean = curves.mean((0, 1)) if mean is None else mean
        scale = curves.std((0, 1)) if scale is None else scale
        return LabelledSound(self.pcm, self.classes, (curves - mean) / scale)


def make_pool(world: World, split: str, count: int, frames: int, device: torch.device, pictures: bool = True) -> Pool:
    """The first `count` clips of a split; without pictures, frames are empty [N, 0, ...]."""
    size = world.config.size
    shown = torch.empty(count, frames if pictures else 0, size, size, 3, dtype=torch.uint8, device=device)
    rows, started = [], time.monotonic()
    for batch in world.stream(split, range(count), frames, pictures=pictures):
        shown[len(rows) : len(rows) + len(batch.takes)] = batch.frames
        rows += zip(batch.takes, batch.tracks, strict=True)
    seconds = time.monotonic() - started
    log.info("%s: %d clips of %d frames, %.0f frames/s", split, count, frames, count * frames / seconds)

    def stacked(values, dtype=np.float32) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(value, dtype) for value in values])).to(device)

    return Pool(
        frames=shown,
        tracks={name: stacked(tracks[name] for _, tracks in rows) for name in (*TRACKS, "speech")},
        pcm=stacked(take.pcm for take, _ in rows),
        classes=stacked((sound_classes(take.phones, frames) for take, _ in rows), np.int64),
        identity=stacked((take.identity for take, _ in rows), np.int64),
        attributes=stacked(attribute_vector(take.attributes) for take, _ in rows),
    )


def read_pool(folder: Path, count: int, frames: int, device: torch.device) -> Pool:
    """The first `count` rendered clips of a folder, `frames` frames of each; their truth is not there: no tracks.

    Raises ValueError if they are not rendered yet or shorter.
    """
    shown, sound = [], []
    for path in encoded.first_shards(folder, count):
        shard, _ = encoded.read_shard(path)
        shown.append(shard["frames"][:, :frames].to(device))
        sound.append(shard["pcm"][:, : frames * SAMPLES_PER_FRAME].to(device))
    clips, pcm = torch.cat(shown)[:count], torch.cat(sound)[:count]
    if clips.shape[1] < frames:
        raise ValueError(f"clips in {folder} have {clips.shape[1]} frames: train with frames={clips.shape[1]}")
    nothing = torch.empty(count, 0, device=device)
    return Pool(clips, {}, pcm, nothing, nothing, nothing)


class JudgesTraining:
    """JudgesObjective on a pool, as the trainer wants it."""

    def __init__(self, objective: JudgesObjective, pool: Pool, frames: int) -> None:
        self.objective, self.pool, self.frames = objective, pool, frames

    def modules(self) -> dict[str, nn.Module]:
        return {"judges": self.objective}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        count, length = self.pool.frames.shape[:2]
        device = self.pool.frames.device
        chosen = torch.randint(count, (batch - batch // 2,), generator=generator, device=device)
        # Half of the batch shows people of the other half again, in another scene where the pool has one.
        chosen = torch.cat([chosen, partners(self.pool.identity, chosen, generator)])[:batch]
        start = int(torch.randint(length - self.frames + 1, (1,), generator=generator, device=device))
        return self.objective(self.pool.batch(chosen, slice(start, start + self.frames)), generator)


def card_of(run: Any, trainer: Trainer, figures: dict[str, float]) -> Card:
    """The card of weights that `trainer` made in `run`."""
    return Card(run.world.seed, trainer.step, {name: round(value, 5) for name, value in figures.items()}, flat(run))


def export(run: NanoRun, name: str, config: Any, module: nn.Module, trainer: Trainer, found: dict[str, float]) -> None:
    """Writes part `name` into the run's family, in the first process, with what was found of it on its card."""
    log.info("%s: %s", name, found)
    if distributed.rank() == 0:
        export_part(run.family, name, config, module.state_dict(), card_of(run, trainer, found))


def weights_of(trainer: Trainer, name: str) -> dict[str, Tensor]:
    """The weights to use of one of the objective's modules."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in trainer.weights().items() if key.startswith(start)}


def train_vae(run: NanoRun, train: Pool, held_out: Pool, folder: Path, device: torch.device) -> None:
    torch.manual_seed(run.vae_train.seed)
    vae = WanVAE(run.vae)
    with torch.no_grad():
        vae.conv1.bias[run.vae.z_dim :] = START_LOG_VARIANCE
    if run.vae_start:
        load_into(vae, tensors_of(run.vae_start), rename=lambda name: (name.removeprefix("vae."),))

    def config_of(probe: WanVAE) -> VAEConfig:
        mean, deviation = latent_statistics(probe, train.frames[:128])
        return replace(run.vae, latents_mean=tuple(mean), latents_std=tuple(deviation))

    fit_vae(vae.to(device), run, run.vae_train, train, held_out, folder, config_of)


def train_decoder(run: NanoRun, train: Pool, held_out: Pool, folder: Path, device: torch.device) -> None:
    vae = load_part(run.family, "vae", device)
    vae.decoder.requires_grad_(True)
    vae.conv2.requires_grad_(True)
    fit_vae(vae, run, run.decoder_train, train, held_out, folder, lambda probe: probe.config)


def fit_vae(
    vae: WanVAE,
    run: NanoRun,
    settings: TrainConfig,
    train: Pool,
    held_out: Pool,
    folder: Path,
    config_of: Callable[[WanVAE], VAEConfig],
) -> None:
    """Trains, and exports at every checkpoint, so that a run cut short leaves a VAE too. config_of: what the part's
    config says, from the weights to use."""
    device = train.frames.device
    probe = deepcopy(vae).requires_grad_(False)
    if settings.compile:
        for half in (vae.encoder, vae.decoder):
            compile_whole(half)
    trainer = Trainer(AutoencoderObjective(vae, train.frames, run.autoencoder), settings, folder, device)

    def leave(step: int) -> dict[str, float]:
        probe.load_state_dict(weights_of(trainer, "vae"))
        found = reconstruction(probe, held_out.frames)
        export(run, "vae", config_of(probe), probe, trainer, found)
        return found

    fit_leaving(trainer, run, "vae", leave)


def fit_leaving(trainer: Trainer, run: NanoRun, part: str, leave: Callable[[int], dict[str, float]]) -> None:
    """Trains, and lets `leave` export the part at every checkpoint; once more for a run that had ended before, whose
    family is gone."""
    trainer.fit(leave)
    if distributed.rank() == 0 and missing_parts(run.family, [part]):
        leave(trainer.step)


def train_small_decoder(run: NanoRun, train: Pool, held_out: Pool, folder: Path, device: torch.device) -> None:
    vae, dtype = load_part(run.family, "vae", device), precision_of("auto", device)
    generator = torch.Generator().manual_seed(run.small_decoder_train.seed)
    decoder = SmallDecoder(run.small_decoder)
    small_decoder.initialise(decoder, generator)
    if run.small_decoder_start:
        load_into(decoder, tensors_of(run.small_decoder_start))
    latents = small_decoder_training.encode(vae, train.frames, dtype)
    objective = SmallDecoderObjective(decoder.to(device), latents, train.frames, run.small_decoder_training)
    probe = deepcopy(decoder).requires_grad_(False)
    if run.small_decoder_train.compile:
        compile_whole(decoder)
    trainer = Trainer(objective, run.small_decoder_train, folder, device)
    beside = {f"the VAE's own decoder: {name}": value for name, value in reconstruction(vae, held_out.frames).items()}

    def leave(step: int) -> dict[str, float]:
        probe.load_state_dict(weights_of(trainer, "decoder"))
        found = reconstruction(vae, held_out.frames, TrueColours(probe, vae))
        export(run, "small_decoder", run.small_decoder, probe, trainer, found | beside)
        return found

    fit_leaving(trainer, run, "small_decoder", leave)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # another shape than in training, once
def reconstruction(
    vae: WanVAE, frames: Tensor, decoder: LatentDecoder | None = None, chunk: int = 4
) -> dict[str, float]:
    """PSNR in dB over held-out clips, mean over clips; decoded by the VAE itself unless a decoder is given."""
    values = []
    for part in frames.split(chunk):
        video = to_unit(part)
        decoded = (decoder or vae).decode(vae.encode(video)).float().clamp(-1, 1)
        values += [psnr((decoded - video)[i].square().mean()).item() for i in range(len(part))]
    return {"reconstruction PSNR on dev, dB": float(np.mean(values))}


def train_judges(run: NanoRun, train: Pool, held_out: Pool, folder: Path, device: torch.device) -> None:
    torch.manual_seed(run.judges_train.seed)
    judges = Judges(replace(run.judges, attributes=ATTRIBUTES))
    objective = JudgesObjective(judges, run.judges_objective).to(device)
    chosen = torch.arange(min(256, len(train.frames)), device=device)
    objective.calibrate([train.batch(chosen)])
    frames = min(run.judges_frames, train.frames.shape[1])
    trainer = Trainer(JudgesTraining(objective, train, frames), run.judges_train, folder, device)
    trainer.fit()
    objective.load_state_dict(weights_of(trainer, "judges"))
    parts = torch.arange(len(held_out.frames), device=device).split(16)
    found = objective.eval().evaluate([held_out.batch(part) for part in parts])
    export(run, "judges", judges.config, judges, trainer, found)


def train_audio(run: NanoRun, train: Pool, held_out: Pool, folder: Path, device: torch.device) -> None:
    torch.manual_seed(run.audio_train.seed)
    encoder = AudioEncoder(run.audio)
    heads = AudioHeads(run.audio.channels, SOUND_CLASSES).to(device)
    curves = torch.stack([train.tracks["mouth_open"], train.tracks["mouth_width"]], dim=-1)
    statistics = curves.mean((0, 1)), curves.std((0, 1))
    sound, others = train.sound(*statistics), other_engines(run, statistics, device)
    if run.audio_start:
        load_into(encoder, tensors_of(run.audio_start))
    encoder.to(device)
    if run.audio_start:
        sound = replace(sound, features=audio_training.spoken(encoder, sound.pcm, sound.frames).half())
        audio_training.fit_heads(heads, sound.features, sound)
        if others is not None:
            others = replace(others, features=audio_training.alike(sound, others, SOUND_CLASSES))
    objective = AudioObjective(encoder, heads, sound, run.audio_training, others)
    trainer = Trainer(objective, run.audio_train, folder, device)
    trainer.fit()
    for name, module in (("encoder", encoder), ("heads", heads)):
        module.load_state_dict(weights_of(trainer, name))
    quiet = held_out.sound(*statistics)
    chances = torch.Generator(device).manual_seed(run.audio_train.seed)
    spoilt = disturbed(quiet.pcm.float(), run.audio_training.disturbances, chances)
    found = audio_training.figures(encoder, heads, quiet)
    rough = audio_training.figures(encoder, heads, replace(quiet, pcm=spoilt))
    export(run, "audio", run.audio, encoder, trainer, found | {f"disturbed: {name}": rough[name] for name in rough})


def other_engines(run: NanoRun, statistics: tuple[Tensor, Tensor], device: torch.device) -> LabelledSound | None:
    """Clips said by run.audio_engines, labelled by the statistics of the world's own; None without such engines."""
    if not run.audio_engines:
        return None
    pools = []
    for engine in run.audio_engines:
        with World(replace(run.world, engine=engine), device=device) as world:
            pools.append(make_pool(world, "train", run.audio_others, run.frames, device, pictures=False))
    parts = [pool.sound(*statistics) for pool in pools]
    return LabelledSound(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pcm", "classes", "curves")))


def train_nano(run: NanoRun, dry_run: bool = False) -> None:
    """Runs the stages from `run.first` to `run.last`; the last line printed is the family's folder."""
    chosen = _stages(run)
    if dry_run:
        print(memory(run, chosen))
        return
    device = distributed.join(device_of(run.device))
    settle_gpu()
    folder = Path("runs") / run.name
    first = distributed.rank() == 0
    if first:
        print(f"train_nano: {run.name} on {device}, stages {', '.join(chosen)}, checkpoints in {folder}", flush=True)
    workers = min(run.workers, os.cpu_count() or 1) // distributed.ranks()
    pictures = chosen != ("audio",)
    with World(run.world, device=device, workers=workers if run.clips > 64 else 0) as world:
        if run.frames_from:
            source = folder / "frames" if run.frames_from == "own" else Path(run.frames_from)
            train = read_pool(source, run.clips, run.frames, device)
        else:
            train = make_pool(world, "train", run.clips, run.frames, device, pictures)
        held_out = make_pool(world, "dev", run.held_out, run.frames, device, pictures)
    stages = {
        "vae": train_vae,
        "decoder": train_decoder,
        "small_decoder": train_small_decoder,
        "judges": train_judges,
        "audio": train_audio,
    }
    for stage in chosen:
        started = time.monotonic()
        stages[stage](run, train, held_out, folder / stage, device)
        log.info("stage %s took %.1f s", stage, time.monotonic() - started)
        distributed.wait()
    distributed.leave()
    if first:
        print(f"weights: {run.family}")


def _stages(run: NanoRun) -> tuple[str, ...]:
    for name in (run.first, run.last):
        if name not in STAGES:
            raise ValueError(f"stage {name!r} is unknown: choose from {', '.join(STAGES)}")
    chosen = STAGES[STAGES.index(run.first) : STAGES.index(run.last) + 1]
    if not chosen:
        raise ValueError(f"first={run.first} comes after last={run.last}: the order is {', '.join(STAGES)}")
    if run.frames_from and (needy := sorted({*chosen} & {"judges", "audio"})):
        raise ValueError(
            f"clips in {run.frames_from} have no truth, which {' and '.join(needy)} need: leave frames_from out"
        )
    return chosen


def memory(run: NanoRun, stages: tuple[str, ...]) -> str:
    """What the stages would take: one runs at a time, so the total is that of the clips and the largest."""
    size, frames = run.world.size, run.frames
    clips = (run.clips + run.held_out) * frames * (3 * size**2 + 4 * SAMPLES_PER_FRAME)
    needs = [_stage_memory(run, stage) for stage in stages]
    total = clips + max(sum(rows.values()) for rows in needs)
    rows = {"clips": clips} | {name: value for rows in needs for name, value in rows.items()}
    return table(f"train_nano: {run.name}, the clips and one stage at a time", rows, total)


def _stage_memory(run: NanoRun, stage: str) -> dict[str, int]:
    size = run.world.size
    with torch.device("meta"):
        if stage in ("vae", "decoder"):
            settings, modules = run.vae_train if stage == "vae" else run.decoder_train, [WanVAE(run.vae)]
            if stage == "decoder":
                modules[0].encoder.requires_grad_(False)
                modules[0].conv1.requires_grad_(False)
        elif stage == "small_decoder":
            settings, modules = run.small_decoder_train, [SmallDecoder(run.small_decoder)]
        elif stage == "judges":
            settings, modules = run.judges_train, [Judges(replace(run.judges, attributes=ATTRIBUTES))]
        else:
            heads = AudioHeads(run.audio.channels, SOUND_CLASSES)
            settings, modules = run.audio_train, [AudioEncoder(run.audio), heads]

    def forward(dtype: torch.dtype) -> object:
        if stage in ("vae", "decoder"):
            video = torch.empty(settings.batch, 3, run.autoencoder.frames, size, size, dtype=dtype)
            return modules[0].decode_raw(modules[0].posterior(video)[0])
        if stage == "small_decoder":
            told, side = run.small_decoder_training, (run.small_decoder_training.crop or size) // SPACE_STRIDE
            seen = told.history + told.latents
            return modules[0].decode(
                torch.empty(settings.batch, run.small_decoder.z_dim, seen, side, side, dtype=dtype)
            )
        if stage == "judges":
            side = run.judges.size
            shown = torch.empty(settings.batch, run.judges_frames, 3, side, side, dtype=dtype)
            # Identity is judged twice: on the frames as they are, and on the spoiled ones that everything else sees.
            return modules[0](shown), modules[0].identity(shown.flatten(0, 1))
        frames = run.audio_training.frames
        sound = torch.empty(settings.batch, (frames - 1) * SAMPLES_PER_FRAME + run.audio.window, dtype=dtype)
        return modules[1](modules[0].windows(sound, frames))

    return training_rows(stage, modules, settings, activation_bytes(forward, modules, settings.precision))
