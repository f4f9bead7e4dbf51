"""prepare_data as a user meets it: drawn faces in ordinary files, what is kept, why not, going on, and training on it.

A finder reads the drawn faces from pixels (tests/data/curation/cartoon.py), named as users name their own. The same on
rendered heads with dlib, silero and every fault planted is a slow test below.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk import config
from livetalk.commands import prepare_data as command
from livetalk.commands.cached import CachedText
from livetalk.commands.generate_ode_pairs import generate_ode_pairs, read_manifest
from livetalk.commands.prepare_data import prepare_data
from livetalk.commands.train_dmd import train_dmd
from livetalk.commands.train_teacher import train_teacher
from livetalk.data import encoded, pairs
from livetalk.data.curation.footage import frames, probe
from livetalk.data.curation.source import do_source
from livetalk.geometry import Geometry
from livetalk.media import fit_image, read_audio, read_image
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.lora import ADAPTED, LoraTraining
from livetalk.parts import Card, export_part, load_part, read_config
from livetalk.training.trainer import TrainConfig
from tests.data.curation.cartoon import OTHER_SKIN, film
from tests.data.curation.footage import plant, truncated, uneven, world_clips, write_video

pytest.importorskip("av")
ROOT = Path(__file__).resolve().parents[1]
CARTOON = "tests.data.curation.cartoon"
LATENTS, FRAMES, LONG = 13, 49, 60


def settings(folder: Path, family: Path, *overrides: str):
    told = {
        **{"folder": str(folder), "model": str(family), "name": "a", "height": 64, "width": 64},
        **{"clip_latents": LATENTS, "workers": 1, "shard": 2, "chunk": 2, "held_out": 1},
        **{"faces": f"{CARTOON}:Faces", "identity": f"{CARTOON}:identity", "voice": "energy"},
        # The drawn mouths are small and plain.
        **{"limits.mouth_detail": 0.1, "limits.identity": 0.2, "device": "cpu"},
    }
    return config.load(None, [*(f"{key}={value}" for key, value in told.items()), *overrides], run="prepare_data")


@pytest.fixture(scope="session")
def footage(tmp_path_factory) -> Path:
    """Three good videos and six that are not, in a folder with another one inside."""
    folder = tmp_path_factory.mktemp("footage")
    (folder / "more").mkdir()
    a, b, c = (film(LONG, seed) for seed in range(3))
    write_video(folder / "good a.mp4", *a)
    write_video(folder / "more" / "good-turned.mov", b[0], b[1], turned=90)
    write_video(folder / "good-uneven.mkv", c[0], c[1], uneven(LONG))
    soft = np.stack([np.asarray(Image.fromarray(one).resize((9, 9)).resize((96, 96))) for one in a[0]])
    write_video(folder / "blur.mp4", soft, a[1])
    write_video(folder / "black.mp4", np.zeros_like(a[0]), a[1])
    write_video(folder / "late.mp4", b[0], np.r_[np.zeros(3200, np.float32), b[1][:-3200]])
    other = film(LONG, 1, skin=OTHER_SKIN)[0]
    write_video(folder / "two.mp4", np.concatenate([a[0], other], axis=2), a[1])
    write_video(folder / "cut.mp4", np.concatenate([a[0][:30], film(30, 3, light=150)[0]]), a[1])
    truncated(write_video(folder / "torn.mp4", *c), 0.3)
    return folder


WRONG = {"blur": "blur", "black": "black", "late": "sync", "two": "several faces", "cut": "cut", "torn": "damaged"}


@pytest.fixture(scope="session")
def once(footage, tiny_family, tmp_path_factory) -> tuple[Path, str]:
    """A folder with runs/a, prepared from the footage, and what was printed."""
    folder = tmp_path_factory.mktemp("once")
    printed = io.StringIO()
    before = state(footage)
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        prepare_data(settings(footage, tiny_family, "features=features"))
    assert state(footage) == before
    return folder, printed.getvalue()


@pytest.fixture
def prepared(once, family) -> str:
    """A copy of that in the current folder, and what was printed."""
    shutil.copytree(once[0] / "runs", "runs")
    return once[1]


@pytest.fixture
def family(tiny_family, tmp_path, monkeypatch) -> Path:
    """A copy, since training adds to it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_family, tmp_path / "family"))


