"""The whole recipe in its debug sizes, as one command, and a video from the student it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["world", "vae", "small_decoder", "judges", "audio", "clips", "teacher", "pairs", "ode", "dmd", "evaluate"]


def run(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    own = {"LIVETALK_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True)


def test_the_whole_recipe_from_an_empty_folder_to_a_video(tmp_path):
    done = run(tmp_path, "reproduce_nano", "--until", "teacher")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "reproduce_nano", "--until", "dmd")
    assert done.returncode == 0, done.stderr
    seconds = (tmp_path / "runs/reproduce_debug/seconds.txt").read_text().split()
    assert seconds[::2] == STAGES[:-1]
    again = run(tmp_path, "reproduce_nano", "--until", "dmd")
    assert again.returncode == 0 and len(again.stdout.splitlines()) == 1, "finished stages are not run again"

    Image.new("RGB", (64, 64), "gray").save(tmp_path / "face.png")
    soundfile.write(tmp_path / "speech.wav", np.zeros(8000), 16_000)
    sizes = ["model=runs/nano-debug/family", "sampler=causal", "geometry.height=64", "geometry.width=64"]
    made = run(tmp_path, "inference", *sizes, "image=face.png", "audio=speech.wav", "prompt=nods", "output=a.mp4")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "a.mp4" and (tmp_path / "a.mp4").stat().st_size > 500


def test_mistakes_end_with_one_line(tmp_path):
    for arguments, reason in (
        (["--from", "nothing"], "unknown stage"),
        (["--until"], "needs the name"),
        (["--quick"], "unknown argument"),
        (["--from", "dmd", "--until", "vae"], "comes after"),
        (["--config", "a.yaml"], "every stage has a config of its own"),
        (["nonsense=1"], "train_nano: unknown key 'nonsense'"),
        (["world.size=32"], "train_ode: unknown key 'world'"),
    ):
        done = run(tmp_path, "reproduce_nano", *arguments)
        assert done.returncode == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert run(tmp_path, "reproduce_nano", "--list").stdout.split() == STAGES
    assert not list(tmp_path.iterdir())


def test_a_dry_run_plans_what_is_left_and_leaves_nothing(tmp_path):
    done = run(tmp_path, "reproduce_nano", "--dry-run", "--from", "dmd", "--until", "dmd", "device=cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "reproduce_nano: dmd" and not any(line.startswith("reproduce_nano: ") for line in lines[1:])
    assert lines[-1].startswith("total memory: ") and not list(tmp_path.iterdir())
