"""Published files: where they lie in pretrained_checkpoints/, and the names they have in the layout of diffusers.

The transformer and the autoencoder have their published names in our modules too (audio.py and text.py translate their
own), so only the folders that diffusers reads (transformer/, vae/, text_encoder/) need a map.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from livetalk.models.vae import VAEConfig
from livetalk.models.vae_names import published_modules
from livetalk.models.weights import DOWNLOAD, INDEX

TEACHERS = {"1.3b": "OmniAvatar-1.3B", "14b": "OmniAvatar-14B"}
BASES = {"1.3b": "Wan2.1-T2V-1.3B", "14b": "Wan2.1-T2V-14B"}
MERGE = "make it with bash scripts/merge_lora.sh"
DIT_FILE = "diffusion_pytorch_model.safetensors"
_PARTS = {
    "transformer": (DIT_FILE, "transformer"),
    "vae": ("Wan2.1_VAE.pth", "vae"),
    "text": ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder"),
    "tokenizer": ("google/umt5-xxl", "tokenizer"),
}


CHECKPOINTS = Path(__file__).resolve().parents[2] / "pretrained_checkpoints"


@dataclass(frozen=True)
class Layout:
    """Files and folders below `root`, by default pretrained_checkpoints/ beside the two packages."""

    root: Path = CHECKPOINTS

    def wan(self, part: str, size: str = "1.3b") -> Path:
        """Part "transformer", "vae", "text" or "tokenizer" of a Wan2.1-T2V: as published, or as diffusers has it.

        Where neither is there, the published place, for the message that asks for it.
        """
        file, folder = _PARTS[part]
        if (part, size) == ("transformer", "14b"):
            file = DIT_FILE.replace(".safetensors", INDEX)
        base = self.root / BASES[size]
        places = [base / file, base / folder, base.with_name(f"{base.name}-Diffusers") / folder]
        return next((place for place in places if place.exists()), places[0])

    @property
    def audio(self) -> Path:
        return self.root / "wav2vec2"

    @property
    def student(self) -> Path:
        return self.root / "LiveTalk-1.3B-V0.1" / "model.safetensors"

    @property
    def ode_student(self) -> Path:
        return self.root / "ODE_init" / "model.safetensors"

    def lora(self, size: str) -> Path:
        """The folder of OmniAvatar's LoRA: pytorch_model.pt and config.json."""
        return self.root / TEACHERS[size]

    def teacher(self, size: str) -> Path:
        """OmniAvatar merged into its base, as scripts/merge_lora.sh writes it."""
        return self.root / "OmniAvatar_merged" / f"{TEACHERS[size]}.safetensors"


def present(path: str | Path) -> bool:
    """Whether a file or folder is there and not empty."""
    path = Path(path)
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def require(path: str | Path, remedy: str = DOWNLOAD) -> Path:
    """`path`, if it is there and not empty. Raises ValueError in one line, with the remedy, if not."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is not there: {remedy}")
    if not present(path):
        raise ValueError(f"{path} is empty: delete it and {remedy}")
    return path


@dataclass(frozen=True)
class Names:
    """A map of parameter names, one by one. Unknown names pass unchanged, for the loader to report."""

    translate: Callable[[str], str]

    def rename(self, name: str) -> tuple[str, ...]:
        """As load_into asks for it."""
        return (self.translate(name),)

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.translate(name): value for name, value in tensors.items()}


_TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_BLOCK = {
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}


def _translate_dit(name: str, top: dict[str, str], block: dict[str, str]) -> str:
    prefix, module, leaf = re.fullmatch(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?", name).groups(default="")
    return prefix + (block if prefix else top).get(module, module) + leaf


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


DIT_DIFFUSERS = Names(partial(_translate_dit, top=_TOP, block=_BLOCK))
"""WanTransformer3DModel's names -> the published ones; published names pass unchanged."""
DIT_TO_DIFFUSERS = Names(partial(_translate_dit, top=_inverse(_TOP), block=_inverse(_BLOCK)))


def vae_diffusers(config: VAEConfig) -> Names:
    """AutoencoderKLWan's names -> the published ones; published names pass unchanged."""
    modules = published_modules(config)

    def translate(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{modules[module]}.{leaf}" if module in modules else name

    return Names(translate)