def lines(name="a") -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/{name}/clips.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_good_clips_are_kept_and_the_others_listed_with_reasons(prepared, family):
    found = lines()
    kept = [record for record in found if record["kept"]]
    assert {Path(record["source"]).stem for record in kept} == {"good a", "good-turned", "good-uneven"}
    assert all(record["seconds"] == FRAMES / 16 and record["prompt"] for record in kept)
    first = {}
    for record in found:
        first.setdefault(Path(record["source"]).stem, record["reasons"][0]["reason"] if record["reasons"] else "")
    assert {name: first[name] for name in WRONG} == WRONG
    late = next(record for record in found if record["source"] == "late.mp4")
    assert abs(late["figures"]["lag"] - 0.2) < 0.04

    assert "several faces" in prepared
    assert prepared.splitlines()[-1].startswith("use them: bash scripts/generate_ode_pairs.sh name=a prepared=runs/a")
    sheet = Image.open("runs/a/sheet.jpg")
    assert sheet.width > 300 and np.asarray(sheet).std() > 20
    train, aside = (encoded.load(Path("runs/a") / name) for name in ("clips", "held_out"))
    assert (len(train), len(aside)) == (2, 1) and train.latents.shape[1:] == (16, LATENTS, 8, 8)
    assert train.reference is None
    rows = read_manifest("runs/a/conditions.txt")
    assert [row[0] for row in rows] == train.prompts + aside.prompts
    # The reference picture is the clip's first frame, upright, and is what the latents begin with.
    vae = load_part(family, "vae")
    for row, latents in zip(rows[: len(train)], train.latents, strict=True):
        picture = fit_image(read_image(row[1]), 64, 64)
        assert torch.allclose(vae.encode(picture[None, :, None])[0, :, 0], latents[:, 0].float(), atol=0.05)
        assert len(read_audio(row[2])) == FRAMES * 1000


