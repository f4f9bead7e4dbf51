"""Families of weights: which parts make up a pipeline, where they lie, how they are sampled. Wiring, like the commands.

Three kinds of model are known by `model` of a run: "nano", shipped in livetalk/assets/nano; the published ones of
PUBLISHED, in pretrained_checkpoints/; and a path to a folder with the same parts as the shipped family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livetalk.conditions import Conditions
from livetalk.config import CausalSampling, InferenceRun, TeacherSampling, flat
from livetalk.geometry import TIME_STRIDE, Geometry
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.audio import published_names as audio_names
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.models.text import TextConfig, TextEncoder, Tokenize, file_tokenizer, hub_tokenizer
from livetalk.models.text import published_names as text_names
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.weights import load_into, tensors_of
from livetalk.parts import CONFIG, TOKENIZER, read_config
from livetalk.pipeline import LiveTalkPipeline, Progress, Sampler, no_progress
from livetalk.rollout import gaussian, rollout
from OmniAvatar.sampling import Guidance, covered, sample_clip, windows

SHIPPED = Path(__file__).parent / "assets"
CHECKPOINTS = Path(__file__).parents[1] / "pretrained_checkpoints"
NANO_NOTICE = (
    "the nano family knows rendered heads only: another picture, a photograph above all, is accepted but will not be "
    "done justice"
)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Samplers: how conditions become latents (pipeline.Sampler)


class TeacherSampler:
    """Many guided steps over windows of `geometry.clip_latents`, each continuing the last latents of the one before."""

    def __init__(self, dit: WanDiT, text: nn.Module, geometry: Geometry, settings: TeacherSampling) -> None:
        self.dit, self.text, self.geometry, self.settings = dit, text, geometry, settings

    def whole(self, latents: int) -> int:
        return covered(latents, self.geometry.clip_latents, self.settings.prefix)

    def __call__(self, conditions: Conditions, generator: torch.Generator, progress: Progress) -> Iterator[Tensor]:
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
            gaussian(generator, conditions.text.dtype, conditions.text.device),
            (self.geometry.latent_height, self.geometry.latent_width),
            window=window,
            prefix=settings.prefix,
            steps=settings.steps,
            guidance=Guidance(settings.text_scale, settings.audio_scale),
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

    def new_cache(self, dtype: torch.dtype, device: torch.device | str) -> KVCache:
        return KVCache(
            self.cache,
            layers=self.dit.config.layers,
            heads=self.dit.config.heads,
            head_dim=self.dit.config.head_dim,
            rows=self.geometry.rows,
            columns=self.geometry.columns,
            dtype=dtype,
            device=device,
        )

    def __call__(self, conditions: Conditions, generator: torch.Generator, progress: Progress) -> Iterator[Tensor]:
        latents, like = conditions.audio.shape[1], conditions.text
        noise = gaussian(generator, like.dtype, like.device)
        cache = self.new_cache(like.dtype, like.device)
        blocks, done = latents // self.geometry.block, 0
        progress("denoising", done, blocks)
        for block in rollout(self.dit, conditions, latents, self.settings.timesteps, cache, noise):
            done += 1
            progress("denoising", done, blocks)
            yield block


# Where the parts of a model lie


@dataclass(frozen=True)
class Part:
    """One network of a model: how to build it, where its weights lie, and our names for theirs."""

    name: str
    build: Callable[[], nn.Module]
    source: Path
    rename: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    tokenizer: Path | None = None
    read_tokenizer: Callable[[Path], Tokenize] = file_tokenizer

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The network with its weights. Raises ValueError for weights that are missing or do not fit."""
        with torch.device("meta"):
            module = self.build()
        try:
            load_into(module, tensors_of(self.source), dtype=dtype, device=device, rename=self.rename)
        except ValueError as error:
            raise ValueError(f"{self.name} weights in {self.source}: {error}") from error
        if isinstance(module, WanVAE):
            module.set_statistics()
        if self.tokenizer is not None:
            module.tokenizer = self.read_tokenizer(self.tokenizer)
        return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Published:
    """A published model: its generator's file below pretrained_checkpoints/, its sizes, and how it is sampled."""

    generator: str
    config: DiTConfig
    sampler: str


