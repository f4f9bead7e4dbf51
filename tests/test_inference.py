"""The command: every mistake is one line with a remedy and exit status 2, and leaves nothing behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from livetalk.cli import run_command
from livetalk.commands.inference import KEYS, infer
from livetalk.geometry import Geometry
from livetalk.media import read_audio
from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, EXAMPLE_PROMPT, example_prompt

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a picture, a sound, and broken ones."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "gray").save("face.png")
    soundfile.write("speech.wav", np.zeros(16_000), 16_000)
    Path("empty.png").touch()
    Path("empty.wav").touch()
    Path("text.txt").write_text("some text")
    Path("half.png").write_bytes(Path("face.png").read_bytes()[:60])
    Path("half.wav").write_bytes(Path("speech.wav").read_bytes()[:20])
    Path("folder").mkdir()
    Path("broken.yaml").write_text("run: [")
    Path("other.yaml").write_text("run: something_else\n")
    return tmp_path


@pytest.fixture
def run(folder, tiny_family):
    """The command in that folder, with a tiny family of random weights."""
    settings = ["image=face.png", "audio=speech.wav", "prompt=nods", f"model={tiny_family}", "geometry.clip_latents=6"]
    settings += ["geometry.height=32", "geometry.width=48", "teacher.steps=2", "teacher.prefix=2"]

    def run(*arguments: str) -> int:
        return run_command("inference", "Renders a video.", infer, [*settings, *arguments], KEYS)

    return run


MISTAKES = {
    "image=missing.png": "does not exist",
    "image=empty.png": "is empty",
    "image=text.txt": "not a picture",
    "image=speech.wav": "not a picture",
    "image=half.png": "half.png",
    "image=folder": "is a folder",
    "image=": "has no value",
    "image_path=missing.png": "missing.png does not exist",
    "audio=missing.wav": "does not exist",
    "audio=empty.wav": "is empty",
    "audio=text.txt": "no sound",
    "audio=face.png": "no sound",
    "audio=half.wav": "no sound",
    "audio=folder": "is a folder",
    "audio_path=missing.wav": "missing.wav does not exist",
    "duration=0": "duration 0",
    "duration=-3": "duration -3",
    "duration=nan": "duration: 'nan' is not a number",
    "duration=inf": "duration inf",
    "duration=long": "duration",
    "duration=1e12": "over 12 hours",
    "video_duration=0": "duration 0",
    "seed=-1": "seed -1",
    "seed=half": "seed",
    "seed=1.5": "seed",
    "prompt=  ": "prompt is empty",
    "promt=nods": "did you mean 'prompt'",
    "Image=a.png": "did you mean 'image'",
    "teacher.step=3": "did you mean 'steps'",
    "output=folder": "is a folder",
    "output=a.avi": "does not end in .mp4",
    "output=face.png/a.mp4": "is a file",
    "output=/proc/none/a.mp4": "cannot be made",
    "output_path=a.txt": "does not end in .mp4",
    "model=nan0": "did you mean 'nano'",
    "model=omniavatar-1.3b": "use sampler=teacher",
    "model=folder": "no weights for vae",
    "sampler=student": "sampler 'student' is not known",
    "precision=int3": "precision 'int3'",
    "device=tpu9": "device 'tpu9'",
    "geometry.height=100": "height 100",
    "geometry.window=2": "window 2",
    "nonsense": "not key=value",
    "--seed=1": "unknown option --seed",
    "--conifg=a": "did you mean --config",
    "--config=missing.yaml": "missing.yaml is not a file",
    "--config=broken.yaml": "not valid YAML",
    "--config=other.yaml": "something_else",
    "--config": "expected one argument",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_line(folder, run, capsys, argument):
    before = sorted(folder.rglob("*"))
    assert run(argument) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("inference: ")
    assert MISTAKES[argument] in shown.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("sampler", ["teacher", "causal"])
def test_a_video_and_its_report(folder, run, capsys, sampler):
    """The last line printed is the file; beside it lies a report; the three stages were told in plain lines."""
    assert run(f"sampler={sampler}", "seed=7", "output=new/deep/a.mp4") == 0
    shown = capsys.readouterr()
    assert shown.out == "new/deep/a.mp4\n"
    lines = shown.err.splitlines()
    for stage in ("loading", "denoising", "decoding"):
        done, total = next(line.split()[-1].split("/") for line in lines if line.startswith(stage))
        assert done == total
    assert "\r" not in shown.err and "\x1b" not in shown.err
    assert len(read_audio("new/deep/a.mp4")) == 16_000
    report = json.loads(Path("new/deep/a.json").read_text())
    assert (report["seed"], report["frames"], report["fps"], report["synthetic"]) == (7, 16, 16, True)
    assert report["settings"]["sampler"] == sampler and report["prompt"] == "nods" and report["image"] == "face.png"
    assert set(report["timings"]) == {"loading", "encoding", "denoising", "decoding", "total"}
    assert {path.name for path in Path("new/deep").iterdir()} == {"a.mp4", "a.json"}


@pytest.mark.parametrize(("duration", "frames"), [("0.5", 8), ("1.51", 25), ("2", 32)])
def test_duration(run, duration, frames):
    assert run(f"video_duration={duration}", "output_path=a.mp4") == 0
    assert len(read_audio("a.mp4")) == frames * 1000
    assert json.loads(Path("a.json").read_text())["frames"] == frames


def test_the_default_name_says_what_it_is(run, capsys):
    assert run("seed=3", "duration=0.1") == 0
    assert capsys.readouterr().out == "outputs/face_speech_seed3.mp4\n"
    assert Path("outputs/face_speech_seed3.mp4").is_file()


def test_the_same_seed_gives_the_same_file(run):
    for name in ("a", "b"):
        assert run("duration=0.3", f"output={name}.mp4") == 0
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_names_of_files_may_be_any_bytes(folder, run, capfdbinary):
    """Such as Latin-1 ones on an old disk."""
    image = os.fsdecode(b"caf\xe9.png")
    shutil.copy("face.png", image)
    assert run(f"image={image}", "duration=0.1") == 0
    assert capfdbinary.readouterr().out == b"outputs/caf\xe9_speech_seed0.mp4\n"
    assert json.loads(Path(os.fsdecode(b"outputs/caf\xe9_speech_seed0.json")).read_text())["image"] == image


def test_weights_that_do_not_fit_are_refused(folder, run, tiny_family, capsys):
    shutil.copytree(tiny_family, "broken")
    config = json.loads(Path("broken/vae/config.json").read_text())
    Path("broken/vae/config.json").write_text(json.dumps({**config, "base_dim": 8}))
    assert run("model=broken", "output=a.mp4") == 2
    assert "expected" in capsys.readouterr().err and not Path("a.mp4").exists()
    Path("broken/vae/config.json").write_text("{}")
    assert run("model=broken", "output=a.mp4") == 2
    assert "does not describe a VAEConfig" in capsys.readouterr().err and not list(folder.glob(".a*"))


def test_a_family_without_a_student_names_its_teacher(folder, run, tiny_family, capsys):
    shutil.copytree(tiny_family, "young")
    shutil.rmtree("young/student")
    assert run("model=young") == 2
    line = capsys.readouterr().err
    assert "no weights for student" in line and "bash scripts/train_ode.sh" in line and "sampler=teacher" in line


def test_a_stop_cleans_up(folder, run, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("livetalk.families.rollout", stop)
    before = sorted(folder.rglob("*"))
    assert run("output=new/a.mp4") == 130
    assert sorted(folder.rglob("*")) == before and "stopped" in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr("livetalk.families.rollout", fail)
    with pytest.raises(RuntimeError, match="ours"):
        run("output=a.mp4")
    assert not Path("a.mp4").exists()


@pytest.mark.parametrize("sampler", ["teacher", "causal"])
def test_dry_run_ends_with_the_memory(folder, run, capsys, sampler):
    before = sorted(folder.rglob("*"))
    assert run("--dry-run", f"sampler={sampler}") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"total memory: \d+\.\d\d GiB", last) and sorted(folder.rglob("*")) == before


def test_dry_run_of_the_published_student_needs_no_weights(run, capsys):
    settings = ["--config", str(ROOT / "configs/causal_inference.yaml"), "--dry-run", "precision=bfloat16"]
    assert run_command("inference", "", infer, settings) == 0
    total = float(capsys.readouterr().out.splitlines()[-1].split()[2])
    # 1.42, 0.13, 0.09 and 5.68 billion parameters in two bytes are 13.6 GiB; cache and working memory come on top
    assert 15 < total < 30


def test_the_published_student_says_how_to_get_it(folder, capsys):
    settings = [
        "--config",
        str(ROOT / "configs/causal_inference.yaml"),
        "image=face.png",
        "audio=speech.wav",
        "prompt=a",
    ]
    assert run_command("inference", "", infer, settings) == 2
    line = capsys.readouterr().err
    assert "LiveTalk-1.3B-V0.1/model.safetensors" in line and "bash scripts/download.sh" in line


def test_a_copy_without_the_example_says_what_to_give(folder, tiny_family, monkeypatch, capsys):
    for name in ("IMAGE", "AUDIO", "PROMPT"):
        monkeypatch.setattr(f"livetalk.commands.inference.EXAMPLE_{name}", folder / "gone" / name)
        monkeypatch.setattr(f"livetalk.pipeline.EXAMPLE_{name}", folder / "gone" / name)
    assert run_command("inference", "", infer, [f"model={tiny_family}", "prompt=nods"]) == 2
    line = capsys.readouterr().err
    assert "lacks its image and audio: give image=... audio=..." in line and line.count("\n") == 1
    with pytest.raises(ValueError, match="give image, audio and prompt of your own"):
        example_prompt()


def test_a_copy_without_the_nano_weights_says_how_to_make_them(folder, monkeypatch, capsys):
    monkeypatch.setattr("livetalk.families.SHIPPED", folder)
    settings = ["image=face.png", "audio=speech.wav", "prompt=nods"]
    assert run_command("inference", "", infer, settings) == 2
    line = capsys.readouterr().err
    assert "bash scripts/train_nano.sh and bash scripts/train_teacher.sh" in line and line.count("\n") == 1


def test_help_names_every_key(run, capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("usage: bash scripts/inference.sh", "image_path", "teacher.steps=50", "--dry-run", "duration=null"):
        assert word in text


def test_from_pretrained(tiny_family):
    from livetalk import LiveTalkPipeline

    pipe = LiveTalkPipeline.from_pretrained(tiny_family, sampler="causal", geometry=Geometry(32, 48))
    assert pipe(Image.new("RGB", (9, 9)), np.zeros(3000, np.float32), "nods").seconds == 3 / 16
    with pytest.raises(ValueError, match="did you mean 'sampler'"):
        LiveTalkPipeline.from_pretrained(tiny_family, samples="causal")
    with pytest.raises(ValueError, match="did you mean 'nano'"):
        LiveTalkPipeline.from_pretrained("nanno")


def test_as_a_process(folder, tiny_family):
    """Exit status and streams as a shell sees them, from any folder."""
    command = [sys.executable, str(ROOT / "scripts" / "inference.py"), "image=none.png", "prompt=nods"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("inference: image none.png does not exist") and result.stderr.count("\n") == 1


@pytest.mark.skipif(not (ROOT / "livetalk/assets/nano/teacher").exists(), reason="the nano weights are not there yet")
def test_the_bundled_example(tmp_path):
    """The shipped family renders the shipped example; few steps, for the chain and not the picture is looked at."""
    assert EXAMPLE_IMAGE.is_file() and EXAMPLE_AUDIO.is_file() and EXAMPLE_PROMPT.is_file()
    arguments = [f"output={tmp_path / 'a.mp4'}", "teacher.steps=1", "duration=0.5"]
    assert run_command("inference", "", infer, arguments) == 0
    assert len(read_audio(tmp_path / "a.mp4")) == 8000