def test_frames_and_sound_of_a_clip_belong_together(footage, prepared):
    """The clip's frames are those of its time in the source, and its sound too."""
    record = next(record for record in lines() if record["source"] == "good a.mp4" and record["kept"])
    start = record["frame"]
    shown = next(iter(frames(probe(footage / record["source"]), start, start + 1))).picture
    left, top, width, height = record["crop"]
    own = Image.fromarray(shown).resize((64, 64), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    kept = np.asarray(read_image(f"runs/a/curation/kept/{record['clip']}.png"))
    assert np.array_equal(np.asarray(own), kept)
    whole, part = read_audio(footage / record["source"]), read_audio(f"runs/a/curation/kept/{record['clip']}.wav")
    wanted = whole[start * 1000 : (start + FRAMES) * 1000]
    assert np.abs(part[: len(wanted)] - wanted).max() < 0.02


def files(name: str) -> dict[str, bytes]:
    return {str(path.relative_to(f"runs/{name}")): path.read_bytes() for path in Path(f"runs/{name}").rglob("*.*")}


def unlook(videos: int) -> None:
    """Runs/a as it was before it looked at some videos: the good ones and others."""
    root = Path("runs/a")
    for path in root.iterdir():
        if path.name != "curation":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = {path: json.loads(path.read_text()) for path in root.glob("curation/sources/*.json")}
    good_first = sorted(found, key=lambda path: (not any(one["kept"] for one in found[path]), found[path][0]["source"]))
    for path in good_first[:videos]:
        made = [made for one in found[path] for made in root.glob(f"curation/*/{one['clip']}.*")]
        assert made or not any(one["kept"] for one in found[path])
        for file in (path, *made):
            file.unlink()


def test_it_goes_on_where_it_stopped(footage, family, prepared, monkeypatch):
    """Stopped after two of four videos that are left; then while it encodes."""
    done = []

    def two(path, task, tools):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        return do_source(path, task, tools)

    whole, run = files("a"), settings(footage, family, "features=features")
    unlook(4)
    with monkeypatch.context() as patch:
        patch.setattr(command, "do_source", two)
        with pytest.raises(KeyboardInterrupt):
            prepare_data(run)
    assert len(list(Path("runs/a/curation/sources").glob("*.json"))) == 7 and not Path("runs/a/clips").exists()
    with monkeypatch.context() as patch:
        patch.setattr(encoded, "encode_excerpt", None)
        with pytest.raises(TypeError):
            prepare_data(run)
    monkeypatch.setattr(command, "do_source", None)  # nothing is looked at twice
    prepare_data(run)
    assert files("a") == whole
    with pytest.raises(ValueError, match="other settings .limits"):
        prepare_data(replace(run, limits=replace(run.limits, blur=0.4)))


@pytest.mark.slow
def test_several_processes_and_several_machines_make_the_same(footage, family, prepared):
    run = settings(footage, family, "features=features")
    prepare_data(replace(run, name="b", workers=2))
    prepare_data(replace(run, name="c", part=1, parts=2))
    assert not Path("runs/c/clips.jsonl").exists()
    prepare_data(replace(run, name="c"))
    assert files("a") == files("b") == files("c")


def test_improved_references_and_captions(footage, prepared, family):
    good = Path("good")
    good.mkdir()
    for path in (footage / "good a.mp4", footage / "good-uneven.mkv"):
        (good / path.name).symlink_to(path)
    own = (f"improve={CARTOON}:brighter", f"prompts={CARTOON}:caption", "name=b", "held_out=0")
    prepare_data(settings(good, family, *own))
    clips = encoded.load(Path("runs/b/clips"))
    assert set(clips.prompts) == {f"A disc speaks for {FRAMES} frames."}
    assert clips.references.shape == (2, 16, 1, 8, 8) and not torch.equal(clips.references, clips.latents[:, :, :1])
    assert (clips.references - clips.latents[:, :, :1]).abs().mean() < clips.latents.std()
    rows = read_manifest("runs/b/conditions.txt")
    assert all("improved" in row[1] and read_image(row[1]).size == (128, 128) for row in rows)
    with pytest.raises(ValueError, match="no clip .* can be kept"):
        prepare_data(settings(footage, family, f"improve={CARTOON}:somebody_else"))
    wrong = [record["reasons"][0] for record in lines() if "figures" in record]
    assert [reason["detail"][:8] for reason in wrong if reason["reason"] == "reference"] == ["identity"] * 3


def plain(train: TrainConfig) -> TrainConfig:
    """Without an average."""
    return replace(train, ema=0.0, lr=0.01)


def test_training_takes_prepared_clips(once, prepared, family, capsys):
    """Teacher, pairs and DMD: two steps each."""
    clips = encoded.load(Path("runs/a/clips"))
    text = load_part(family, "text")
    kept = CachedText(str(family), "text", str(once[0] / "features"), lambda: None, torch.device("cpu"))
    assert torch.equal(kept.encode(clips.prompts), text.encode(clips.prompts)), "nothing is left to encode"
    dit, words = read_config(family / "teacher", DiTConfig), text.config
    run = config.load(ROOT / "configs/train_teacher_debug.yaml")
    run = replace(run, name="a", family=str(family), prepared="runs/a", dit=dit, text=words, device="cpu")
    train_teacher(run)
    assert json.loads((family / "teacher/card.json").read_text())["steps"] == 2
    assert "geometry.height=64" in capsys.readouterr().out
    before = load_part(family, "teacher").state_dict()
    adapters = replace(run, lora=LoraTraining(2, 4.0), features=str(once[0] / "features"), train=plain(run.train))
    with pytest.raises(ValueError, match="say prepared=runs/NAME"):
        train_teacher(replace(adapters, name="lora", prepared=""))
    train_teacher(replace(adapters, name="lora"))
    after = load_part(family, "teacher").state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(ADAPTED.fullmatch(name.removesuffix(".weight")) for name in changed)

    pairs_run = replace(config.load(ROOT / "configs/generate_ode_pairs_debug.yaml"), name="a", family=str(family))
    pairs_run = replace(pairs_run, prepared="runs/a", count=2, held_out=1, device="cpu")
    generate_ode_pairs(pairs_run)
    teacher = encoded.fingerprint(load_part(family, "teacher"))
    made = pairs.load(Path("runs/a/pairs/train"), pairs_run.timesteps, teacher)
    assert made.prompts == clips.prompts
    assert torch.equal(made.states[:, -1, 0], clips.latents[:, :, 0])
    assert torch.equal(made.audio, clips.audio[:, : pairs_run.geometry.clip_frames])
    assert (
        pairs.load(Path("runs/a/pairs/dev"), pairs_run.timesteps, teacher).prompts
        == encoded.load(Path("runs/a/held_out")).prompts
    )

    dmd = config.load(ROOT / "configs/train_dmd_debug.yaml")
    dmd = replace(dmd, name="a", family=str(family), prepared="runs/a", device="cpu", pairs_config="", ode_config="")
    dmd = replace(dmd, train=replace(dmd.train, steps=2), score="score")
    with pytest.raises(ValueError, match="score .*bash scripts/make_family.sh"):
        train_dmd(dmd)
    larger = WanDiT(replace(dit, layers=6))
    export_part(family, "score", larger.config, larger.state_dict(), Card(0, 0))
    with pytest.raises(ValueError, match="score has width 24 and 6 layers, not the size 14b"):
        train_dmd(replace(dmd, score_size="14b"))
    train_dmd(dmd)
    told = json.loads((family / "student/card.json").read_text())["settings"]
    assert told["prepared"] == "runs/a" and told["score"] == "score"

    wide = replace(pairs_run, name="b", geometry=Geometry(64, 96, clip_latents=6))
    for wrong, reason in (
        (wide, "latents of 8x8, wanted are 8x12"),
        (replace(pairs_run, name="b", count=3), "3 pairs wanted, .* holds 2"),
        (replace(pairs_run, name="b", geometry=Geometry(64, 64, clip_latents=15)), "shorter, 13 latents"),
        (replace(pairs_run, name="b", prepared="runs/none"), "bash scripts/prepare_data.sh"),
    ):
        with pytest.raises(ValueError, match=reason):
            generate_ode_pairs(wrong)
    index = json.loads(Path("runs/a/clips/index.json").read_text())
    Path("runs/a/clips/index.json").write_text(json.dumps(index | {"encoders": "others"}))
    with pytest.raises(ValueError, match="another VAE or audio encoder"):
        train_teacher(replace(run, name="b"))


def test_mistakes(footage, prepared, family, tmp_path):
    (tmp_path / "empty").mkdir()
    base = settings(footage, family)
    for wrong, reason in (
        (replace(base, folder=""), "prepare_data.sh FOLDER"),
        (replace(base, folder="none"), "none does not exist"),
        (replace(base, folder="empty"), "no videos in"),
        (replace(base, voice="loud"), "silero or energy"),
        (replace(base, improve="nothing_there:x"), "cannot be imported"),
        (replace(base, model="nono"), "'nono' is not known"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepare_data(wrong)
    for word, reason in (
        ("height=65", "multiple of 16"),
        ("part=2", "parts count from 0"),
        ("held_out=-1", "held_out=-1: give 0 or more"),
    ):
        with pytest.raises(ValueError, match=reason):
            settings(footage, family, word)
    with pytest.raises(ValueError, match="none would be left to train on"):
        prepare_data(replace(base, held_out=3))


def test_the_script_takes_the_folder_as_it_is(footage, family, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for words, status, said in (
        ([str(footage), f"model={family}", "--dry-run"], 0, "9 videos, 9 to look at"),
        (["--dry-run"], 2, "no footage is named"),
        ([str(footage), "limits.blurr=1"], 2, "did you mean 'blur'"),
        ([str(footage), "faces=dlip"], 2, "use dlib, or name your own"),
    ):
        monkeypatch.setattr("sys.argv", ["scripts/prepare_data.py", *words])
        assert script.main() == status
        printed = capsys.readouterr()
        assert said in printed.out + printed.err and printed.err.count("\n") <= 1
    assert not Path("runs").exists()


FAULTS = {
    "blur": "blur",
    "black": "black",
    "black-frames": "black",
    "dark": "dark",
    "two-faces": "several faces",
    "silence": "silence",
    "no-sound": "no sound",
    "sync-200ms-late": "sync",
    "sync-200ms-early": "sync",
    "sync-other-speech": "sync",
    "cut": "cut",
    "jump-cut": "cut",
    "mouth-covered": "mouth",
    "small-face": "face size",
    "frozen": "frozen",
    "truncated": "damaged",
    "no-video": "damaged",
}


@pytest.mark.slow
def test_rendered_heads_with_every_fault_planted(tmp_path, monkeypatch):
    """The proof of docs/own-data.md: dlib, silero and the nano family on videos of the synthetic world."""
    head = ROOT / "data/ict-facekit.npz"
    for name in ("dlib", "silero_vad", "face_recognition_models"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e .[curation]")
    if not head.is_file():
        pytest.skip(f"{head} is not there: bash scripts/build_face_model.sh makes it")
    plant(tmp_path / "footage", world_clips(str(head)))
    monkeypatch.chdir(tmp_path)
    size = ["height=256", "width=256", "clip_latents=25", "workers=1", "chunk=1"]
    prepare_data(config.load(None, ["folder=footage", "name=proof", "held_out=2", *size], "prepare_data"))
    found: dict[str, list[dict]] = {}
    for record in lines("proof"):
        found.setdefault(Path(record["source"]).stem, []).append(record)
    for name, records in found.items():
        kept = [record for record in records if record["kept"]]
        if name.startswith("good-"):
            assert len(kept) == 1, (name, records)
            assert abs(kept[0]["figures"]["lag"]) < 0.06, name
        else:
            assert not kept, name
            assert records[0]["reasons"][0]["reason"] == FAULTS[name.removeprefix("bad-")], (name, records)
    assert {name.removeprefix("bad-") for name in found if name.startswith("bad-")} == set(FAULTS)
    assert sum(name.startswith("good-") for name in found) == 7
    for name, lag in (("late", 0.2), ("early", -0.2)):
        assert abs(found[f"bad-sync-200ms-{name}"][0]["figures"]["lag"] - lag) < 0.04
    for folder, count in (("clips", 5), ("held_out", 2)):
        assert encoded.load(Path("runs/proof") / folder).latents.shape == (count, 16, 25, 32, 32)


def test_a_dry_run_says_how_much_memory_encoding_takes(footage, family, capsys):
    prepare_data(settings(footage, family), dry_run=True)
    shown = capsys.readouterr().out
    assert "9 videos, 9 to look at" in shown and shown.splitlines()[-1].startswith("total memory: ")
    assert not Path("runs").exists()
