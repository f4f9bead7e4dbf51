"""`bash scripts/generate_ode_pairs.sh`: the teacher's guided trajectories at the student's noise levels.

For pictures, sounds and prompts of the synthetic world, of encoded clips, or of a manifest; two folders,
runs/NAME/pairs/train and runs/NAME/pairs/dev, the second of held-out ones on which training judges itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from livetalk.checks import read_text
from livetalk.cli import CONFIGS
from livetalk.commands.cached import CachedAudio, text_encoder
from livetalk.commands.memory import bytes_of, table
from livetalk.commands.train_teacher import train_teacher
from livetalk.conditions import Conditions, group_audio
from livetalk.config import PairsRun, load
from livetalk.data import encoded, pairs
from livetalk.data.spoil import spoil_picture, spoilt
from livetalk.data.world.clip import World
from livetalk.data.world.motion import Motion
from livetalk.data.world.take import Take
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.geometry import FPS
from livetalk.media import fit_image, to_unit
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import WanDiT
from livetalk.parts import load_part, missing_parts, require_parts, sized
from livetalk.pipeline import read_request
from livetalk.training import distributed
from OmniAvatar.ode_pairs import clip_noise, stops, trajectory

log = logging.getLogger(__name__)
ENCODERS = ("vae", "audio", "text")
DEBUG_TEACHER = CONFIGS / "train_teacher_debug.yaml"
HELD_OUT = "dev"
SPLITS = ("train", HELD_OUT)
PREPARED = {"train": "clips", HELD_OUT: "held_out"}
"""The folders of each split in what prepare_data leaves."""

KEYS = """
name=NAME              pairs go to runs/NAME/pairs; the same name continues where a run stopped
family=FOLDER          the family whose teacher is followed
source=teacher_causal  follow the causal teacher (train_teacher.sh flow.causal=3) instead of the bidirectional one,
                       whose guidance is plain (parallel=1)
count=N held_out=N     pairs to train on, and pairs to judge training by
manifest=FILE          lines prompt@@image@@audio to use instead of the synthetic world; the last ones are held out;
                       files are sought from the manifest's folder, then from the current one
