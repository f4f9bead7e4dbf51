"""What became of the footage: a line for each clip, a short table, the conditions, a contact sheet.

A record is a dict as in clips.jsonl: clip, source, start and seconds, kept, reasons, and what was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from livetalk.data.curation.source import MOMENTS, STRIP, Task
from livetalk.data.encoded import INDEX, write_whole

GREEN, RED, FRAME, COLUMNS = (40, 150, 70), (200, 50, 40), 4, 4
LINES, LINE = 3, 12  # of text above a strip, and the height of one in pixels


def write_lines(path: Path, records: list[dict]) -> None:
    """clips.jsonl: every clip, kept or not."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


def table(records: list[dict]) -> str:
    """How many clips and seconds were kept, and rejected for which first reason."""
    kept = [record for record in records if record["kept"]]
    by_reason: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        if not record["kept"]:
            by_reason[record["reasons"][0]["reason"]].append(record)
    lines = [f"{'':<16}{'clips':>7}{'seconds':>9}  for example"]
    for name, found in (("kept", kept), *sorted(by_reason.items(), key=lambda item: -len(item[1]))):
        seconds = sum(record["seconds"] for record in found)
        example = found[0] if found else None
        said = "" if example is None else f"{example['source']}, {example['start']:.1f} s"
        if example is not None and example["reasons"]:
            said += f": {example['reasons'][0]['detail']}"
        lines.append(f"{name:<16}{len(found):>7}{seconds:>9.1f}  {said}"[:120].rstrip())
    return "\n".join(lines)


def divide(records: list[dict], held_out: int) -> tuple[list[dict], list[dict]]:
    """The kept clips to train on, and at least `held_out` to judge by, of videos of their own, drawn by their names.

    Raises ValueError where this leaves nothing to train on.
    """
    kept = [record for record in records if record["kept"]]
    drawn = sorted({record["source"] for record in kept}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    aside: set[str] = set()
    for source in drawn:
        if sum(record["source"] in aside for record in kept) >= held_out:
            break
        aside.add(source)
    train = [record for record in kept if record["source"] not in aside]
    if not train:
        raise ValueError(
            f"held_out={held_out}: of {len(kept)} clips of {len(drawn)} videos none would be left to train on: name "
            "more footage, or hold out fewer"
        )
    return train, [record for record in kept if record["source"] in aside]


def write_conditions(path: Path, records: list[dict], task: Task) -> None:
    """Lines prompt@@image@@audio, the form that generate_ode_pairs reads as its manifest; files relative to it."""
    lines = []
    for record in records:
        files = (task.reference(record["clip"]), task.sound(record["clip"]))
        lines.append("@@".join([record["prompt"], *(str(file.relative_to(path.parent)) for file in files)]))
    write_whole(path, lambda to: to.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8"))


def held_out_elsewhere(roots: Sequence[Path]) -> set[str]:
    """Videos that one of several folders of prepare_data holds out and another trains on. Footage that was kept in one
    shape and not in another can be divided differently."""
    divided = [_sources(root) for root in roots]
    trained = set().union(*(train for train, _ in divided))
    return trained & set().union(*(aside for _, aside in divided))


def _sources(root: Path) -> tuple[set[str], set[str]]:
    """The videos of the clips to train on, and of those held out, in what prepare_data left; none if that is gone."""
    files = [root / "clips.jsonl", root / "conditions.txt", root / "clips" / INDEX, root / "curation" / INDEX]
    if not all(file.is_file() for file in files):
        return set(), set()
    lines, told, clips, footage = (file.read_text(encoding="utf-8") for file in files)
    folder = json.loads(footage)["folder"]
    known = {record["clip"]: f"{folder}/{record['source']}" for record in map(json.loads, lines.splitlines())}
    sources = [known[Path(line.split("@@")[1]).stem] for line in told.splitlines()]
    count = json.loads(clips)["count"]
    return set(sources[:count]), set(sources[count:])


def write_sheet(path: Path, records: list[dict], task: Task, most: int) -> None:
    """A JPEG of up to `most` clips that were kept, framed in green, and as many that were not, in red, with the reason.

    What is merely left over at the end of a video is not shown.
    """
    kept = [record for record in records if record["kept"]][:most]
    others = [record for record in records if not record["kept"] and record["reasons"][0]["reason"] != "short"][:most]
    chosen = [*kept, *others]
    width, height = MOMENTS * STRIP + 2 * FRAME, STRIP + LINES * LINE + 3 * FRAME
    sheet = Image.new("RGB", (COLUMNS * width, max(1, -(-len(chosen) // COLUMNS)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, record in enumerate(chosen):
        left, top = index % COLUMNS * width, index // COLUMNS * height
        colour = GREEN if record["kept"] else RED
        for row, line in enumerate(wrapped(draw, said_of(record), width - 2 * FRAME)):
            draw.text((left + FRAME, top + LINE * row), line, fill=colour)
        top += LINES * LINE
        draw.rectangle((left, top, left + width - 1, top + STRIP + 2 * FRAME - 1), outline=colour, width=FRAME)
        with Image.open(task.strip(record["clip"])) as strip:
            strip.thumbnail((width - 2 * FRAME, STRIP))
            sheet.paste(strip, (left + FRAME, top + FRAME))
    write_whole(path, lambda to: sheet.save(to, "JPEG", quality=85))


def said_of(record: dict) -> str:
    where = f"{record['source']} {record['start']:.1f} s"
    if record["kept"]:
        return f"{where} kept: {record['prompt']}"
    reason = record["reasons"][0]
    return f"{where} {reason['reason']}: {reason['detail']}"


def wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """The first LINES lines of a text, in the letters that PIL's own font has."""
    lines = [""]
    for word in text.encode("ascii", "replace").decode().split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines[:LINES]
