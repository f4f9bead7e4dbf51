"""`bash scripts/evaluate.sh`: the figures of a family of weights on a split of the synthetic world.

Truth, the VAE's reconstruction, the teacher (at one guidance scale, or at several for choosing one on dev) and the
causal students are measured side by side by the family's frozen judges, and a student is held against its aims.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from livetalk.checks import made_folder
from livetalk.cli import CONFIGS
from livetalk.commands.evaluation_clips import VOICE2, EvaluationClip, has_voice, make_clips, require_voice
from livetalk.commands.memory import bytes_of, table
from livetalk.commands.train_dmd import train_dmd
from livetalk.conditions import Conditions, group_audio
from livetalk.config import END_SECONDS, METHODS, EvaluateRun, TeacherSampling, load
from livetalk.data.world.labels import ATTRIBUTES
from livetalk.data.world.prompts import measure
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation import verdicts
from livetalk.evaluation.evaluate import EvaluationConfig, Reconstructions, drift_rows, evaluate
from livetalk.evaluation.judges import Judges, JudgesConfig, load_judges
from livetalk.evaluation.metrics import plain
from livetalk.evaluation.report import Report, main_table, verdict_table, write_report
from livetalk.families import SMALL, CausalSampler, TeacherSampler, decodes_small
from livetalk.geometry import FPS, frames_of_latents, latents_of_frames
from livetalk.media import pixels_of, to_unit
from livetalk.models.dit import WanDiT
from livetalk.models.small_decoder import TrueColours
from livetalk.parts import KINDS, load_part, missing_parts, read_config, require_parts
from livetalk.rollout import Noise

log = logging.getLogger(__name__)
PARTS = ("vae", "audio", "text")
STUDENTS = {"student": "student", "student_ode": "ODE student"}
"""Parts of a family that are causal students, and the names of their columns."""
VAE_NAME, SMALL_NAME = "VAE", "small decoder"
DRIFT_TRACKS = ("mouth_open", "speech")  # what drift_rows reads
TIMED_SECONDS = 5
SLOW_SECONDS = 10  # what takes longer is timed once
TEACHER_TO_STUDENT = 15  # how many times as fast the student is to be, on a CPU
AUDIO_FRAMES = 4096  # video frames whose sound is encoded at a time
DEBUG = CONFIGS / "train_dmd_debug.yaml"
DEBUG_PARTS, DEBUG_TEACHER = CONFIGS / "train_nano_debug.yaml", CONFIGS / "train_teacher_debug.yaml"

KEYS = """
family=FOLDER      the family to measure, by its own frozen judges
split=NAME         dev, test or test-voice2; settings are chosen on dev, figures reported on test
methods=[teacher,student]  columns: teacher, student, student_ode; without it all that the family has
scales=[2.0]       guidance on text and sound, one column of the teacher each; the best by Frechet distance is compared
text_scales=[1.5]  guidance on text where it is another than on sound, as many as scales; [] for the same
decoder=vae|small  of all columns; auto: as at inference
clips=N steps=N    how many clips, and the teacher's sampling steps for each
parallel=0.3       share that is kept of what guidance on sound does to the size of the teacher's motion
skip.scale=S       the teacher away from itself without layer skip.layer, at noise levels skip.levels=[0.4,0.75]
                   configs/evaluate.yaml sets all four; plain: scales=[1.5] text_scales=[] parallel=1 skip.scale=0