PUBLISHED = {
    "livetalk-1.3b": Published("LiveTalk-1.3B-V0.1/model.safetensors", DiTConfig.wan_1_3b(), "causal"),
    "omniavatar-1.3b": Published("OmniAvatar_merged/OmniAvatar-1.3B.safetensors", DiTConfig.wan_1_3b(), "teacher"),
    "omniavatar-14b": Published("OmniAvatar_merged/OmniAvatar-14B.safetensors", DiTConfig.wan_14b(), "teacher"),
}
GENERATORS = {"teacher": "teacher", "causal": "student"}


def _audio_name(theirs: str) -> tuple[str, ...]:
    return tuple(audio_names([theirs]))


def _text_name(theirs: str) -> tuple[str, ...]:
    return tuple(text_names([theirs]))


def parts_of(run: InferenceRun) -> list[Part]:
    """vae, audio, text and generator of a run's model. Raises ValueError for a model or sampler that is not known."""
    if run.sampler not in GENERATORS:
        raise ValueError(f"sampler {run.sampler!r} is not known: use {' or '.join(GENERATORS)}")
    return _published_parts(run) if run.model in PUBLISHED else _family_parts(run)


def _published_parts(run: InferenceRun) -> list[Part]:
    published, base = PUBLISHED[run.model], CHECKPOINTS / "Wan2.1-T2V-1.3B"
    if run.sampler != published.sampler:
        raise ValueError(f"sampler {run.sampler!r} does not fit model {run.model}: use sampler={published.sampler}")
    return [
        Part("vae", lambda: WanVAE(VAEConfig()), base / "Wan2.1_VAE.pth"),
        Part(
            "audio",
            lambda: AudioEncoder(AudioConfig.wav2vec2_base()),
            CHECKPOINTS / "wav2vec2",
            rename=_audio_name,
        ),
        Part(
            "text",
            lambda: TextEncoder(TextConfig.umt5_xxl()),
            base / "models_t5_umt5-xxl-enc-bf16.pth",
            rename=_text_name,
            tokenizer=base / "google" / "umt5-xxl",
            read_tokenizer=hub_tokenizer,
        ),
        Part("generator", lambda: WanDiT(published.config), CHECKPOINTS / published.generator),
    ]


def _family_parts(run: InferenceRun) -> list[Part]:
    folder = _family_folder(run.model)
    generator = GENERATORS[run.sampler]
    missing = [name for name in ("vae", "audio", "text", generator) if not (folder / name / CONFIG).is_file()]
    if missing:
        remedy = (
            "train them with bash scripts/train_nano.sh" if run.model == "nano" else "name a folder of a whole family"
        )
        raise ValueError(f"model {run.model}: no weights for {', '.join(missing)} in {folder}: {remedy}")

    def part(name: str, module: Callable[[Any], nn.Module], config: type, **more: Any) -> Part:
        source = folder / (generator if name == "generator" else name)
        sizes = read_config(source, config)
        return Part(name, lambda: module(sizes), source, **more)

    return [
        part("vae", WanVAE, VAEConfig),
        part("audio", AudioEncoder, AudioConfig),
        part("text", TextEncoder, TextConfig, rename=_text_name, tokenizer=folder / "text" / TOKENIZER),
        part("generator", WanDiT, DiTConfig),
    ]


def _family_folder(model: str) -> Path:
    if model == "nano":
        return SHIPPED / "nano"
    if not Path(model).is_dir():
        known = ["nano", *PUBLISHED]
        near = get_close_matches(model, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}, or a folder of weights"
        raise ValueError(f"model {model!r} is not known: {hint}")
    return Path(model)


