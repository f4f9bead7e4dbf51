"""Clips of the synthetic world for the evaluation, and whether it can speak with its second engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context

import numpy as np
import torch

from livetalk.commands.generate_ode_pairs import first_frame
from livetalk.data.world.clip import Batch, World
from livetalk.data.world.speech import Speaker
from livetalk.data.world.take import WorldConfig, material

log = logging.getLogger(__name__)
GROUP = 32  # clips that a process renders at a time
VOICE2 = "test-voice2"


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip of the world with what its prompt asks for (evaluation/evaluate.py's Clip).

    A long clip has its first frame alone in `frames`; sound and tracks are whole.
    """

    frames: np.ndarray
    reference: np.ndarray
    tracks: dict
    prompt: str
    pcm: np.ndarray
    attributes: dict[str, str]
    index: int


def make_clips(
    config: WorldConfig, split: str, count: int, frames: int, device: torch.device, workers: int = 1, long: bool = False
) -> list[EvaluationClip]:
    """The first clips of a split, rendered by as many processes as there are groups for. long: the first frame alone
    is drawn."""
    groups = [range(start, min(start + GROUP, count)) for start in range(0, count, GROUP)]
    task = partial(_group, config, str(device), split, frames, long)
    processes = min(workers, os.cpu_count() or 1, len(groups))
    if processes > 1:
        # Building scenes in numpy takes longer than drawing them, so that one process would leave a GPU waiting.
        threads = max(1, (os.cpu_count() or 1) // processes)
        with get_context("spawn").Pool(processes, torch.set_num_threads, (threads,)) as pool:
            parts = list(pool.imap(task, groups))
    else:
        parts = list(map(task, groups))
        _world.cache_clear()
    log.info("%d clips of split %s are ready", count, split)
    return [clip for part in parts for clip in part]


@lru_cache(maxsize=1)
def _world(config: WorldConfig, device: str) -> World:
    """One a process, for all the groups that it renders."""
    return World(config, device=device)


def _group(
    config: WorldConfig, device: str, split: str, frames: int, long: bool, indices: Sequence[int]
) -> list[EvaluationClip]:
    world, clips = _world(config, device), []
    for batch in world.stream(split, indices, frames, pictures=not long):
        pictures = _first_frames(world, batch) if long else batch.frames
        for take, shown, tracks in zip(batch.takes, pictures.cpu().numpy(), batch.tracks, strict=True):
            wanted = asdict(take.attributes)
            clips.append(EvaluationClip(shown, shown[0], tracks, take.prompt, take.pcm, wanted, take.index))
    return clips


def _first_frames(world: World, batch: Batch) -> torch.Tensor:
    looks = [world.look(take) for take in batch.takes]
    return world.renderer.render(looks, [first_frame(take) for take in batch.takes])


def require_voice(config: WorldConfig, split: str) -> None:
    """Raises ValueError, with how to install it, if the engine that speaks in a split is missing."""
    speaker = Speaker(config.second_engine if split == VOICE2 else config.engine)
    speaker.say("yes", speaker.voices(material(split))[0])


def has_voice(config: WorldConfig, split: str) -> bool:
    """Whether the engine that speaks in a split is there; if not, a line says so."""
    try:
        require_voice(config, split)
    except ValueError as error:
        log.warning("split %s is left out: %s", split, error)
        return False
    return True
