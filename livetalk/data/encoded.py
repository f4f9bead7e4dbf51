"""Clips encoded once for training: latents, audio features and prompts, in shards on disk.

A folder holds shard-NNNNN.safetensors files and index.json. Shards are written under a temporary name and renamed, so
an interrupted run goes on where it stopped; the index says from what they were made, and a mismatch is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from livetalk.checks import read_json
from livetalk.media import to_unit

log = logging.getLogger(__name__)
INDEX = "index.json"
REMADE = "remove the folder, and make its clips again"


@dataclass(frozen=True)
class EncodedClips:
    """N clips of F latents, T = 4F - 3 frames: latents [N, 16, F, h, w], audio [N, T, C], a prompt each.

    Latent 0 of a clip depends on its first frame alone, so it is the reference image's latent too, unless that image
    was improved: reference [N, 16, 1, h, w]. shut: boolean [N, F], the latent frames that hold a frame of a blink; of
    rendered clips alone.
    """

    latents: Tensor
    audio: Tensor
    prompts: list[str]
    reference: Tensor | None = None
    shut: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str) -> EncodedClips:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    @property
    def references(self) -> Tensor:
        """[N, 16, 1, h, w] of the pictures that clips are generated from."""
        return self.latents[:, :, :1] if self.reference is None else self.reference


def fingerprint(*modules: nn.Module) -> str:
    """A short hash of every byte of the weights and of the configs, to tell which encoders made a folder.

    The configs belong to it: a VAE's latent statistics and an audio encoder's lookahead stand there alone.
    """
    digest = hashlib.sha256()
    for module in modules:
        digest.update(repr(module.config).encode())
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_excerpt(
    frames: Tensor, pcm: Tensor, vae: nn.Module, audio: nn.Module, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Frames uint8 [n, T, H, W, 3] and sound [n, T * 1000] to latents and audio features, as bfloat16; the VAE computes
    in `dtype`."""
    device = next(vae.parameters()).device
    video = to_unit(frames.to(device))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        latents = vae.encode(video)
    features = audio.features(pcm.to(device).float(), frames=frames.shape[1])
    return {"latents": latents.bfloat16(), "audio": features.bfloat16()}


