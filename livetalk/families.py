"""Models as people name them: which parts make up a pipeline, and how it is sampled. Wiring, like the commands.

Three kinds of model are known by `model` of a run: "nano", shipped in livetalk/assets/nano; the published ones of
PUBLISHED, which lie as models/layouts.py says; and a path to a folder with the same parts as the shipped family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.conditions import Conditions
from livetalk.config import DECODERS, CausalSampling, EvaluateRun, InferenceRun, TeacherSampling, flat
from livetalk.devices import device_of, precision_of
from livetalk.geometry import Geometry
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.models.layouts import MERGE, Layout, present, vae_diffusers
from livetalk.models.small_decoder import TrueColours
from livetalk.models.text import TextConfig, TextEncoder, hub_tokenizer
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.parts import Part, audio_name, family_part, missing_parts, require_parts, text_name
from livetalk.pipeline import LiveTalkPipeline, Progress, Sampler, no_progress
from livetalk.rollout import Noise, gaussian, new_cache, rollout
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from OmniAvatar.sampling import covered, sample_clip, windows

SHIPPED = Path(__file__).parent / "assets"
NANO_NOTICE = (
    "the nano family knows rendered heads only: another picture, a photograph above all, is accepted but will not be "
    "done justice"
)


# Samplers: how conditions become latents (pipeline.Sampler)


class TeacherSampler:
    """Many guided steps over windows of `geometry.clip_latents`, each continuing the last latents of the one before."""

    def __init__(self, dit: WanDiT, text: nn.Module, geometry: Geometry, settings: TeacherSampling) -> None:
        self.dit, self.text, self.geometry, self.settings = dit, text, geometry, settings

    def whole(self, latents: int) -> int:
        return covered(latents, self.geometry.clip_latents, self.settings.prefix)

    def __call__(self, conditions: Conditions, generator: torch.Generator, progress: Progress) -> Iterator[Tensor]:
        noise = gaussian(generator, conditions.text.dtype, conditions.text.device)
        return self.sample(conditions, noise, progress)

    def sample(self, conditions: Conditions, noise: Noise, progress: Progress = no_progress) -> Iterator[Tensor]:
        """Pieces of latents [B, 16, n, h, w] of any number of clips, from noise that the caller draws."""
        settings, window = self.settings, self.geometry.clip_latents
        total = settings.steps * len(windows(conditions.audio.shape[1], window, settings.prefix))
        done = 0

        def visit(step: int, state: Tensor) -> None:
            """Called before each step and once more after the last of a window, which begins nothing."""
            nonlocal done
            progress("denoising", done, total)
            done += step < settings.steps

        yield from sample_clip(
            self.dit,
            conditions,
            self.text.encode([settings.negative_prompt]).to(conditions.text),
            noise,
            (self.geometry.latent_height, self.geometry.latent_width),
            window=window,
            prefix=settings.prefix,
            steps=settings.steps,
            order=settings.order,
            guidance=settings.guidance,
            visit=visit,
        )


class CausalSampler:
    """A few steps a block, each block seeing anchors and the latest latents through a cache of its own."""

    def __init__(self, dit: WanDiT, geometry: Geometry, settings: CausalSampling) -> None:
        self.dit, self.geometry, self.settings = dit, geometry, settings
        self.cache = CacheConfig(geometry.window, geometry.anchors, geometry.block, settings.positions)

    def whole(self, latents: int) -> int:
        block = self.geometry.block
        return -(-latents // block) * block

    def new_cache(self, dtype: torch.dtype, device: torch.device | str, batch: int = 1) -> KVCache:
        rows, columns = self.geometry.rows, self.geometry.columns
        return new_cache(self.dit, self.cache, rows=rows, columns=columns, batch=batch, dtype=dtype, device=device)

    def __call__(self, conditions: Conditions, generator: torch.Generator, progress: Progress) -> Iterator[Tensor]:
        noise = gaussian(generator, conditions.text.dtype, conditions.text.device)
        return self.sample(conditions, noise, progress)

    def sample(self, conditions: Conditions, noise: Noise, progress: Progress = no_progress) -> Iterator[Tensor]:
        """Blocks of latents [B, 16, block, h, w] of any number of clips, from noise that the caller draws."""
        latents, like = conditions.audio.shape[1], conditions.text
        cache = self.new_cache(like.dtype, like.device, len(like))
        blocks, done = latents // self.geometry.block, 0
        progress("denoising", done, blocks)
        for block in rollout(self.dit, conditions, latents, self.settings.timesteps, cache, noise):
            done += 1
            progress("denoising", done, blocks)
            yield block


# Which parts make up a model


@dataclass(frozen=True)
class Published:
    """A published model: where its generator lies, its sizes, how it is sampled, and how to get it."""

    generator: Callable[[Layout], Path]
    config: DiTConfig
    sampler: str
    remedy: str


FETCH = "fetch with bash scripts/download.sh"
PUBLISHED = {
    "livetalk-1.3b": Published(lambda layout: layout.student, DiTConfig.wan_1_3b(), "causal", FETCH),
    "livetalk-1.3b-ode": Published(
        lambda layout: layout.ode_student, DiTConfig.wan_1_3b(), "causal", "put the ODE student you have there"
    ),
    "omniavatar-1.3b": Published(
        lambda layout: layout.teacher("1.3b"), DiTConfig.wan_1_3b(), "teacher", f"{MERGE} --size 1.3b"
    ),
    "omniavatar-14b": Published(
        lambda layout: layout.teacher("14b"), DiTConfig.wan_14b(), "teacher", f"{MERGE} --size 14b"
    ),
}
GENERATORS = {"teacher": "teacher", "causal": "student"}
"""The part of a family that each sampler runs."""
SMALL = "small_decoder"


def parts_of(run: InferenceRun, layout: Layout | None = None) -> list[Part]:
    """vae, audio, text, generator and, where it is used, small_decoder of a run's model. Raises ValueError for a model,
    sampler or decoder that is not known."""
    for name, given, known in (("sampler", run.sampler, GENERATORS), ("decoder", run.decoder, DECODERS)):
        if given not in known:
            raise ValueError(f"{name} {given!r} is not known: use {' or '.join(known)}")
    return published_parts(run, layout or Layout()) if run.model in PUBLISHED else _family_parts(run)


def published_parts(run: InferenceRun, layout: Layout) -> list[Part]:
    """The parts of a model of PUBLISHED; those of Wan2.1 under published names or in the layout of diffusers."""
    published, vae = PUBLISHED[run.model], VAEConfig()
    if run.decoder == "small":
        raise ValueError(f"model {run.model} has no small decoder: use decoder=vae")
    if run.sampler != published.sampler:
        raise ValueError(
            f"sampler {run.sampler!r} does not fit model {run.model}: use "
            f"sampler={published.sampler} and its sizes, for the student with --config configs/causal_inference.yaml"
        )
    return [
        Part("vae", partial(WanVAE, vae), layout.wan("vae"), rename=vae_diffusers(vae).rename),
        Part("audio", partial(AudioEncoder, AudioConfig.wav2vec2_base()), layout.audio, rename=audio_name),
        Part(
            "text",
            partial(TextEncoder, TextConfig.umt5_xxl()),
            layout.wan("text"),
            rename=text_name,
            tokenizer=layout.wan("tokenizer"),
            read_tokenizer=hub_tokenizer,
        ),
        Part("generator", partial(WanDiT, published.config), published.generator(layout)),
    ]


def _family_parts(run: InferenceRun) -> list[Part]:
    folder, generator = family_folder(run.model), GENERATORS[run.sampler]
    try:
        require_parts(folder, ("vae", "audio", "text", generator))
    except ValueError as error:
        others = [name for name, part in GENERATORS.items() if part != generator and not missing_parts(folder, [part])]
        hint = f", or use sampler={others[0]}" if others else ""
        raise ValueError(f"model {run.model}: {error}{hint}") from error
    small = [SMALL] if decodes_small(run, folder) else []
    return [
        *(family_part(folder, name) for name in ("vae", "audio", "text", *small)),
        replace(family_part(folder, generator), name="generator"),
    ]


def decodes_small(run: InferenceRun | EvaluateRun, folder: Path) -> bool:
    """Whether a run of the family in `folder` decodes with its small decoder. Raises ValueError if that is wanted and
    missing."""
    if run.decoder == "auto":
        return not missing_parts(folder, [SMALL])
    if run.decoder == "small":
        require_parts(folder, [SMALL])
    return run.decoder == "small"


def encoders_of(model: str, names: Sequence[str], layout: Layout | None = None) -> list[Part]:
    """Those of the parts vae, audio and text of a model that are named. Raises ValueError if one is missing."""
    if model not in PUBLISHED:
        folder = family_folder(model)
        require_parts(folder, names)
        return [family_part(folder, name) for name in names]
    run = InferenceRun(model=model, sampler=PUBLISHED[model].sampler)
    parts = {part.name: part for part in published_parts(run, layout or Layout())}
    missing = [str(path) for name in names for path in parts[name].paths if not present(path)]
    if missing:
        raise ValueError(f"model {model} lacks {', '.join(missing)}: {FETCH}")
    return [parts[name] for name in names]


def family_folder(model: str) -> Path:
    """Raises ValueError for a name that is neither known nor a folder."""
    if model == "nano":
        return SHIPPED / "nano"
    if not Path(model).is_dir():
        known = ["nano", *PUBLISHED]
        near = get_close_matches(model, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}, or a folder of weights"
        raise ValueError(f"model {model!r} is not known: {hint}")
    return Path(model)


def require_weights(run: InferenceRun, layout: Layout | None = None) -> None:
    """Raises ValueError unless everything a run's model needs is there, naming what is missing and how to get it."""
    missing: dict[str, list[str]] = {}
    for part in parts_of(run, layout):
        own = run.model in PUBLISHED and part.name == "generator"
        remedy = PUBLISHED[run.model].remedy if own else FETCH
        missing.setdefault(remedy, []).extend(str(path) for path in part.paths if not present(path))
    lacks = [f"{', '.join(paths)}: {remedy}" for remedy, paths in missing.items() if paths]
    if lacks:
        raise ValueError(f"model {run.model} lacks {'; it lacks '.join(lacks)}")


