"""Families of weights: which parts make up a pipeline, where they lie, how they are sampled. Wiring, like the commands.

Three kinds of model are known by `model` of a run: "nano", shipped in livetalk/assets/nano; the published ones of
PUBLISHED, in pretrained_checkpoints/; and a path to a folder with the same parts as the shipped family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk.conditions import Conditions
from livetalk.config import CausalSampling, InferenceRun, TeacherSampling
from livetalk.geometry import Geometry
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.pipeline import Progress
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
PUBLISHED_VAE = "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth"
PUBLISHED_TEXT = "Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth"
PUBLISHED_TOKENIZER = "Wan2.1-T2V-1.3B/google/umt5-xxl"
PUBLISHED_AUDIO = "wav2vec2"


def require_weights(run: InferenceRun) -> None:
    """Raises ValueError unless the model of a run is known and everything it needs is there."""
    if run.model in PUBLISHED:
        _require_published(run.model, run.sampler)
        return
    folder = _family_folder(run.model)
    generator = "teacher" if run.sampler == "teacher" else "student"
    missing = [name for name in ("vae", "audio", "text", generator) if not (folder / name / "config.json").is_file()]
    if missing and run.model == "nano":
        raise ValueError(
            f"model nano: no weights for {', '.join(missing)} in {folder}: train them with bash scripts/train_nano.sh"
        )
    if missing:
        raise ValueError(f"model {run.model}: its folder lacks {', '.join(f'{name}/config.json' for name in missing)}")


def _require_published(model: str, sampler: str) -> None:
    published = PUBLISHED[model]
    if sampler != published.sampler:
        raise ValueError(f"sampler {sampler!r} does not fit model {model}: use sampler={published.sampler}")
    needed = (published.generator, PUBLISHED_VAE, PUBLISHED_TEXT, PUBLISHED_TOKENIZER, PUBLISHED_AUDIO)
    missing = [name for name in needed if not (CHECKPOINTS / name).exists()]
    if missing:
        how = "bash scripts/download.sh" + (" and bash scripts/merge_lora.sh" if published.sampler == "teacher" else "")
        raise ValueError(
            f"model {model}: {', '.join(missing)} not found in {CHECKPOINTS.name}/: get the weights with {how}"
        )


def _family_folder(model: str) -> Path:
    if (SHIPPED / "nano").name == model:
        return SHIPPED / "nano"
    if not Path(model).is_dir():
        known = ["nano", *PUBLISHED]
        near = get_close_matches(model, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}, or a folder of weights"
        raise ValueError(f"model {model!r} is not known: {hint}")
    return Path(model)


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