def write(
    folder: Path,
    count: int,
    shard: int,
    source: dict,
    make: Callable[[int, int], tuple[dict[str, Tensor], list[str]]],
    part: tuple[int, int] = (0, 1),
) -> None:
    """Fills `folder` with `count` clips. make(start, stop) gives the tensors and prompts of clips start .. stop-1.

    source: JSON-able description of what the clips are made from; part (i, n): this process makes every n-th shard
    from the i-th on. Raises ValueError if the folder holds clips of another source, or for a part that is not one.
    """
    if not 0 <= part[0] < part[1] or min(count, shard) < 1:
        raise ValueError(f"part {part[0]} of {part[1]}, {count} clips in shards of {shard}: parts count from 0")
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / INDEX, {"count": count, "shard": shard, **source})
    started, done = time.monotonic(), 0
    for start in range(part[0] * shard, count, part[1] * shard):
        path = shard_path(folder, start // shard)
        stop = min(start + shard, count)
        for left in folder.glob(f".{path.name}.*.partial"):
            left.unlink()
        if path.exists():
            continue
        tensors, prompts = make(start, stop)
        assert {len(prompts), *map(len, tensors.values())} == {stop - start}
        tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
        write_whole(path, lambda to, t=tensors, p=prompts: save_file(t, to, {"prompts": json.dumps(p)}))
        done += stop - start
        rate = done / (time.monotonic() - started)
        left = (count - stop) / part[1] / rate
        log.info("%d/%d clips, %.1f clips/s, %.1f min left", stop, count, rate, left / 60)


def claim(index: Path, description: dict) -> None:
    """Writes the index of a folder, or raises ValueError naming what differs from the one that is there."""
    description = json.loads(json.dumps(description))
    if index.exists():
        there = read_json(index, REMADE)
        differing = sorted(key for key in {*there, *description} if there.get(key) != description.get(key))
        if differing:
            raise ValueError(
                f"{index.parent} holds clips made with other settings ({', '.join(differing)}): remove it or name "
                "another folder"
            )
    else:
        write_whole(index, lambda path: path.write_text(json.dumps(description, indent=1)))


def write_whole(path: Path, write_to: Callable[[Path], object]) -> None:
    """Has `write_to` write a file beside `path`, which then takes its name: it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    write_to(partial)
    os.replace(partial, path)


def shards(folder: Path) -> list[Path]:
    """The shards of a complete folder, in order. Raises ValueError if some are missing."""
    return first_shards(folder, None)


def first_shards(folder: Path, count: int | None) -> list[Path]:
    """The shards that hold the first `count` clips (None: all), in order. Raises ValueError unless they are there."""
    index = Path(folder) / INDEX
    if not index.is_file():
        raise ValueError(f"{folder} holds no clips: run bash scripts/train_teacher.sh to make them")
    description = read_json(index, REMADE, ("count", "shard"))
    count = description["count"] if count is None else count
    if count > description["count"]:
        raise ValueError(f"{count} clips wanted of {folder}, which is to hold {description['count']}: ask for fewer")
    numbers = range(-(-count // description["shard"]))
    missing = [str(number) for number in numbers if not shard_path(folder, number).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of its {len(numbers)} shards (number {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}): run bash scripts/train_teacher.sh again with the same settings"
        )
    return [shard_path(folder, number) for number in numbers]


def shard_path(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.safetensors"


def read_shard(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors and prompts of one shard."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["prompts"])


def load(folder: Path) -> EncodedClips:
    """All clips of a complete folder. Raises ValueError if shards are missing."""
    parts = [read_shard(path) for path in shards(folder)]
    # Shards of before `shut` was kept may lie beside newer ones.
    names = set.intersection(*(set(tensors) for tensors, _ in parts))
    tensors = {name: torch.cat([tensors[name] for tensors, _ in parts]) for name in names}
    return EncodedClips(prompts=[prompt for _, prompts in parts for prompt in prompts], **tensors)


def description_of(folder: Path) -> dict:
    """The index of clips that `prepare_data` left in a folder. Raises ValueError if it is not there."""
    index = Path(folder) / INDEX
    if not index.is_file():
        raise ValueError(f"{folder} holds no prepared clips: make them with bash scripts/prepare_data.sh")
    return read_json(index, REMADE, ("count", "size"))


def several(folders: str) -> list[Path]:
    """Folders whose names are separated by commas: of one shape each, where a run trains on several shapes.

    Raises ValueError for an empty name, and for one that is there twice.
    """
    found = [Path(name.strip()) for name in folders.split(",")]
    if len(set(found)) < len(found) or not all(name.strip() for name in folders.split(",")):
        raise ValueError(f"folders {folders!r}: name each once, with a comma between them")
    return found


def load_prepared(folder: Path, encoders: str, size: tuple[int, int] | None = None) -> EncodedClips:
    """Clips that `prepare_data` left in a folder.

    encoders: fingerprint of the VAE and the audio encoder that training goes on with; size: (height, width) of the
    latents it wants, None: any. Raises ValueError, with the remedy, for others and for a folder that is not whole.
    """
    if description_of(folder)["encoders"] != encoders:
        raise ValueError(
            f"{folder} was encoded by another VAE or audio encoder: prepare it again with model=FAMILY and another name"
        )
    clips = load(folder)
    if size is not None and tuple(clips.latents.shape[-2:]) != size:
        height, width = clips.latents.shape[-2:]
        raise ValueError(f"{folder} holds latents of {height}x{width}, wanted are {size[0]}x{size[1]}: prepare others")
    return clips