prepared=FOLDER        what prepare_data left, runs/NAME: its clips, and those that it held out
clips=FOLDER           encoded clips, such as runs/NAME/clips, to train on instead of freshly made ones
text_scale=S audio_scale=S  the teacher's guidance
parallel=0.3           share that is kept of what guidance on sound does to the size of motion: mouths that open too far
skip.scale=S skip.layer=N skip.levels=[0.4,0.75]  away from itself without a layer, at those noise levels
steps=N order=2        its steps, and their order: 1 (Euler), or 2, which keeps the variance that Euler's steps lose
features=FOLDER        keeps what text and audio encoder make there, for other runs too
spoiled=S              share of the pairs to train on with a bad picture and a prompt without motion, for comparisons
part=I parts=N         this process makes every N-th shard from the I-th on, so that several share the work
Without --config: configs/generate_ode_pairs.yaml where there is a GPU, else configs/generate_ode_pairs_debug.yaml.
"""

Read = tuple[Tensor, Tensor, list[str], dict[str, Tensor]]
Reader = Callable[[int, int], Read]
"""(start, stop) -> reference latents [n, 16, 1, h, w], audio features [n, T, C], prompts and known tracks [n, T] of
those clips of a split."""


def generate_ode_pairs(run: PairsRun, dry_run: bool = False) -> None:
    """Writes both folders; the last line printed is the one that holds them."""
    if dry_run:
        print(memory(run))
        return
    device = distributed.join(device_of(run.device))
    settle_gpu()
    own = (distributed.rank(), distributed.ranks())
    folder = Path("runs") / run.name / "pairs"
    if own[0] == 0:
        print(f"generate_ode_pairs: {run.name} on {device}, {run.count} pairs to {folder}", flush=True)
    make_pairs(run, device, (run.part, run.parts) if run.parts > 1 else own)
    distributed.leave()
    if own[0] == 0:
        print(f"pairs: {folder}" if run.parts == 1 else f"part {run.part} of {run.parts} is in {folder}")


def make_pairs(run: PairsRun, device: torch.device, part: tuple[int, int], splits: Sequence[str] = SPLITS) -> None:
    """The folders in runs/NAME/pairs, as far as they are not there yet: every n-th shard from the i-th on."""
    stops(run.timesteps, run.steps)
    if not (run.manifest or run.prepared) and (run.world.size, run.world.size) != (
        run.geometry.height,
        run.geometry.width,
    ):
        raise ValueError(
            f"world.size={run.world.size} and geometry.width={run.geometry.width}, geometry.height="
            f"{run.geometry.height} differ: make them equal"
        )
    if distributed.rank() == 0:
        start_parts(run)
    distributed.wait()
    started = time.monotonic()
    generator = Generator(run, device)
    for split in splits:
        with generator.reader(split) as (read, source, count):
            generator.write(Path("runs") / run.name / "pairs" / split, split, read, source, count, part)
    distributed.wait()
    log.info("pairs ready after %.1f s", time.monotonic() - started)


def start_parts(run: PairsRun) -> None:
    """Sees to the family. Raises ValueError, with how to make them, if parts are missing; but a run on the head made in
    code, whose world needs no file, has them trained by the other debug runs."""
    alone = distributed.ranks() == 1
    if alone and run.world.face_model == "tiny" and missing_parts(run.family, (*ENCODERS, run.source)):
        settings = load(DEBUG_TEACHER, run="train_teacher")
        train_teacher(replace(settings, name=run.name, family=run.family, device=run.device, world=run.world))
    require_parts(run.family, (*ENCODERS, run.source))
    sized(run.family, run.source, run.size)


class Generator:
    """The frozen parts of the family on one device, and the pairs they make."""

    def __init__(self, run: PairsRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.dtype = precision_of("auto", device)
        self.attend = BlockCausal(run.geometry.block) if run.source == "teacher_causal" else FullAttention()
        self.vae, self.audio, self.teacher = (
            load_part(run.family, name, device) for name in ("vae", "audio", run.source)
        )
        self.text, self.hearing = text_encoder(run, device), self.audio
        if run.features:
            self.hearing = CachedAudio(run.family, "audio", run.features, lambda: self.audio, device)
            frozen = encoded.fingerprint(self.vae, self.audio)
            whole = self.text.noted(frozen, lambda text: encoded.fingerprint(self.vae, self.audio, text))
        else:
            whole = encoded.fingerprint(self.vae, self.audio, self.text)
        self.fingerprints = {"teacher": encoded.fingerprint(self.teacher), "others": whole}
        if run.compile:
            for block in self.teacher.blocks:
                block.compile()

    @contextmanager
    def reader(self, split: str) -> Iterator[tuple[Reader, dict, int]]:
        """What reads a split, the description of its source, and its number of pairs."""
        run = self.run
        count = run.count if split == "train" else run.held_out
        if run.manifest:
            rows = read_manifest(run.manifest)
            if run.count + run.held_out > len(rows):
                raise ValueError(f"count={run.count}, held_out={run.held_out}: {run.manifest} has {len(rows)} lines")
            rows = rows[:count] if split == "train" else rows[-count:]
            yield self._of_manifest(rows), {"manifest": rows}, count
        elif run.prepared:
            folder = Path(run.prepared) / PREPARED[split]
            size = (run.geometry.latent_height, run.geometry.latent_width)
            clips = encoded.load_prepared(folder, encoded.fingerprint(self.vae, self.audio), size)
            self._enough(count, clips, folder)
            index = (folder / encoded.INDEX).read_text(encoding="utf-8")
            yield self._of_clips(clips), {"prepared": index}, count
        elif run.clips and split == "train":
            clips = encoded.load(Path(run.clips))
            self._enough(count, clips, Path(run.clips))
            index = (Path(run.clips) / encoded.INDEX).read_text(encoding="utf-8")
            yield self._of_clips(clips), {"clips": index}, count
        else:
            workers = min(run.workers, os.cpu_count() or 1) if count > 64 else 0
            with World(run.world, device=self.device, workers=workers) as world:
                yield self._of_world(world, split), {"world": asdict(run.world), "split": split}, count

    def _enough(self, count: int, clips: encoded.EncodedClips, folder: Path) -> None:
        if count > len(clips):
            raise ValueError(
                f"{count} pairs wanted, {folder} holds {len(clips)} clips: count and held_out say how many"
            )
        if self.run.geometry.clip_frames > clips.audio.shape[1]:
            raise ValueError(
                f"geometry.clip_latents={self.run.geometry.clip_latents}: the clips in {folder} are shorter, "
                f"{clips.latents.shape[2]} latents"
            )

    def _of_world(self, world: World, split: str) -> Reader:
        def read(start: int, stop: int) -> Read:
            takes = list(world.takes(split, range(start, stop), self.run.geometry.clip_frames))
            # Only the first frame is needed, so only that is drawn.
            looks = [world.look(take) for take in takes]
            video = to_unit(world.renderer.render(looks, [first_frame(take) for take in takes]).to(self.device))
            pcm = torch.from_numpy(np.stack([take.pcm for take in takes]))
            prompts, tracks = [take.prompt for take in takes], {}
            if split != HELD_OUT:
                self._spoil(video, prompts, start)
            else:
                opening = world.renderer.tracks(looks, [take.motion for take in takes])["mouth_open"]
                known = zip(pairs.TRACKS, (opening, np.stack([take.speech for take in takes])), strict=True)
                tracks = {name: torch.from_numpy(track) for name, track in known}
            return *self._encoded(video, pcm), prompts, tracks

        return read

    def _spoil(self, video: Tensor, prompts: list[str], start: int) -> None:
        """In place: the pictures [n, 3, 1, H, W] and prompts of those clips from `start` on that are chosen."""
        for place in range(len(prompts)):
            how = spoilt(start + place, self.run.seed, self.run.spoiled)
            if how is not None:
                video[place, :, 0] = spoil_picture(video[place, :, 0], how)
                prompts[place] = how.prompt

    def _of_manifest(self, rows: list[tuple[str, str, str]]) -> Reader:
        geometry = self.run.geometry

        def read(start: int, stop: int) -> Read:
            seconds = geometry.clip_frames / FPS
            asked = [read_request(image, sound, text, duration=seconds) for text, image, sound in rows[start:stop]]
            pictures = torch.stack([fit_image(one.image, geometry.height, geometry.width) for one in asked])
            pcm = torch.from_numpy(np.stack([one.audio for one in asked]))
            return *self._encoded(pictures[:, :, None].to(self.device), pcm), [one.prompt for one in asked], {}

        return read

    def _of_clips(self, clips: encoded.EncodedClips) -> Reader:
        frames = self.run.geometry.clip_frames

        def read(start: int, stop: int) -> Read:
            latents, audio = clips.references[start:stop], clips.audio[start:stop, :frames]
            return latents.to(self.device).float(), audio.to(self.device).float(), clips.prompts[start:stop], {}

        return read

    @torch.no_grad()
    def _encoded(self, pictures: Tensor, pcm: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [n, 3, 1, H, W] and sound [n, T * 1000] to latents and features."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latents = torch.cat([self.vae.encode(part) for part in pictures.split(self.run.chunk)])
        parts = pcm.to(self.device).split(self.run.chunk)
        return latents.float(), torch.cat(
            [self.hearing.features(part, self.run.geometry.clip_frames) for part in parts]
        )

    def write(self, folder: Path, split: str, read: Reader, source: dict, count: int, part: tuple[int, int]) -> None:
        """The pairs of a split, as far as they are not there yet. Raises ValueError if others are there."""
        run, geometry, teacher = self.run, self.run.geometry, self.teacher.config
        seed = run.seed + SPLITS.index(split)
        shape = (teacher.out_channels, geometry.clip_latents, geometry.latent_height, geometry.latent_width)
        settings = {
            **self.fingerprints,
            **{name: getattr(run, name) for name in ("steps", "text_scale", "audio_scale", "negative_prompt")},
            "timesteps": list(run.timesteps),
            "seed": seed,
            "source": source,
        }
        if run.order != 1:
            settings["order"] = run.order
        if run.parallel != 1:
            settings["parallel"] = run.parallel
        if run.skip.scale:
            settings["skip"] = asdict(run.skip)
        if run.spoiled and split != HELD_OUT:
            settings["spoiled"] = run.spoiled
        states = [len(run.timesteps) + 1, shape[1], shape[0], *shape[2:]]
        shapes = {"states": states, "audio": [geometry.clip_frames, teacher.audio_dim]}
        if split == HELD_OUT and "world" in source:
            shapes |= {name: [geometry.clip_frames] for name in pairs.TRACKS}

        def make(start: int, stop: int) -> tuple[dict[str, Tensor], list[str]]:
            reference, audio, prompts, tracks = read(start, stop)
            noise = clip_noise(seed, range(start, stop), shape)
            pieces = range(0, stop - start, run.chunk)
            groups = [slice(low, low + run.chunk) for low in pieces]
            made = [self._trajectory(reference[g], audio[g], prompts[g], noise[g]) for g in groups]
            return {"states": torch.cat(made), "audio": audio, **tracks}, prompts

        pairs.write(folder, count, run.shard, settings, shapes, make, part)

    @torch.no_grad()
    def _trajectory(self, reference: Tensor, audio: Tensor, prompts: list[str], noise: Tensor) -> Tensor:
        """bfloat16 on the CPU: a shard's states would fill a card."""
        run = self.run
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            states = trajectory(
                self.teacher,
                Conditions(self.text.encode(prompts), reference, group_audio(audio)),
                self.text.encode([run.negative_prompt]),
                noise.to(self.device),
                run.timesteps,
                steps=run.steps,
                order=run.order,
                guidance=run.guidance,
                attend=self.attend,
            )
        return states.to("cpu", pairs.STORED)


