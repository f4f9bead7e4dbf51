"""Samples of the synthetic world to look at and listen to: videos with sound and contact sheets with phoneme labels."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from livetalk.checks import made_folder
from livetalk.data.world.clip import Clip, World
from livetalk.data.world.take import WorldConfig
from livetalk.devices import device_of
from livetalk.geometry import FPS
from livetalk.media import VideoWriter

log = logging.getLogger(__name__)

_LABEL = 14  # pixels of text above a frame
_COLUMNS = 16
# PIL's own font has no phonetic letters: labels are written in ASCII, in the manner of X-SAMPA
_ASCII = str.maketrans("ʃʒθðŋɑæəʌɪʊɔɛɜɹɡɒɐɾɚᵻːˈˌʉʔʍ", "SZTDNA{@VIUOE3rgQ64@I:',}?W")


@dataclass(frozen=True)
class WorldSamples:
    """`scripts/make_world.sh`: `clips` clips of `split` from index `start` on, into the folder `output`.

    video: MP4 beside the PNG sheets; device: "auto" takes a GPU where there is one.
    """

    run: str = "make_world"
    split: str = "train"
    start: int = 0
    clips: int = 4
    frames: int = 81
    output: str = "outputs/world"
    video: bool = True
    device: str = "auto"
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self):
        for name, least in (("start", 0), ("clips", 1), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


def write_samples(config: WorldSamples) -> Path:
    """Writes SPLIT-INDEX.mp4 (sound, and a JSON of prompt, words and attributes), SPLIT-INDEX.png (every frame with its
    phoneme) and sheet.png (all clips, twelve moments each); returns the path of sheet.png."""

    device = device_of(config.device)
    folder = made_folder("output", config.output)
    rows = []
    with World(config.world, device) as world:
        for index in range(config.start, config.start + config.clips):
            clip = world.clip(config.split, index, config.frames)
            name = f"{clip.split}-{index:05d}"
            log.info("%s: %s | %s", name, clip.prompt, clip.text or "(silent)")
            if config.video:
                _write_video(folder / f"{name}.mp4", clip)
            Image.fromarray(contact_sheet(clip)).save(folder / f"{name}.png")
            moments = np.linspace(0, config.frames - 1, 12).round().astype(int)
            rows.append(np.concatenate(list(clip.frames[moments]), axis=1))
    Image.fromarray(np.concatenate(rows)).save(folder / "sheet.png")
    return folder / "sheet.png"


def _write_video(path: Path, clip: Clip) -> None:
    with VideoWriter(path, clip.frames.shape[1:3], clip.pcm) as writer:
        writer.write(clip.frames)
        writer.report = {
            **{"prompt": clip.prompt, "text": clip.text, "identity": clip.identity},
            **{"split": clip.split, "index": clip.index, "attributes": asdict(clip.attributes)},
            "phonemes": [(round(float(p.start), 3), round(float(p.end), 3), p.ipa) for p in clip.tracks["phonemes"]],
        }


def contact_sheet(clip: Clip) -> np.ndarray:
    """Every frame of a clip in reading order, each under its number, phoneme and mouth opening: uint8 [H, W, 3]."""
    frames, height, width, _ = clip.frames.shape
    columns = min(_COLUMNS, frames)
    rows = -(-frames // columns)
    image = Image.new("RGB", (columns * width, rows * (height + _LABEL)), "white")
    draw = ImageDraw.Draw(image)
    for j in range(frames):
        x, y = j % columns * width, j // columns * (height + _LABEL)
        image.paste(Image.fromarray(clip.frames[j]), (x, y + _LABEL))
        sounds = [p.ipa for p in clip.tracks["phonemes"] if p.start <= j / FPS < p.end] or ["-"]
        draw.text((x + 2, y + 1), f"{j} {_spelt(sounds[0])}  {clip.tracks['mouth_open'][j]:.3f}", fill="black")
    return np.asarray(image)


def _spelt(ipa: str) -> str:
    return "".join(letter for letter in ipa.translate(_ASCII) if letter.isascii())
