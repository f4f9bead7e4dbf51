"""A training command under each launcher that docs/distributed.md names, in two processes on a CPU: accelerate's, and
torchrun on two nodes, which here are this machine twice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from livetalk.training import checkpoint
from tests.test_train_buckets import prepare

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TORCHRUN = "torch.distributed.run"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(folder: Path, launcher: list[str], name: str, *words: str) -> subprocess.Popen:
    """A debug DMD run by a launcher, in a folder with a family and prepared clips."""
    command = [sys.executable, *(["-m", *launcher] if launcher else []), str(ROOT / "scripts/train_dmd.py")]
    command += ["--config", str(ROOT / "configs/train_dmd_debug.yaml"), "device=cpu", f"name={name}"]
    command += [f"family=families/{name}", "prepared=runs/square", "train.steps=2", "shown=1", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    shutil.copytree(folder / "family", folder / "families" / name, dirs_exist_ok=True)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(running: subprocess.Popen) -> str:
    """What it printed. Fails the test unless it ended well."""
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err[-3000:]
    return out


def by_accelerate(folder: Path, name: str, *words: str) -> list[str]:
    alone = ["--num_machines", "1", "--main_process_port", str(free_port())]
    return [ended(start(folder, [*ACCELERATE, *alone], name, *words))]


def by_accelerate_on_two_nodes(folder: Path, name: str, *words: str) -> list[str]:
    meet = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    nodes = [start(folder, [*ACCELERATE, *meet, "--machine_rank", str(rank)], name, *words) for rank in range(2)]
    return [ended(node) for node in nodes]


def on_two_nodes(folder: Path, name: str, *words: str) -> list[str]:
    """The same line on each, as in the docs."""
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", name]
    meet += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    nodes = [start(folder, [TORCHRUN, *meet], name, *words) for _ in range(2)]
    return [ended(node) for node in nodes]


@pytest.fixture
def folder(tiny_family, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare("square", Path(shutil.copytree(tiny_family, "family")))
    return tmp_path


def student(name: str) -> dict[str, torch.Tensor]:
    [file] = Path(f"families/{name}/student").glob("*.safetensors")
    return load_file(file)


LAUNCHERS = {"accelerate": by_accelerate, "accelerate-nodes": by_accelerate_on_two_nodes, "nodes": on_two_nodes}


@pytest.mark.slow
@pytest.mark.parametrize("words", [("train.shard=true", "train.at_once=1"), ()], ids=["shard", "plain"])
def test_all_launchers_train_the_same_student(folder, words):
    for name, launch in LAUNCHERS.items():
        told = [line for out in launch(folder, name, *words) for line in out.splitlines()]
        assert len([line for line in told if line.startswith("use it: bash scripts/inference.sh")]) == 1, told
        whole = checkpoint.whole(Path("runs") / name / "dmd")
        assert [path.name for path in whole] == ["step-0000002"] and checkpoint.sharded(whole[0]) == bool(words)
        assert json.loads(Path(f"families/{name}/student/card.json").read_text())["steps"] == 2
    if words:
        ended(start(folder, [], "one", *words))
    first, *others = (student(name) for name in (*LAUNCHERS, *(["one"] if words else [])))
    before = load_file(next(Path("family/student").glob("*.safetensors")))
    assert any(not torch.equal(value, before[name]) for name, value in first.items())
    for other in others:
        for name, value in first.items():
            assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-6), name
