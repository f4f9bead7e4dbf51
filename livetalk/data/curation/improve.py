"""Reference pictures made better by a model that the user names, and checked to show the same person as before."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from livetalk.data.curation import picture
from livetalk.data.curation.examine import Tools
from livetalk.data.curation.limits import Limits
from livetalk.data.curation.scan import SIDE
from livetalk.data.curation.source import Task
from livetalk.data.encoded import write_whole
from livetalk.faces import named
from livetalk.media import to_rgb

MOVED = 0.08  # of a face's height: how far landmarks may lie from where they were

Improver = Callable[[Image.Image], Image.Image]


class Diffusers:
    """A pipeline of diffusers, such as an upscaler, from a folder: it takes an `image`, and may take a `prompt`."""

    def __init__(self, folder: str, device: str) -> None:
        if not (Path(folder) / "model_index.json").is_file():
            raise ValueError(f"improve={folder} is no pipeline of diffusers: it has no model_index.json")
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ValueError(f"improve={folder} needs diffusers: pip install diffusers") from error
        try:
            self.pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(device)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"improve={folder} is no pipeline of diffusers that can be read ({reason})") from error
        self.pipeline.set_progress_bar_config(disable=True)
        taken = inspect.signature(self.pipeline.__call__).parameters
        if "image" not in taken:
            raise ValueError(f"improve={folder}: {type(self.pipeline).__name__} takes no image: name an upscaler")
        self.more: dict[str, Any] = {"prompt": "a sharp photograph of a face"} if "prompt" in taken else {}

    def __call__(self, image: Image.Image) -> Image.Image:
        import torch

        # The same picture becomes the same each time.
        return self.pipeline(image=image, generator=torch.Generator().manual_seed(0), **self.more).images[0]


def improver_of(name: str, device: str) -> Improver:
    """What `improve=` names. Raises ValueError for what is no pipeline's folder and cannot be imported."""
    if Path(name).is_dir():
        return Diffusers(name, device)
    return named(name, "improve", {})


def find_face(shown: np.ndarray, tools: Tools) -> tuple[np.ndarray, int]:
    """The box [4] of the largest face in a picture uint8 [H, W, 3], nan where there is none, and how many there are."""
    height, width = shown.shape[:2]
    scale = SIDE / min(height, width)
    size = (round(width * scale), round(height * scale))
    found = tools.finder.find(np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BILINEAR)))
    return (found[0] / scale if len(found) else np.full(4, np.nan)), len(found)


def faults(before: np.ndarray, after: np.ndarray, tools: Tools, limits: Limits) -> Iterator[str]:
    """Why an improved picture uint8 [H, W, 3] cannot stand for the one before it, which has one face."""
    (old_box, _), (box, count) = find_face(before, tools), find_face(after, tools)
    if count != 1:
        yield f"{count} faces in the improved picture"
        return
    if np.isnan(old_box[0]):
        # The finder saw this face in the moving picture and misses it here: the new one tells where it is.
        old_box = box * before.shape[0] / after.shape[0]
    old, new = tools.finder.points(before, old_box), tools.finder.points(after, box)
    scaled = new * (before.shape[1] / after.shape[1], before.shape[0] / after.shape[0])
    moved = np.linalg.norm(scaled - old, axis=1).mean() / (old_box[3] - old_box[1])
    if moved > MOVED:
        yield f"the face moved by {moved:.0%} of its height"
    if tools.identity is not None:
        distance = np.linalg.norm(tools.identity(before, old) - tools.identity(after, new))
        if distance > limits.identity:
            yield f"identity {distance:.2f}, at most {limits.identity:g} is wanted"
    as_shown = np.asarray(Image.fromarray(after).resize(before.shape[1::-1], Image.Resampling.LANCZOS))
    blurred = picture.blur(picture.face_of(as_shown, scaled))
    if blurred > limits.blur:
        yield f"blur {blurred:.2f} after the improvement, at most {limits.blur:g} is wanted"


def improve(clip: str, task: Task, improver: Improver, tools: Tools) -> list[str]:
    """Improves the reference picture of a clip, as far as that is not done; returns why the result cannot be used."""
    done = task.improved(clip).with_suffix(".json")
    if not done.is_file():
        done.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(task.picture(clip)) as opened:
            before = opened.convert("RGB")
        after = to_rgb(improver(before))
        why = list(faults(np.asarray(before), np.asarray(after), tools, task.limits))
        write_whole(task.improved(clip), lambda to: after.save(to, "PNG"))
        write_whole(done, lambda to: to.write_text(json.dumps(why), encoding="utf-8"))
    return json.loads(done.read_text(encoding="utf-8"))
