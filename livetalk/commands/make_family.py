"""`bash scripts/make_family.sh`: the published files as a family, which training reads parts from and adds parts to."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from torch import nn

from livetalk.commands.memory import bytes_of, table
from livetalk.config import FamilyRun, InferenceRun, flat
from livetalk.families import PUBLISHED, published_parts
from livetalk.models.layouts import Layout, present
from livetalk.models.text import TextEncoder, file_tokenizer, published_name
from livetalk.parts import TOKENIZER, Card, Part, export_part

log = logging.getLogger(__name__)
SAMPLES = ("nods while speaking, smiling", "Eine Frau spricht. 一个人在说话", "")
GENERATOR = "generator"

KEYS = """
family=FOLDER   where the parts go: vae, audio, text, teacher
size=1.3b       of the teacher, OmniAvatar merged into its base (bash scripts/merge_lora.sh --size 1.3b)
score=14b       also the larger one, part score, whose judgement DMD can follow
student=true    also the published distilled student
"""


def make_family(run: FamilyRun, dry_run: bool = False, layout: Layout | None = None) -> None:
    """Writes the parts that are not there yet; prints the folder. Raises ValueError for files that are missing."""
    parts = wanted_parts(run, layout or Layout())
    if dry_run:
        rows = {}
        for name, part in parts.items():
            with torch.device("meta"):
                rows[name] = bytes_of(part.build().parameters(), precision(name))
        print(table(f"make_family: to {run.family}, one part at a time", rows, max(rows.values())))
        return
    missing = [str(path) for part in parts.values() for path in part.paths if not present(path)]
    if missing:
        raise ValueError(f"{', '.join(missing)} not there: bash scripts/download.sh and bash scripts/merge_lora.sh")
    for name, part in parts.items():
        if (Path(run.family) / name).is_dir():
            log.info("%s is there", Path(run.family) / name)
            continue
        log.info("%s from %s", name, part.source)
        write_part(run, name, part)
    print(f"family: {run.family}")


def wanted_parts(run: FamilyRun, layout: Layout) -> dict[str, Part]:
    """Published parts by their names in a family."""

    def of(model: str) -> dict[str, Part]:
        settings = InferenceRun(model=model, sampler=PUBLISHED[model].sampler)
        return {part.name: part for part in published_parts(settings, layout)}

    whole = of(f"omniavatar-{run.size}")
    parts = {name: whole[name] for name in ("vae", "audio", "text")} | {"teacher": whole[GENERATOR]}
    if run.score:
        parts["score"] = of(f"omniavatar-{run.score}")[GENERATOR]
    if run.student:
        parts["student"] = of("livetalk-1.3b")[GENERATOR]
    return parts


def precision(name: str) -> torch.dtype:
    """That a part is stored in: of the VAE's the published one, since it decides what pictures look like."""
    return torch.float32 if name == "vae" else torch.bfloat16


def write_part(run: FamilyRun, name: str, part: Part) -> None:
    """Reads a published part and writes it under our names."""
    module = part.load(dtype=precision(name))
    weights = module.state_dict()
    if isinstance(module, TextEncoder):
        weights = {published_name(ours): value for ours, value in weights.items()}
    card = Card(0, 0, settings=flat(run) | {"source": str(part.source)})
    made = export_part(run.family, name, module.config, weights, card, precision(name))
    if part.tokenizer is not None:
        try:
            keep_tokenizer(module, Path(part.tokenizer), made / TOKENIZER)
        except ValueError:
            shutil.rmtree(made)
            raise


def keep_tokenizer(text: nn.Module, source: Path, target: Path) -> None:
    """Copies a tokenizer as the one file that a family has. Raises ValueError unless it does the same as its folder."""
    file = source / TOKENIZER if source.is_dir() else source
    if not file.is_file():
        raise ValueError(f"{source} has no {TOKENIZER}: download the tokenizer's whole folder again")
    shutil.copy(file, target)
    alone, length = file_tokenizer(target), text.config.length
    for mine, theirs in zip(alone(list(SAMPLES), length), text.tokenizer(list(SAMPLES), length), strict=True):
        if not torch.equal(mine, theirs):
            raise ValueError(f"{file} makes other tokens than {source}: download the tokenizer's whole folder again")