def require_weights(run: InferenceRun) -> None:
    """Raises ValueError unless everything a run's model needs is there, with how to get it."""
    missing = [path for part in parts_of(run) for path in (part.source, part.tokenizer) if path and not path.exists()]
    if missing:
        names = ", ".join(str(path.relative_to(CHECKPOINTS.parent)) for path in missing)
        how = "bash scripts/download.sh" + (" and bash scripts/merge_lora.sh" if run.sampler == "teacher" else "")
        raise ValueError(f"model {run.model} needs {names}: get the weights with {how}")


# Assembly


def run_of(model: str | Path, settings: dict) -> InferenceRun:
    """An inference run from keyword settings. Raises ValueError for an unknown one."""
    known = {field.name for field in fields(InferenceRun)}
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(
                f"unknown setting {name!r}" + (f": did you mean {near[0]!r}?" if near else f": known are {known}")
            )
    return InferenceRun(model=str(model), **settings)


def device_and_precision(run: InferenceRun) -> tuple[torch.device, torch.dtype]:
    """ "auto": the GPU where there is one, in bfloat16; else the CPU, in float32. Raises ValueError for others."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known: use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: no GPU is seen by PyTorch {torch.__version__}: use device=cpu")
    precision = ("bfloat16" if device.type == "cuda" else "float32") if run.precision == "auto" else run.precision
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not known: use auto, {' or '.join(PRECISIONS)}")
    return device, PRECISIONS[precision]


def load_pipeline(run: InferenceRun, progress: Progress = no_progress) -> LiveTalkPipeline:
    """Loads every part of a run's model and puts them together. Raises ValueError for what is missing or wrong."""
    device, dtype = device_and_precision(run)
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
    )


def sampler_of(run: InferenceRun, dit: WanDiT, text: nn.Module) -> Sampler:
    if run.sampler == "causal":
        return CausalSampler(dit, run.geometry, run.causal)
    return TeacherSampler(dit, text, run.geometry, run.teacher)


def memory_report(run: InferenceRun) -> str:
    """What a run would take, in GiB, from modules built on the meta device; the last line is the total.

    Parameters and the cache are exact. Working memory is an estimate from above: the widest tensors of a transformer
    pass and of a decoder step that are alive together.
    """
    _, dtype = device_and_precision(run)
    with torch.device("meta"):
        modules = {part.name: part.build() for part in parts_of(run)}
        rows = {name: _bytes(module, dtype) for name, module in modules.items()}
        rows |= _working_bytes(run, modules, dtype)
    lines = [
        f"{run.model}, {run.sampler}, {run.geometry.width}x{run.geometry.height}, {str(dtype).removeprefix('torch.')}"
    ]
    lines += [f"{name:<24}{size / 2**30:8.2f} GiB" for name, size in rows.items()]
    return "\n".join([*lines, f"total memory: {sum(rows.values()) / 2**30:.2f} GiB"])


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(value.numel() for value in module.parameters()) * dtype.itemsize


def _working_bytes(run: InferenceRun, modules: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, int]:
    geometry, dit, vae = run.geometry, modules["generator"], modules["vae"]
    causal = run.sampler == "causal"
    rows = {}
    if causal:
        cache = CausalSampler(dit, geometry, run.causal).new_cache(dtype, "meta")
        rows["key-value cache"] = (cache.keys.numel() + cache.values.numel()) * dtype.itemsize
    latents = geometry.block if causal else geometry.clip_latents
    tokens = latents * geometry.tokens_per_frame
    rows["transformer pass"] = tokens * (8 * dit.config.dim + 2 * dit.config.ffn_dim) * dtype.itemsize
    pixels = geometry.block * TIME_STRIDE * geometry.height * geometry.width
    rows["decoder step"] = pixels * 6 * vae.config.base_dim * dtype.itemsize
    return rows
