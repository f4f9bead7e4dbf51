"""The training commands as a user meets them: the debug chain from an empty folder to a video, and the mistakes."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from livetalk.cli import nano_or_debug
from livetalk.commands import train_ode
from livetalk.commands.memory import activation_bytes, training_rows
from livetalk.commands.train_teacher import inference_command, pairs_command
from livetalk.config import CausalSampling, OdeRun, TeacherRun
from livetalk.data import encoded
from livetalk.media import read_audio
from livetalk.training.teacher import FlowMatchingConfig
from livetalk.training.trainer import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("train_nano", "train_teacher", "evaluate")
QUICK = {
    "train_nano": ["clips=4", "held_out=2", "world.supersample=1"],
    "train_teacher": ["clips=2", "shard=2", "world.supersample=1"],
    "evaluate": [
        "clips=2",
        "batch=2",
        "frames=17",
        "scales=[2.0]",
        "world.supersample=1",
        "voice2=0",
        "long_seconds=0",
    ],
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A script's main with arguments, in an empty folder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def command(name: str, *arguments: str) -> int:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        monkeypatch.setattr("sys.argv", [f"scripts/{name}.py", *arguments])
        return script.main()

    return command


def test_the_debug_chain(command, capsys):
    """train_nano, train_teacher, evaluate, and the inference command that train_teacher prints."""
    assert command("train_nano", *QUICK["train_nano"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "configs/train_nano_debug.yaml" in lines[0] and lines[-1] == "weights: runs/nano-debug/family"
    assert command("train_teacher", *QUICK["train_teacher"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "configs/train_teacher_debug.yaml" in lines[0]
    assert lines[-2] == "checkpoint: runs/nano-debug/family/teacher"
    family = Path("runs/nano-debug/family")
    assert {path.name for path in family.iterdir()} == {"vae", "small_decoder", "audio", "judges", "text", "teacher"}
    assert json.loads((family / "teacher/card.json").read_text())["steps"] == 2

    for part in range(2):
        parts = [*QUICK["train_teacher"][:-2], "shard=1", "world.supersample=1", f"part={part}", "parts=2"]
        assert command("train_teacher", "name=few", *parts, "keep_frames=false") == 0
    one, other = (encoded.load(Path(f"runs/{name}/clips")) for name in ("nano-debug", "few"))
    assert torch.equal(one.latents, other.latents) and torch.equal(one.audio, other.audio)
    assert one.prompts == other.prompts and not Path("runs/few/frames").exists()
    capsys.readouterr()

    words = shlex.split(lines[-1].removeprefix("use it: "))
    assert words[:2] == ["bash", "scripts/inference.sh"]
    Image.new("RGB", (64, 64), "gray").save("face.png")
    soundfile.write("speech.wav", np.zeros(5000), 16_000)
    made = ["image=face.png", "audio=speech.wav", "prompt=nods", "teacher.steps=1", "output=a.mp4"]
    assert command("inference", *words[2:], *made) == 0
    assert len(read_audio("a.mp4")) == 5000
    assert json.loads(Path("a.json").read_text())["height"] == 64
    capsys.readouterr()

    before = {part: (family / part / "card.json").read_text() for part in ("text", "teacher")}
    assert command("train_teacher", *QUICK["train_teacher"], "flow.causal=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "checkpoint: runs/nano-debug/family/teacher_causal"
    assert before == {part: (family / part / "card.json").read_text() for part in before}
    words = shlex.split(lines[-1].removeprefix("use it: "))
    assert words[:2] == ["bash", "scripts/generate_ode_pairs.sh"]
    assert command("train_ode", "train.steps=1") == 0, "pairs of the bidirectional one"
    capsys.readouterr()
    assert command("train_ode", "train.steps=1", "source=teacher_causal", "pairs=runs/nano-debug/pairs") == 2
    assert "pairs of another teacher" in capsys.readouterr().err
    few = ["count=2", "held_out=1", "shard=2"]
    assert command("generate_ode_pairs", *words[2:], *few, "name=causal") == 0
    assert command("train_ode", "train.steps=1", "source=teacher_causal", "name=causal") == 0
    capsys.readouterr()

    assert command("evaluate", *QUICK["evaluate"], "methods=[teacher]") == 0
    shown = capsys.readouterr().out
    assert "configs/evaluate_debug.yaml" in shown.splitlines()[0] and "teacher, guidance 2" in shown
    assert any(Path(shown.splitlines()[-1]).rglob("*.md"))


def test_an_audio_encoder_goes_on(command, capsys, caplog):
    """With another engine beside the world's own; what it said is kept to the figure `keeping`."""
    caplog.set_level("INFO")
    alone = [*QUICK["train_nano"], "first=audio", "last=audio", "clips=2"]
    assert command("train_nano", *alone) == 0
    weights = "runs/nano-debug/family/audio/weights-00000.safetensors"
    further = [f"audio_start={weights}", "audio_engines=[tone]", "audio_others=2", "family=further", "name=further"]
    assert command("train_nano", *alone, *further) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "weights: further" and "keeping" in caplog.text
    found = json.loads(Path("further/audio/card.json").read_text())["figures"]
    assert {"named right", "disturbed: named right"} <= found.keys()
    assert command("train_nano", *alone, "audio_start=none.safetensors", "name=again") == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert command("train_nano", *alone, "world.engine=festival", "name=again") == 2
    assert "festival" in capsys.readouterr().err