order=2            steps of second order for the teacher, which keep the variance that Euler's (1) lose
voice2=N           N clips more, spoken by the second engine, in a table of their own; left out if it is not installed
timing=true        seconds to denoise and decode one clip of 5 s, on the device of the run
long_seconds=180 long_clips=N  the end of long clips against their start, for long_methods=[student]
Without --config: configs/evaluate.yaml where there is a GPU, else configs/evaluate_debug.yaml.
"""

Method = TeacherSampler | CausalSampler


class Family:
    """The parts of a family on one device, in the precision of inference, as callables for the evaluation."""

    def __init__(self, run: EvaluateRun, device: torch.device, methods: Sequence[str]) -> None:
        self.run, self.device = run, device
        self.dtype = precision_of("auto", device)
        self.vae = load_part(run.family, "vae", device, self.dtype)
        self.decoders: dict[str, nn.Module] = {VAE_NAME: self.vae}
        if not missing_parts(run.family, [SMALL]):
            self.decoders[SMALL_NAME] = TrueColours(load_part(run.family, SMALL, device, self.dtype), self.vae)
        self.usual = SMALL_NAME if decodes_small(run, Path(run.family)) else VAE_NAME
        self.audio, self.text = (load_part(run.family, name, device) for name in PARTS[1:])
        self._conditions: dict[tuple[tuple[EvaluationClip, ...], int], Conditions] = {}
        self._truth: dict[tuple[EvaluationClip, ...], Tensor] = {}
        self.teachers, self.students = {}, {}
        if "teacher" in methods:
            dit = load_part(run.family, "teacher", device, self.dtype)
            pairs = zip(run.text_scales or run.scales, run.scales, strict=True)
            self.teachers = dict(self._teacher(dit, *pair) for pair in pairs)
        for name, column in STUDENTS.items():
            if name in methods:
                dit = load_part(run.family, name, device, self.dtype)
                self.students[column] = CausalSampler(dit, run.geometry, run.causal)

    def _teacher(self, dit: WanDiT, text: float, audio: float) -> tuple[str, TeacherSampler]:
        """By its name in reports."""
        run = self.run
        names = ("steps", "negative_prompt", "prefix", "order", "parallel", "skip")
        shared = {name: getattr(run, name) for name in names}
        settings = TeacherSampling(text_scale=text, audio_scale=audio, **shared)
        return f"teacher, {settings.guidance}", TeacherSampler(dit, self.text, run.geometry, settings)

    def conditions(self, clips: Sequence[EvaluationClip], latents: int) -> Conditions:
        """For `latents` latent frames, silence where the clips' sound has ended; encoded once for all methods."""
        key = (tuple(clips), latents)
        if key not in self._conditions:
            self._conditions[key] = self._encoded(clips, latents)
        return self._conditions[key]

    @torch.no_grad()
    def _encoded(self, clips: Sequence[EvaluationClip], latents: int) -> Conditions:
        images = torch.from_numpy(np.stack([clip.reference for clip in clips])).to(self.device)[:, None]
        pcm, frames = torch.from_numpy(np.stack([clip.pcm for clip in clips])), frames_of_latents(latents)
        heard = [
            self.audio.features(some.to(self.device), frames) for some in pcm.split(max(1, AUDIO_FRAMES // frames))
        ]
        text = self.text.encode([clip.prompt for clip in clips])
        conditions = Conditions(text, self.vae.encode(self._video(images)), group_audio(torch.cat(heard)))
        return conditions.map(lambda value: value.to(self.device, self.dtype))

    def noise(self, clips: Sequence[EvaluationClip]) -> Noise:
        """A clip's noise depends on the seed and its index, not on what it is sampled with."""
        seeds = [self.run.seed * 1_000_003 + clip.index for clip in clips]
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

        def draw(shape: tuple[int, ...]) -> Tensor:
            rows = [torch.randn(shape[1:], generator=each, device=self.device) for each in generators]
            return torch.stack(rows).to(self.dtype)

        return draw

    @torch.no_grad()
    def latents(self, method: Method, clips: Sequence[EvaluationClip], frames: int) -> Iterator[Tensor]:
        """Latents for `frames` frames of the clips, piece by piece."""
        left = latents_of_frames(frames)
        for piece in method.sample(self.conditions(clips, method.whole(left)), self.noise(clips)):
            if left > 0:
                yield piece[:, :, :left]
            left -= piece.shape[2]

    def columns(self, methods: dict[str, Method]) -> dict[str, Callable[[Sequence[EvaluationClip]], Tensor]]:
        """Samplers of the methods; the student's once more with the decoder that is not the usual one."""
        columns = {name: self.sampler(method, self.decoders[self.usual]) for name, method in methods.items()}
        if "student" in methods:
            columns |= {
                f"student, {name}": self.sampler(methods["student"], self.decoders[name]) for name in self.others()
            }
        return columns

    def others(self) -> list[str]:
        """The decoders that are not the usual one."""
        return [name for name in self.decoders if name != self.usual]

    def sampler(self, method: Method, decoder: nn.Module) -> Callable[[Sequence[EvaluationClip]], Tensor]:
        def sample(clips: Sequence[EvaluationClip]) -> Tensor:
            frames = len(clips[0].frames)
            return self.decode(torch.cat(list(self.latents(method, clips, frames)), dim=2), decoder)[:, :frames]

        return sample

    @torch.no_grad()
    def ends(self, method: Method, clips: Sequence[EvaluationClip], frames: int, kept: int) -> Tensor:
        """The first and the last `kept` of `frames` frames, uint8 [B, 2 * kept, H, W, 3]: nothing else is stored.
        Decoded by the usual decoder."""
        decoder, parts, seen = self.decoders[self.usual], [], 0
        state = decoder.decoder_state()
        pieces = (piece.split(self.run.geometry.block, dim=2) for piece in self.latents(method, clips, frames))
        for block in chain.from_iterable(pieces):
            video = pixels_of(decoder.decode_step(block.to(self.dtype), state))[:, : frames - seen]
            parts += [video[:, : max(0, kept - seen)], video[:, max(0, frames - kept - seen) :]]
            seen += video.shape[1]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def reconstruct(self, clips: Sequence[EvaluationClip], frames: Tensor, decoder: str = VAE_NAME) -> Tensor:
        """Frames uint8 [B, T, H, W, 3] of the clips through the VAE's encoder, once for all decoders, and back."""
        key = tuple(clips)
        if key not in self._truth:
            self._truth[key] = self.vae.encode(self._video(frames))
        return self.decode(self._truth[key], self.decoders[decoder])

    @torch.no_grad()
    def decode(self, latents: Tensor, decoder: nn.Module) -> Tensor:
        return pixels_of(decoder.decode(latents.to(self.dtype)))

    def _video(self, frames: Tensor) -> Tensor:
        return to_unit(frames).to(self.dtype)


def evaluate_family(run: EvaluateRun, dry_run: bool = False) -> None:
    """Prints the tables and, last, the folder that holds them. Raises ValueError for what the user can mend."""
    device = device_of(run.device)
    if (run.world.size, run.world.size) != (run.geometry.height, run.geometry.width):
        raise ValueError(
            f"world.size={run.world.size} and geometry.width={run.geometry.width}, geometry.height="
            f"{run.geometry.height} differ: make them equal"
        )
    to_be_made = makes_parts(run)
    if to_be_made and not dry_run:
        train_dmd(replace(load(DEBUG, run="train_dmd"), device=run.device))
    if dry_run:
        sizes = sizes_to_be(run) if to_be_made else sizes_of(run, present_methods(run))
        print(memory(run, device, sizes))
        return
    methods = present_methods(run)
    made_folder("output", run.output)
    settle_gpu()
    require_voice(run.world, run.split)
    bench = Bench(run, device, methods)
    clips = make_clips(run.world, run.split, run.clips, run.frames, device, run.workers)
    title = f"{run.split}, {len(clips)} clips, {run.steps} steps"
    rebuilt = Reconstructions(bench.judges)
    report, baseline = bench.measured(clips, title, rebuilt)
    write_report(report, Path(run.output) / "generation")  # what follows adds to it: a run that is stopped leaves this
    if run.timing:
        bench.timing_rows(report, clips[0], baseline)
    if run.long_seconds:
        bench.long_rows(report)
    faster = TEACHER_TO_STUDENT if device.type == "cpu" else None
    for name in bench.compared(report):
        report.verdicts += verdicts.judge(report, name, baseline, faster, END_SECONDS)
    tables = {"reconstruction": rebuilt.report(), "generation": report}
    if run.voice2 and has_voice(run.world, VOICE2):
        others = make_clips(run.world, VOICE2, run.voice2, run.frames, device, run.workers)
        title = f"{VOICE2} ({run.world.second_engine}), {len(others)} clips, {run.steps} steps"
        tables["voice2"], _ = bench.measured(others, title, teacher=baseline)
    for name, one in tables.items():
        write_report(one, Path(run.output) / name)
        print(f"\n{one.title}\n{main_table(one)}")
    if report.verdicts:
        print(f"\n{verdict_table(report.verdicts)}")
    print(run.output)


def makes_parts(run: EvaluateRun) -> bool:
    """Whether the other debug runs make the family first, student and all: the debug run's, where it is not there."""
    family = load(DEBUG, run="train_dmd").family
    return run.family == family and bool(missing_parts(family, (*PARTS, "teacher", "judges")))


def sizes_to_be(run: EvaluateRun) -> dict[str, Any]:
    """The configs of the parts that the other debug runs will have made."""
    nano, teacher = load(DEBUG_PARTS, run="train_nano"), load(DEBUG_TEACHER, run="train_teacher")
    sizes = {"vae": nano.vae, SMALL: nano.small_decoder, "audio": nano.audio, "text": teacher.text}
    sizes["judges"] = replace(nano.judges, attributes=ATTRIBUTES)
    return sizes | dict.fromkeys(run.methods or ("teacher", *STUDENTS), teacher.dit)


def sizes_of(run: EvaluateRun, methods: Sequence[str]) -> dict[str, Any]:
    """The configs of the family's parts that the run uses."""
    small = [] if missing_parts(run.family, [SMALL]) else [SMALL]
    kinds = {name: KINDS[name][1] for name in (*PARTS, *small, *methods)} | {"judges": JudgesConfig}
    return {name: read_config(Path(run.family) / name, kind) for name, kind in kinds.items()}


def present_methods(run: EvaluateRun) -> list[str]:
    """What to measure. Raises ValueError if it is asked for by name, or is the teacher, and missing."""
    require_parts(run.family, (*PARTS, *(run.methods or ("teacher",)), "judges"))
    if run.methods:
        return list(run.methods)
    if missing_parts(run.family, ["student"]):
        log.info("%s has no student yet, so the teacher is measured alone", run.family)
    return ["teacher", *(name for name in STUDENTS if not missing_parts(run.family, [name]))]


@dataclass(frozen=True)
class Ends:
    """The two ends of a long clip, as drift_rows takes them."""

    frames: np.ndarray
    reference: np.ndarray
    tracks: dict
    prompt: str


class Bench:
    """A family with its judges, and the tables that are made of it."""

    def __init__(self, run: EvaluateRun, device: torch.device, methods: Sequence[str]) -> None:
        self.run, self.device = run, device
        self.config = EvaluationConfig(batch=run.batch)
        self.family = Family(run, device, methods)
        self.judges = load_judges(Path(run.family) / "judges", device)

    def measured(
        self,
        clips: list[EvaluationClip],
        title: str,
        rebuilt: Reconstructions | None = None,
        teacher: str | None = None,
    ) -> tuple[Report, str | None]:
        """Every method on the same clips, the students compared with the best teacher, which is named; or with
        `teacher`, which then is the only one measured. rebuilt: is shown the clips decoded again, which are measured
        too."""
        family = self.family
        again = {name: partial(self.again, name, rebuilt) for name in family.decoders} if rebuilt else {}
        teachers = {name: method for name, method in family.teachers.items() if teacher in (None, name)}
        samplers = again | family.columns({**teachers, **family.students})
        report = evaluate(samplers, clips, self.judges, self.config, measure, lambda clip: clip.attributes, title)
        baseline = verdicts.best_by_frechet(report, list(teachers)) if teachers else None
        for name in self.compared(report) if baseline else ():
            verdicts.comparison_rows(report, name, baseline, self.config.bootstraps)
        return report, baseline

    def again(self, decoder: str, rebuilt: Reconstructions, clips: Sequence[EvaluationClip]) -> Tensor:
        """The clips' own frames, encoded and decoded."""
        frames = _frames(clips).to(self.device)
        found = self.family.reconstruct(clips, frames, decoder)
        rebuilt.add(decoder, clips, frames, found)
        return found

    def compared(self, report: Report) -> list[str]:
        """The columns of a report that are held against the teacher's."""
        there, others = {row.method for row in report.rows}, (f"student, {name}" for name in self.family.others())
        return [name for name in (*self.family.students, *others) if name in there]

    def timing_rows(self, report: Report, clip: EvaluationClip, baseline: str | None) -> None:
        """Seconds for a clip of TIMED_SECONDS by the best teacher and every student, batch 1, and for its decoding."""
        family, spent = self.family, {}
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        note = f"{where}, {str(family.dtype).removeprefix('torch.')}, one clip at a time"
        latents = latents_of_frames(TIMED_SECONDS * FPS)
        measured = {name: method for name, method in family.teachers.items() if name == baseline} | family.students
        for name, method in measured.items():
            conditions = family.conditions([clip], method.whole(latents))
            self._denoise(self._short(method), conditions, clip)
            seconds = self._median(partial(self._denoise, method, conditions, clip))
            spent[name] = seconds
            report.add(name, f"denoising of {TIMED_SECONDS} s (s)", plain(seconds, 1), note)
            if name != baseline and baseline is not None:
                verdicts.time_row(report, name, baseline, seconds, spent[baseline], note)
        block = conditions.reference.expand(-1, -1, self.run.geometry.block, -1, -1)
        for name, decoder in family.decoders.items():
            decode = partial(self._decode, decoder, block, -(-latents // self.run.geometry.block))
            decode()
            report.add(name, f"decoding of {TIMED_SECONDS} s (s)", plain(self._median(decode), 1), note)

    def _short(self, method: Method) -> Method:
        """The method with too few steps, for warming up."""
        if isinstance(method, CausalSampler):
            return method
        return TeacherSampler(method.dit, method.text, method.geometry, replace(method.settings, steps=2))

    @torch.inference_mode()
    def _denoise(self, method: Method, conditions: Conditions, clip: EvaluationClip) -> None:
        list(method.sample(conditions, self.family.noise([clip])))

    @torch.inference_mode()
    def _decode(self, decoder: nn.Module, block: Tensor, blocks: int) -> None:
        state = decoder.decoder_state()
        for _ in range(blocks):
            pixels_of(decoder.decode_step(block, state))

    def _median(self, act: Callable[[], None]) -> float:
        """Median seconds of three runs, or of the first one where that is slow."""
        taken: list[float] = []
        while len(taken) < 3 and (not taken or taken[0] < SLOW_SECONDS):
            self._wait()
            start = time.perf_counter()
            act()
            self._wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def long_rows(self, report: Report) -> None:
        """The last END_SECONDS of long clips against the first, for every long method that is measured at all."""
        run, students = self.run, self.family.students
        asked = run.long_methods
        methods: dict[str, Method] = dict(self.family.teachers) if "teacher" in asked else {}
        methods |= {own: students[own] for part, own in STUDENTS.items() if part in asked and own in students}
        if not methods:
            log.info("no long clips: none of long_methods=[%s] is measured", ", ".join(run.long_methods))
            return
        clips, ends = self.long_footage()
        for name, method in methods.items():
            self.drift(report, name, method, int(report.value(name, "A/V lag (frames)")), clips, ends)

    def long_footage(self) -> tuple[list[EvaluationClip], list[Ends]]:
        """Long clips, and the two ends of each."""
        run, kept = self.run, END_SECONDS * FPS
        frames = run.long_seconds * FPS
        clips = make_clips(run.world, run.split, run.long_clips, frames, self.device, run.workers, long=True)
        tracks = [
            {name: np.concatenate([clip.tracks[name][:kept], clip.tracks[name][-kept:]]) for name in DRIFT_TRACKS}
            for clip in clips
        ]
        return clips, [Ends(c.frames, c.reference, track, c.prompt) for c, track in zip(clips, tracks, strict=True)]

    def drift(
        self, report: Report, name: str, method: Method, lag: int, clips: list[EvaluationClip], ends: list[Ends]
    ) -> None:
        """The rows of one method on long clips, read at its lag."""
        run = self.run
        groups = [clips[start : start + run.batch] for start in range(0, len(clips), run.batch)]
        sizes = run.long_seconds * FPS, END_SECONDS * FPS
        videos = torch.cat([self.family.ends(method, group, *sizes) for group in groups])
        note = f"{len(clips)} clips of {run.long_seconds} s, decoder: {self.family.usual}"
        drift_rows(report, name, videos, ends, self.judges, END_SECONDS, lag, note)
        log.info("%s: %s done", name, note)


def _frames(clips: Sequence[EvaluationClip]) -> Tensor:
    return torch.from_numpy(np.stack([clip.frames for clip in clips]))


def memory(run: EvaluateRun, device: torch.device, sizes: dict[str, Any]) -> str:
    """What an evaluation would take, of parts of these sizes. The rows marked so are estimates from above of what is
    alive together."""
    dtype, size, geometry = precision_of("auto", device), run.world.size, run.geometry
    with torch.device("meta"):
        modules = {name: KINDS[name][0](config) for name, config in sizes.items() if name != "judges"}
        judges = Judges(sizes["judges"])
        generators = {name: module for name, module in modules.items() if name in METHODS}
        students = [CausalSampler(generators[name], geometry, run.causal) for name in STUDENTS if name in generators]
        caches = [student.new_cache(dtype, "meta", run.batch) for student in students]
    cast = {"vae", SMALL, *generators}
    rows = {name: bytes_of(module.parameters(), dtype if name in cast else None) for name, module in modules.items()}
    rows["judges"] = bytes_of(judges.parameters())
    if caches:
        rows["key-value cache"] = max(bytes_of((cache.keys, cache.values)) for cache in caches)
    tokens = run.batch * latents_of_frames(run.frames) * geometry.tokens_per_frame
    widest, pixels = max((net.config for net in generators.values()), key=lambda one: one.dim), run.frames * size**2
    rows["clips, in main memory"] = (run.clips + run.voice2) * pixels * 3
    if run.long_seconds:
        rows["ends of long clips"] = run.long_clips * 2 * END_SECONDS * FPS * size**2 * 3
    rows["transformer pass (estimate)"] = tokens * (8 * widest.dim + 2 * widest.ffn_dim) * dtype.itemsize
    # The VAE's own is the wider one, and one decoder works at a time. What was encoded of the clips stays there.
    rows["decoder (estimate)"] = run.batch * pixels * 6 * modules["vae"].config.base_dim * dtype.itemsize
    latent = modules["vae"].config.z_dim * geometry.latent_height * geometry.latent_width * dtype.itemsize
    rows["latents of the clips"] = run.clips * latents_of_frames(run.frames) * latent
    return table(f"evaluate: {run.family} on {device}, {run.clips} clips of {run.frames} frames", rows)
