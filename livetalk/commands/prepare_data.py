"""`bash scripts/prepare_data.sh FOLDER`: people's own videos become clips to train on.

Videos are looked at in several processes (livetalk/data/curation), their results kept one by one, so that a run that
was stopped goes on. Then, in runs/NAME: clips.jsonl, every clip with what was measured and why it is not kept;
sheet.jpg, to look at; conditions.txt, lines prompt@@image@@audio; clips/ and held_out/, encoded, which training reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from livetalk.checks import made_folder
from livetalk.cli import command_of
from livetalk.commands.cached import AT_ONCE, CachedText
from livetalk.commands.memory import bytes_of, table
from livetalk.config import PrepareRun
from livetalk.data import encoded
from livetalk.data.curation import listing
from livetalk.data.curation.examine import Tools
from livetalk.data.curation.footage import frames, probe, require_av
from livetalk.data.curation.framing import Crop, cropped
from livetalk.data.curation.improve import Improver, improve, improver_of
from livetalk.data.curation.source import Task, do_source, pending, records
from livetalk.data.curation.voice import Energy, Silero
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.faces import DlibFaces, DlibIdentity, named
from livetalk.families import PUBLISHED, encoders_of, family_folder
from livetalk.media import fit_image, read_audio, read_image
from livetalk.parts import load_part

log = logging.getLogger(__name__)
KEPT_OF_RUN = ("shape", "clip_latents", "faces", "identity", "voice", "prompts", "seed")
"""What decides which clips there are, beside the limits."""

ENCODERS = ("vae", "audio")

Each = Callable[[Callable, list], Iterable]
"""(act, items) -> act(item, task, tools) of each item, in order."""

KEYS = """
FOLDER                 your videos, at any depth: any size, rate and codec; they are only read
name=NAME              everything goes to runs/NAME; the same name continues where a run stopped
model=MODEL            whose encoders encode the clips: nano, a family's folder, livetalk-1.3b ...
height=N width=N clip_latents=N   size of the pictures, and length in latent frames (25: 97 frames, 6.06 s)
aspect=9:16            another shape (across:down) of as many pixels, in whole tokens
held_out=N             clips to judge by, of videos of their own
workers=N              processes that look at videos
part=I parts=N         this machine looks at every N-th video from the I-th on; a call without parts ends the work
features=FOLDER        keeps features of the prompts there, for training with the same features=FOLDER
improve=WHAT           a folder of a diffusers pipeline or module:function that makes reference pictures better
prompts=WHAT           motion (written from measured motion), or module:function, (frames, sound) -> text
faces=WHAT identity=WHAT voice=WHAT   dlib, dlib and silero; or energy for voice; or your own as module:name
limits.NAME=VALUE      what a clip must be like: see docs/own-data.md
Without --config: the nano family's size. configs/prepare_data_1.3b.yaml has the published models'.
"""


def prepare_data(run: PrepareRun, dry_run: bool = False) -> None:
    """Looks, lists, encodes. Prints what became of the footage and, last, the command that uses it.

    Raises ValueError for settings that cannot be, missing packages, and footage of which nothing can be kept.
    """
    if not run.folder:
        raise ValueError("no footage is named: bash scripts/prepare_data.sh FOLDER")
    root = Path("runs") / run.name
    task = Task(Path(run.folder).resolve(), root / "curation", run.frames, run.shape, run.limits, run.improve)
    videos, todo = pending(task)
    if dry_run:
        print(memory(run, len(videos), len(todo)))
        return
    require_av()
    tools = tools_of(run)
    improver = improver_of(run.improve, str(device_of(run.device))) if run.improve else None
    parts = encoders_of(run.model, ENCODERS)
    if run.features and run.model in PUBLISHED:
        raise ValueError(f"features={run.features}: name a family as model, bash scripts/make_family.sh makes one")
    if run.features:
        made_folder("features", run.features)
    print(f"prepare_data: {len(videos)} videos in {task.footage}, {len(todo)} to look at, to {root}", flush=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(run, name) for name in KEPT_OF_RUN}
    encoded.claim(task.folder / encoded.INDEX, settings | {"folder": str(task.footage), "limits": asdict(run.limits)})
    with spread(min(run.workers, len(videos)), run, task, tools) as each:
        look_at([path for path in videos[run.part :: run.parts] if path in set(todo)], each)
        if run.parts > 1:
            print(f"part {run.part} of {run.parts} is done: call again without parts when all are")
            return
        train, held_out = listed(root, run, task, tools, improver)
        device = device_of(run.device)
        settle_gpu()
        modules = {part.name: part.load(device) for part in parts}
        for folder, chosen in ((root / "clips", train), (root / "held_out", held_out)):
            if chosen:
                encode(chosen, folder, run, task, modules, each)
    if run.features:
        keep_features([record["prompt"] for record in (*train, *held_out)], run, device)
    print(f"to look at: {root / 'sheet.jpg'}")
    print(f"clips: {len(train)} in {root / 'clips'}, {len(held_out)} in {root / 'held_out'}")
    print(f"use them: {next_command(run, root, len(train), len(held_out))}")


def listed(
    root: Path, run: PrepareRun, task: Task, tools: Tools, improver: Improver | None
) -> tuple[list[dict], list[dict]]:
    """Writes what became of the footage, prints the table; the clips to train on, and to judge by."""
    found = records(task) if improver is None else improved(records(task), run, task, tools, improver)
    listing.write_lines(root / "clips.jsonl", found)
    listing.write_sheet(root / "sheet.jpg", found, task, run.sheet)
    print(listing.table(found))
    if not any(record["kept"] for record in found):
        raise ValueError(f"no clip of the footage can be kept: {root / 'clips.jsonl'} says why")
    train, held_out = listing.divide(found, run.held_out)
    listing.write_conditions(root / "conditions.txt", [*train, *held_out], task)
    return train, held_out


def next_command(run: PrepareRun, root: Path, count: int, held_out: int) -> str:
    """The command that makes pairs of the clips."""
    settings = {"name": run.name, "prepared": root, "count": count, "held_out": held_out}
    height, width = run.shape
    return command_of("generate_ode_pairs", {**settings, "geometry.height": height, "geometry.width": width})


# Looking at videos


def tools_of(run: PrepareRun) -> Tools:
    """Raises ValueError, with the remedy, for what is not installed or not known."""
    return Tools(
        named(run.faces, "faces", {"dlib": DlibFaces}),
        named(run.voice, "voice", {"silero": Silero, "energy": Energy}),
        named(run.identity, "identity", {"dlib": DlibIdentity}) if run.identity else None,
        None if run.prompts == "motion" else named(run.prompts, "prompts", {}),
    )


def look_at(todo: list[Path], each: Each) -> None:
    """Every video that is not done."""
    for done, found in enumerate(each(work_on, todo), 1):
        kept = [record for record in found if record["kept"]]
        log.info("%d/%d videos: %s, %d of %d clips kept", done, len(todo), found[0]["source"], len(kept), len(found))


@contextmanager
def spread(workers: int, run: PrepareRun, task: Task, tools: Tools) -> Iterator[Each]:
    """map over processes of their own, if two or more: in order, and not far ahead of who asks, since clips
    are large."""
    if workers < 2:
        yield lambda act, items: (act(item, task, tools) for item in items)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker, (run, task))

    def each(act: Callable, items: list) -> Iterator:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(in_worker, act, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield each
    finally:
        pool.shutdown(cancel_futures=True)


_own: dict[str, object] = {}
"""What a process of the pool holds: its task and tools. Empty in the main process."""


def start_worker(run: PrepareRun, task: Task) -> None:
    torch.set_num_threads(1)  # the processes share the cores already
    _own.update(task=task, tools=tools_of(run))


def in_worker(act: Callable, item: object) -> object:
    return act(item, _own["task"], _own["tools"])


def work_on(path: Path, task: Task, tools: Tools) -> list[dict]:
    return do_source(path, task, tools)


def improved(found: list[dict], run: PrepareRun, task: Task, tools: Tools, improver: Improver) -> list[dict]:
    """The records, those whose improved reference picture cannot be used no longer kept."""
    folder = task.folder / "improved"
    folder.mkdir(exist_ok=True)
    encoded.claim(folder / encoded.INDEX, {"improve": run.improve})
    out = []
    for record in found:
        why = improve(record["clip"], task, improver, tools) if record["kept"] else []
        reasons = [{"reason": "reference", "detail": detail} for detail in why]
        out.append(record | {"kept": False, "reasons": reasons} if why else record)
    return out


# Encoding


def encode(chosen: list[dict], folder: Path, run: PrepareRun, task: Task, modules: dict, each: Each) -> None:
    """The clips into shards, as far as they are not there yet."""
    device = next(modules["vae"].parameters()).device
    dtype = precision_of("auto", device)

    def make(start: int, stop: int) -> tuple[dict[str, Tensor], list[str]]:
        wanted = chosen[start:stop]
        shown = iter(each(pictures_of, wanted))
        groups = [wanted[low : low + run.chunk] for low in range(0, len(wanted), run.chunk)]
        made = [encode_group(group, list(islice(shown, len(group))), run, task, modules, dtype) for group in groups]
        tensors = {name: torch.cat([part[name] for part in made]) for name in made[0]}
        return tensors, [record["prompt"] for record in wanted]

    encoded.write(folder, len(chosen), run.shard, description(chosen, run, modules), make)


def keep_features(prompts: list[str], run: PrepareRun, device: torch.device) -> None:
    """Features of the prompts, kept where training with the same `features` finds them."""
    family = str(family_folder(run.model))
    text = CachedText(family, "text", run.features, lambda: load_part(family, "text", device), torch.device("cpu"))
    for start in range(0, len(prompts), AT_ONCE):
        text.encode(prompts[start : start + AT_ONCE])


def description(chosen: list[dict], run: PrepareRun, modules: dict) -> dict:
    """All that the encoded clips depend on."""
    said = json.dumps([[record["clip"], record["prompt"]] for record in chosen])
    return {
        "encoders": encoded.fingerprint(modules["vae"], modules["audio"]),
        "improve": run.improve,
        "size": list(run.shape),
        "clips": hashlib.sha256(said.encode()).hexdigest()[:16],
    }


def encode_group(
    group: list[dict], shown: list[np.ndarray], run: PrepareRun, task: Task, modules: dict, dtype: torch.dtype
) -> dict[str, Tensor]:
    pcm = torch.from_numpy(np.stack([read_audio(task.sound(record["clip"])) for record in group]))
    found = encoded.encode_excerpt(torch.from_numpy(np.stack(shown)), pcm, modules["vae"], modules["audio"], dtype)
    found = {name: value.cpu() for name, value in found.items()}
    device = next(modules["vae"].parameters()).device
    if run.improve:
        better = [fit_image(read_image(task.improved(record["clip"])), *run.shape) for record in group]
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found["reference"] = modules["vae"].encode(torch.stack(better)[:, :, None].to(device)).bfloat16().cpu()
    return found


def pictures_of(record: dict, task: Task, tools: Tools) -> np.ndarray:
    """The frames of a kept clip once more, uint8 [T, H, W, 3]. Raises ValueError if its video has changed."""
    path, start = task.footage / record["source"], record["frame"]
    shown = (one.picture for one in frames(probe(path), start, start + task.length))
    out = cropped(shown, Crop(*record["crop"], record["figures"]["face"]), task.shape)
    if len(out) != task.length:
        raise ValueError(f"{path} gives {len(out)} of {task.length} frames: it has changed, start again")
    return out


def memory(run: PrepareRun, videos: int, todo: int) -> str:
    """What encoding would take on one device: the encoders and the pictures of one pass."""
    rows = {}
    for part in encoders_of(run.model, ENCODERS):
        with torch.device("meta"):
            rows[part.name] = bytes_of(part.build().parameters(), torch.float32)
    pixels = run.chunk * run.frames * run.shape[0] * run.shape[1] * 3
    rows |= {"pictures of a pass": pixels * 5, "within the VAE (estimate)": pixels * 4 * 16}
    return table(f"prepare_data: {videos} videos, {todo} to look at; {run.chunk} clips a pass", rows)
