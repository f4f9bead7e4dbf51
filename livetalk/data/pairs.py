"""ODE pairs on disk: trajectories of the teacher at the student's noise levels, in the shards of data/encoded.py.

The index holds the settings that made the folder, their hash, the shapes and the count; reading checks all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from livetalk.checks import read_json
from livetalk.conditions import Conditions, group_audio
from livetalk.data import encoded
from livetalk.geometry import frames_of_latents

REMEDY = "make them with bash scripts/generate_ode_pairs.sh"
STORED = torch.bfloat16
TRACKS = ("mouth_open", "speech")
"""What is known of the truth for held-out pairs of the synthetic world, beside states and audio."""


@dataclass(frozen=True)
class OdePairs:
    """N trajectories with what they were generated from.

    states: bfloat16 [N, K + 1, F, C, h, w], the teacher's latents at each of the K student levels, noisiest first, then
    its result; latent frame 0 is the clean reference image's everywhere. audio: bfloat16 [N, 4F - 3, channels].
    settings: what they were made with. tracks: those of TRACKS that are known, bfloat16 [N, 4F - 3], speech 0 or 1.
    """

    states: Tensor
    audio: Tensor
    prompts: list[str]
    timesteps: tuple[float, ...]
    settings: dict = field(default_factory=dict)
    tracks: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def conditions(self, chosen: Tensor, text: Tensor) -> Conditions:
        """Of the chosen pairs [B], in float32; text: their features [B, L, text_dim]."""
        reference = self.states[chosen, -1, :1].transpose(1, 2).float()
        return Conditions(text, reference, group_audio(self.audio[chosen].float()))


def write(
    folder: Path,
    count: int,
    shard: int,
    settings: dict,
    shapes: dict[str, list[int]],
    make: Callable[[int, int], tuple[dict[str, Tensor], list[str]]],
    part: tuple[int, int] = (0, 1),
) -> None:
    """Fills `folder` with `count` pairs, as encoded.write does with clips.

    settings: all that the pairs depend on, `timesteps` and the `teacher`'s fingerprint among it; shapes: of one pair's
    `states` and `audio`, and of tracks where they are known. make(start, stop) gives those tensors and the prompts of
    pairs start .. stop-1.
    """

    def checked(start: int, stop: int) -> tuple[dict[str, Tensor], list[str]]:
        tensors, prompts = make(start, stop)
        tensors = {name: value.to(STORED) for name, value in tensors.items()}
        assert {name: list(value.shape[1:]) for name, value in tensors.items()} == shapes
        return tensors, prompts

    description = {"settings": settings, "hash": settings_hash(settings), "shapes": shapes}
    encoded.write(folder, count, shard, description, checked, part)


def settings_hash(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def load(folder: Path, timesteps: tuple[float, ...], teacher: str, device: torch.device | str = "cpu") -> OdePairs:
    """All pairs of a complete folder, on `device`.

    timesteps: what the student is told, as it will be at inference; teacher: fingerprint of the network it starts from.
    Raises ValueError, with the remedy, if the folder is incomplete, damaged, or was made with others.
    """
    folder = Path(folder)
    index = _index(folder)
    settings = index["settings"]
    there = tuple(settings["timesteps"])
    if len(there) != len(timesteps) or not all(map(math.isclose, there, timesteps)):
        raise ValueError(f"{folder} has timesteps {list(there)}, the student's are {list(timesteps)}: {REMEDY}")
    if settings["teacher"] != teacher:
        raise ValueError(f"{folder} has pairs of another teacher than the student starts from: remove it and {REMEDY}")
    if not complete(folder):
        raise ValueError(f"{folder} lacks shards: run bash scripts/generate_ode_pairs.sh again with the same settings")
    shapes = {name: (index["count"], *shape) for name, shape in index["shapes"].items()}
    whole = {name: torch.empty(shape, dtype=STORED, device=device) for name, shape in shapes.items()}
    prompts: list[str] = []
    for path in encoded.shards(folder):
        tensors, said = encoded.read_shard(path)
        wanted = min(index["shard"], index["count"] - len(prompts))
        for name, shape in shapes.items():
            if tensors[name].shape != (wanted, *shape[1:]) or tensors[name].dtype != STORED or len(said) != wanted:
                raise ValueError(
                    f"{path} holds {name} {list(tensors[name].shape)} {tensors[name].dtype}, the index promises "
                    f"{[wanted, *shape[1:]]}: remove the file and {REMEDY}"
                )
            whole[name][len(prompts) : len(prompts) + wanted] = tensors[name].to(device)
        prompts += said
    tracks = {name: whole[name] for name in TRACKS if name in whole}
    return OdePairs(whole["states"], whole["audio"], prompts, there, settings, tracks)


def of_clips(clips: encoded.EncodedClips, latents: int, settings: dict) -> OdePairs:
    """The first `latents` latent frames of encoded clips as pairs of one state, the clip itself: for training that
    needs conditions and something to be held against, and no trajectories."""
    if latents > clips.latents.shape[2]:
        raise ValueError(
            f"clips of {clips.latents.shape[2]} latents are shorter than the {latents} that training wants"
        )
    shown = clips.latents[:, :, :latents].transpose(1, 2).clone()
    shown[:, :1] = clips.references.transpose(1, 2)
    return OdePairs(shown[:, None], clips.audio[:, : frames_of_latents(latents)], clips.prompts, (), settings)


def _index(folder: Path) -> dict:
    path = folder / encoded.INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no ODE pairs: {REMEDY}")
    index = read_json(path, f"remove {folder} and {REMEDY}")
    whole = {"settings", "hash", "count", "shard", "shapes"} <= index.keys()
    if not whole or index["hash"] != settings_hash(index["settings"]):
        raise ValueError(f"{path} does not describe ODE pairs, or was changed by hand: remove {folder} and {REMEDY}")
    return index


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """Of one pair's tensors, as the index says. Raises ValueError if there is none."""
    return _index(Path(folder))["shapes"]


def complete(folder: Path) -> bool:
    """Whether every shard that the index of a folder promises is there."""
    index = Path(folder) / encoded.INDEX
    if not index.is_file():
        return False
    promised = read_json(index, f"remove {folder} and {REMEDY}", ("shard", "count"))
    return all(
        encoded.shard_path(folder, start // promised["shard"]).is_file()
        for start in range(0, promised["count"], promised["shard"])
    )