def test_the_teacher_makes_the_parts_it_lacks(command, capsys, monkeypatch):
    """Only in a world that needs no file; elsewhere the command that makes them is named."""
    asked = []
    monkeypatch.setattr("livetalk.commands.train_teacher.train_nano", asked.append)
    # The stand-in makes nothing, so that what follows it is a user's mistake again.
    assert command("train_teacher", "world.seed=5", "family=runs/mine", *QUICK["train_teacher"]) == 2
    assert (asked[0].family, asked[0].world.seed, asked[0].world.engine) == ("runs/mine", 5, "tone")
    capsys.readouterr()
    assert command("train_teacher", "--config", str(ROOT / "configs/train_teacher.yaml"), "family=none") == 2
    line = capsys.readouterr().err
    assert "no weights for vae, audio in none" in line and "bash scripts/train_nano.sh" in line


MISTAKES = {
    ("train_nano", "first=vea"): "stage 'vea' is unknown",
    ("train_nano", "first=audio", "last=vae"): "comes after",
    ("train_nano", "world.face_model=none.npz"): "scripts/build_face_model.sh",
    ("train_nano", "device=tpu"): "device 'tpu'",
    ("train_nano", "device=cuda"): "use device=cpu",
    ("train_nano", "vae_train.step=3"): "did you mean 'steps'",
    ("train_nano", "vae_train.steps=0"): "steps=0: give 1 or more",
    ("train_teacher", "world.face_model=none.npz"): "bash scripts/train_nano.sh",
    ("generate_ode_pairs", "source=critic"): "teacher and teacher_causal",
    ("train_teacher", "flow.causal=7"): "flow.causal=7",
    ("evaluate", "family=none"): "bash scripts/train_nano.sh and bash scripts/train_teacher.sh",
    ("evaluate", "splits=dev"): "did you mean 'split'",
    ("make_world", "world.face_model=none.npz"): "scripts/build_face_model.sh",
    ("make_world", "clips=0"): "clips=0",
    ("build_face_model",): "the following arguments are required",
    ("build_face_model", "none", "a.npz"): "does not exist",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line(command, capsys, words):
    assert command(*words) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{words[0]}: ") and line.count("\n") == 1 and MISTAKES[words] in line


@pytest.mark.parametrize("name", [*TRAINING, "make_world"])
def test_help(command, capsys, name):
    assert command(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: bash scripts/{name}.sh" in text and "world.face_model=" in text


@pytest.mark.parametrize("name", [*TRAINING, "make_world"])
def test_a_dry_run_ends_with_the_memory_and_leaves_nothing(command, capsys, tmp_path, name):
    assert command(name, "--dry-run") == 0
    assert re.fullmatch(r"total memory: \d+\.\d\d GiB", capsys.readouterr().out.splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_the_nano_runs_fit_a_gpu(command, capsys):
    for name, least, most in (("train_nano", 5, 40), ("train_teacher", 5, 40)):
        assert command(name, "--config", str(ROOT / f"configs/{name}.yaml"), "--dry-run") == 0
        assert least < float(capsys.readouterr().out.split()[-2]) < most


def test_without_a_config_the_machine_decides(monkeypatch, capsys):
    for seen, name in ((True, "train_nano.yaml"), (False, "train_nano_debug.yaml")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert nano_or_debug("train_nano").name == name
        assert f"configs/{name}" in capsys.readouterr().out
    for name in TRAINING:
        assert (ROOT / f"configs/{name}.yaml").is_file() and (ROOT / f"configs/{name}_debug.yaml").is_file()


def test_memory_is_counted_exactly_where_it_can_be():
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    net[0].requires_grad_(False)
    every, trained = 10 * 20 + 20 + 20 * 5 + 5, 20 * 5 + 5
    rows = training_rows("net", [net], TrainConfig(ema=0.9), 7)
    assert list(rows.values()) == [4 * every, 4 * trained, 8 * trained, 4 * every, 7]
    assert training_rows("net", [net], TrainConfig(ema=0.0), 7)["net: averaged weights (EMA)"] == 0
    # With the first layer frozen, the last one keeps its input [3, 20] alone.
    kept = activation_bytes(lambda dtype: net(torch.empty(3, 10, dtype=dtype)), [net], "fp32")
    assert kept == 4 * 3 * 20
    assert activation_bytes(lambda dtype: net(torch.empty(3, 10, dtype=dtype)), [net], "bf16") == 2 * 3 * 20


def test_the_inference_command_says_only_what_differs():
    assert inference_command(TeacherRun()) == "bash scripts/inference.sh sampler=teacher"
    run = TeacherRun(family="runs/a", flow=FlowMatchingConfig(latents=12, prefix=3))
    wanted = "bash scripts/inference.sh model=runs/a sampler=teacher geometry.clip_latents=12 teacher.prefix=3"
    assert inference_command(run) == wanted


def test_a_printed_command_can_be_copied_into_a_shell():
    family = "runs/it's mine; really"
    run = TeacherRun(family=family)
    for line, said in ((inference_command(run), f"model={family}"), (pairs_command(run), f"family={family}")):
        assert said in shlex.split(line)
    student = train_ode.inference_command(OdeRun(family=family, causal=CausalSampling((1000.0, 500.0))))
    assert {f"model={family}", "causal.timesteps=[1000.0,500.0]"} <= set(shlex.split(student))
