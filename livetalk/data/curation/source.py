"""One video from beginning to end: scanned, divided, examined; what is kept is written down, what is not is listed.

Everything of a video goes into three folders: sources/KEY.json, written last, says that it is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from livetalk.data.curation.examine import Examined, Tools, examine
from livetalk.data.curation.footage import DamagedError, Video, frames, probe, videos_in
from livetalk.data.curation.limits import Limits
from livetalk.data.curation.scan import Obstacle, scan
from livetalk.data.curation.stretches import joined, next_stretch
from livetalk.data.encoded import write_whole
from livetalk.geometry import FPS, SAMPLE_RATE

MOMENTS, STRIP = 3, 96  # pictures of a strip of the contact sheet, and their height in pixels
SLACK = 1.0  # seconds that a clip's beginning may be put off for a better reference picture


@dataclass(frozen=True)
class Task:
    """What does not change from video to video. length: frames of a clip; shape: (height, width) of its pictures;
    improve: what improves reference pictures, "" for nothing."""

    footage: Path
    folder: Path
    length: int
    shape: tuple[int, int]
    limits: Limits
    improve: str = ""

    def sources(self) -> Path:
        return self.folder / "sources"

    def picture(self, clip: str) -> Path:
        return self.folder / "kept" / f"{clip}.png"

    def sound(self, clip: str) -> Path:
        return self.folder / "kept" / f"{clip}.wav"

    def improved(self, clip: str) -> Path:
        return self.folder / "improved" / f"{clip}.png"

    def reference(self, clip: str) -> Path:
        """The picture that stands for a kept clip."""
        return self.improved(clip) if self.improve else self.picture(clip)

    def strip(self, clip: str) -> Path:
        return self.folder / "strips" / f"{clip}.jpg"


def key_of(path: Path, task: Task) -> str:
    """Tells a video's versions apart: by name, size and time of change."""
    stat = path.stat()
    said = f"{path.relative_to(task.footage)} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def pending(task: Task) -> tuple[list[Path], list[Path]]:
    """The videos of the footage, and those of them that are not done. Raises ValueError where there are none."""
    if not task.footage.is_dir():
        raise ValueError(f"footage folder {task.footage} does not exist: name the folder that holds your videos")
    videos = videos_in(task.footage)
    if not videos:
        raise ValueError(f"no videos in {task.footage}: name a folder with files such as .mp4, .mov or .mkv")
    return videos, [path for path in videos if not (task.sources() / f"{key_of(path, task)}.json").is_file()]


def records(task: Task) -> list[dict]:
    """Of every clip of the videos that are done, kept or not, in the order of their names and times."""
    found = []
    for path in videos_in(task.footage):
        done = task.sources() / f"{key_of(path, task)}.json"
        if done.is_file():
            found += json.loads(done.read_text(encoding="utf-8"))
    return found


def do_source(path: Path, task: Task, tools: Tools) -> list[dict]:
    """Scans a video and writes what comes of it; returns its records."""
    key, name = key_of(path, task), str(path.relative_to(task.footage))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:40].strip("-") or "video"
    for folder in (task.sources(), task.folder / "kept", task.folder / "strips"):
        folder.mkdir(parents=True, exist_ok=True)
    made: list[dict] = []

    def add(start: int, stop: int, reasons: list[dict], **more: object) -> str:
        clip = f"{stem}-{key}-{start:06d}"
        about = {"clip": clip, "source": name, "frame": start, "start": start / FPS, "seconds": (stop - start) / FPS}
        made.append(about | {"kept": not reasons, "reasons": reasons} | more)
        return clip

    try:
        video = probe(path)
    except DamagedError as error:
        write_strip([], task.strip(add(0, 0, [{"reason": "damaged", "detail": str(error)}])))
    else:
        for part in divided(video, key, task, tools):
            if isinstance(part, Obstacle):
                clip = add(part.start, part.stop, [{"reason": part.reason, "detail": part.detail}])
                write_strip(moments(video, part.start, part.stop), task.strip(clip))
            else:
                crop = [part.crop.left, part.crop.top, part.crop.width, part.crop.height]
                reasons = [{"reason": reason, "detail": detail} for reason, detail in part.reasons]
                more = {"crop": crop, "figures": part.figures, "prompt": part.prompt}
                clip = add(part.start, part.start + task.length, reasons, **more)
                chosen = np.linspace(0, task.length - 1, MOMENTS).round().astype(int)
                write_strip([part.frames[i] for i in chosen], task.strip(clip))
                if not reasons:
                    keep(part, task, clip)
    text = json.dumps(made, indent=1, ensure_ascii=False)
    write_whole(task.sources() / f"{key}.json", lambda to: to.write_text(text, encoding="utf-8"))
    return made


def divided(video: Video, key: str, task: Task, tools: Tools) -> list[Obstacle | Examined]:
    """Clips and what lies between them, in order. Frames before a clip that begins later are no loss of their own."""
    try:
        found = scan(video, tools.finder, tools.voice, task.limits)
    except DamagedError as error:
        return [Obstacle("damaged", str(error), 0, 0)]
    parts: list[Obstacle | Examined] = []
    between: list[Obstacle] = []
    at, slack = 0, round(SLACK * FPS)
    while at < len(found):
        ahead = next_stretch(found.obstacles, len(found), at, task.length, slack)
        if isinstance(ahead, Obstacle):
            between.append(ahead)
            at = ahead.stop
            continue
        seed = [int(key, 16), at]
        try:
            clip = examine(found, ahead, task.length, task.shape, tools, task.limits, seed)
        except DamagedError as error:
            between.append(Obstacle("damaged", str(error), at, len(found)))
            break
        parts += [*joined(between), clip]
        between, at = [], clip.start + task.length
    return [*parts, *joined(between)]


def keep(clip: Examined, task: Task, name: str) -> None:
    """The reference picture and the sound of a clip."""
    import soundfile

    write_whole(task.picture(name), lambda to: Image.fromarray(clip.frames[0]).save(to, "PNG"))
    sound = np.clip(clip.pcm, -1, 1)
    write_whole(task.sound(name), lambda to: soundfile.write(to, sound, SAMPLE_RATE, "PCM_16", format="WAV"))


def moments(video: Video, start: int, stop: int) -> list[np.ndarray]:
    """Some pictures of frames start .. stop-1, fewer where there are none."""
    found = []
    for index in sorted({start, (start + stop) // 2, max(start, stop - 1)}):
        found += [shown.picture for shown in frames(video, index, index + 1, side=STRIP)]
    return found


def write_strip(pictures: list[np.ndarray], path: Path) -> None:
    """MOMENTS pictures uint8 [H, W, 3] side by side, small; grey where there are fewer."""
    tiles = [Image.fromarray(one).resize((max(1, STRIP * one.shape[1] // one.shape[0]), STRIP)) for one in pictures]
    tiles += [Image.new("RGB", (STRIP, STRIP), "grey")] * (MOMENTS - len(tiles))
    strip = Image.new("RGB", (sum(tile.width for tile in tiles), STRIP))
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width
    write_whole(path, lambda to: strip.save(to, "JPEG", quality=88))