# Assembly


def run_of(model: str | Path, settings: dict) -> InferenceRun:
    """An inference run from keyword settings. Raises ValueError for an unknown one."""
    known = sorted(field.name for field in fields(InferenceRun))
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}: {hint}")
    return InferenceRun(model=str(model), **settings)


def load_pipeline(run: InferenceRun, progress: Progress = no_progress) -> LiveTalkPipeline:
    """Loads every part of a run's model and puts them together. Raises ValueError for what is missing or wrong."""
    device = device_of(run.device)
    dtype = precision_of(run.precision, device)
    require_weights(run)
    parts = parts_of(run)
    modules = {}
    for done, part in enumerate(parts):
        progress("loading", done, len(parts))
        modules[part.name] = part.load(device, dtype)
    progress("loading", len(parts), len(parts))
    return LiveTalkPipeline(
        modules["vae"],
        modules["audio"],
        modules["text"],
        sampler_of(run, modules["generator"], modules["text"]),
        run.geometry,
        notice=NANO_NOTICE if run.model == "nano" else "",
        settings=flat(run),
        decoder=TrueColours(modules[SMALL], modules["vae"]) if SMALL in modules else None,
    )


def performer_of(pipe: LiveTalkPipeline, config: StreamConfig | None = None) -> Performer:
    """The same parts, for live streams. Raises ValueError unless the sampler is the causal student."""
    sampler = pipe.sampler
    if not isinstance(sampler, CausalSampler):
        raise ValueError("only the causal student can perform live: load the model with sampler=causal")
    return Performer(
        sampler.dit,
        pipe.vae,
        pipe.audio,
        pipe.text,
        pipe.geometry,
        sampler.settings.timesteps,
        sampler.settings.positions,
        config,
        pipe.decoder,
    )


def sampler_of(run: InferenceRun, dit: WanDiT, text: nn.Module) -> Sampler:
    if run.sampler == "causal":
        return CausalSampler(dit, run.geometry, run.causal)
    return TeacherSampler(dit, text, run.geometry, run.teacher)
