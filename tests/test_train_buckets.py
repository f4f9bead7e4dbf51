"""Training commands on clips of several shapes at once, as prepare_data leaves them: a folder for each shape."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from livetalk import config
from livetalk.commands import train_dmd as dmd_command
from livetalk.commands.generate_ode_pairs import generate_ode_pairs
from livetalk.commands.train_dmd import train_dmd
from livetalk.commands.train_ode import train_ode
from livetalk.commands.train_teacher import train_teacher
from livetalk.data import encoded
from livetalk.data.curation.listing import held_out_elsewhere
from livetalk.geometry import SPACE_STRIDE
from livetalk.models.dit import DiTConfig
from livetalk.parts import load_part, read_config

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"square": (64, 64), "tall": (80, 48)}
LATENTS = 10


def prepare(name: str, family: Path, count: int = 2) -> None:
    """What prepare_data leaves of `count` videos, one more held out, but of numbers drawn by chance."""
    height, width = SHAPES[name]
    vae, audio = (load_part(family, part) for part in ("vae", "audio"))
    described = {"encoders": encoded.fingerprint(vae, audio), "improve": "", "size": [height, width], "clips": name}
    generator = torch.Generator().manual_seed(len(name))

    def make(start: int, stop: int):
        shape = (stop - start, 16, LATENTS, height // SPACE_STRIDE, width // SPACE_STRIDE)
        sound = torch.randn(stop - start, 4 * LATENTS - 3, audio.config.channels, generator=generator)
        tensors = {"latents": torch.randn(shape, generator=generator), "audio": sound}
        return {key: value.bfloat16() for key, value in tensors.items()}, ["nods"] * (stop - start)

    for folder, clips in (("clips", count), ("held_out", 1)):
        encoded.write(Path("runs") / name / folder, clips, 4, described, make)


def debug(name: str, family: Path, **settings):
    run = replace(config.load(ROOT / f"configs/{name}_debug.yaml"), family=str(family), name="both", device="cpu")
    if name == "train_dmd":
        settings |= {"ode_config": ""}
    return replace(run, **({"pairs_config": ""} if name in ("train_ode", "train_dmd") else {}), **settings)


@pytest.fixture
def family(tiny_family, tmp_path, monkeypatch) -> Path:
    """A copy, in the current folder, since training adds to it; and prepared clips of both shapes."""
    monkeypatch.chdir(tmp_path)
    own = Path(shutil.copytree(tiny_family, tmp_path / "family"))
    for name in SHAPES:
        prepare(name, own)
    return own


def test_teacher_pairs_ode_and_dmd_train_on_both_shapes(family, capsys, monkeypatch):
    both = "runs/square,runs/tall"
    dit, text = read_config(family / "teacher", DiTConfig), load_part(family, "text").config
    train_teacher(debug("train_teacher", family, prepared=both, dit=dit, text=text))
    assert "geometry.height=64" in capsys.readouterr().out, "the first one's size"
    for name, (height, width) in SHAPES.items():
        made = debug("generate_ode_pairs", family, prepared=f"runs/{name}", count=2, held_out=1)
        generate_ode_pairs(replace(made, name=name, geometry=replace(made.geometry, height=height, width=width)))
    pairs = "runs/square/pairs,runs/tall/pairs"
    ode = debug("train_ode", family, pairs=pairs)
    with pytest.raises(ValueError, match="48x80 pixels.*64x64: say geometry.height=80 geometry.width=48"):
        train_ode(replace(ode, pairs="runs/tall/pairs,runs/square/pairs"))
    train_ode(ode, dry_run=True)
    train_ode(ode)
    report = json.loads(Path("runs/both/ode/report.json").read_text())
    by_shape = [report["start"][f"dev error, {shape}"] for shape in ("64x64", "48x80")]
    assert report["start"]["dev error"] == pytest.approx(sum(by_shape) / 2)
    assert all(f"dev error, {shape}" in report["history"][-1] for shape in ("64x64", "48x80"))

    with monkeypatch.context() as patch:
        patch.setattr(dmd_command, "table", lambda title, rows, **_: rows["keys and values of rollouts"])
        one, two = (dmd_command.memory(debug("train_dmd", family, prepared=at)) for at in ("runs/square", both))
    assert two / one == (64 * 64 + 80 * 48) / (64 * 64), "a cache for each shape"
    train_dmd(debug("train_dmd", family, prepared=both))
    made = json.loads((family / "student/card.json").read_text())
    assert made["settings"]["prepared"] == both
    train_dmd(replace(debug("train_dmd", family, pairs=pairs), name="of-pairs"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("use it: bash scripts/inference.sh")


def test_pairs_are_of_one_shape():
    with pytest.raises(ValueError, match="pairs=FOLDER,FOLDER"):
        config.load(None, ["prepared=runs/a,runs/b"], run="generate_ode_pairs")


def listing(name: str, train: list[str], held_out: list[str]) -> Path:
    """What prepare_data writes of the videos of its clips."""
    root = Path("runs") / name
    for folder in ("clips", "curation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    clips = [*train, *held_out]
    (root / "clips.jsonl").write_text("".join(json.dumps({"clip": f"{c}-0", "source": c}) + "\n" for c in clips))
    (root / "conditions.txt").write_text("".join(f"nods@@curation/kept/{c}-0.png@@{c}.wav\n" for c in clips))
    (root / "clips/index.json").write_text(json.dumps({"count": len(train)}))
    (root / "curation/index.json").write_text(json.dumps({"folder": "/footage"}))
    return root


def test_videos_that_are_held_out_in_one_shape_and_trained_on_in_another_are_told(
    tmp_path, monkeypatch, family, caplog
):
    a, b = listing("a", ["x", "y"], ["z"]), listing("b", ["x", "z"], ["w"])
    assert held_out_elsewhere([a]) == set() == held_out_elsewhere([b, tmp_path])
    assert held_out_elsewhere([a, b]) == {"/footage/z"}
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="runs/a/held_out holds no prepared"):
        train_dmd(debug("train_dmd", family, prepared="runs/a,runs/b"))
    assert "1 videos, such as /footage/z, are held out and trained on" in caplog.text