def first_frame(take: Take) -> Motion:
    """The motion of a take, cut after its first frame."""
    return replace(take.motion, **{each.name: getattr(take.motion, each.name)[:1] for each in fields(take.motion)})


def read_manifest(path: str | Path) -> list[tuple[str, str, str]]:
    """Prompt, image and audio of every line `prompt@@image@@audio`; files are relative to the manifest or, where that
    finds nothing, to the current folder, as in the published lists.

    Raises ValueError, naming the line, for another form, text that is not UTF-8, or a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"manifest {path} is not a file: give one with lines prompt@@image@@audio")
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("@@")]
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{path}, line {number}: {line!r} is not prompt@@image@@audio")
        prompt, *files = parts
        found = [next((at for at in (path.parent / name, Path(name)) if at.is_file()), None) for name in files]
        if missing := [name for name, at in zip(files, found, strict=True) if at is None]:
            raise ValueError(
                f"{path}, line {number}: {', '.join(missing)} not found, neither from {path.parent} nor from here"
            )
        rows.append((prompt, *map(str, found)))
    return rows


def memory(run: PairsRun) -> str:
    """What generating would take on one device: the teacher and the passes of one chunk."""
    config = sized(run.family, run.source, run.size)
    with torch.device("meta"):
        teacher = WanDiT(config)
    geometry = run.geometry
    latents = run.chunk * geometry.clip_latents * config.out_channels * geometry.latent_height * geometry.latent_width
    tokens = run.chunk * geometry.clip_latents * geometry.tokens_per_frame
    rows = {
        "teacher": bytes_of(teacher.parameters()),
        "states of a chunk": 4 * latents * (len(run.timesteps) + 1),
        "a pass (estimate)": 4 * tokens * (8 * config.dim + 2 * config.ffn_dim),
    }
    return table(f"generate_ode_pairs: {run.count} + {run.held_out} pairs, {run.chunk} at a time", rows)
