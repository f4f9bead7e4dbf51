"""A process of a sharded run is killed: the run ends, says which, and goes on from the last whole checkpoint."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from livetalk.training import checkpoint, distributed

ROOT = Path(__file__).parents[2]


def launch(folder, when):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [str(Path(__file__).with_name("doomed.py")), str(folder), when]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["step", "save"])
def test_it_stops_names_the_process_and_goes_on(when, tmp_path):
    died = launch(tmp_path, when)
    assert died.returncode == 1
    root = died.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root and "SIGKILL" in root, died.stderr[-3000:]
    first, second = (line for line in died.stderr.splitlines() if line.startswith("process "))
    assert re.match(
        "process 0 of 2 (stops|is stopped), at step [34] of .*; the same command goes on from the last", first
    )
    assert (
        second == "process 1 is gone: killed, perhaps for memory, or the machine is lost. Start the same command again"
    )
    assert "[rank0]: Traceback" not in died.stderr
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-0000002"]
    again = launch(tmp_path, "never")
    assert again.returncode == 0 and "done at step 6" in again.stdout, again.stderr[-3000:]
    assert "at step 2" in again.stderr
    assert sorted(path.name for path in tmp_path.glob("*step*")) == ["step-0000004", "step-0000006"]


def test_an_error_says_whose_it_is_and_where(monkeypatch, caplog):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="memory"):
        with distributed.failing(lambda: "at step 7"):
            raise RuntimeError("CUDA out of memory\nand more")
    assert "process 3 of 8 stops, at step 7: CUDA out of memory" in caplog.text
    assert "and more" not in caplog.text


def test_where_the_others_cannot_be_asked_nobody_is_blamed(monkeypatch, caplog):
    monkeypatch.setattr(distributed, "ranks", lambda: 8)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as left:
        with distributed.failing(lambda: "at step 7"):
            raise RuntimeError("[/a/pair.cc:553] Connection closed by peer [::1]:7. This is typically caused by")
    assert left.value.code == 1
    assert caplog.messages == ["process 0 of 8 stops, at step 7: Connection closed by peer [::1]:7"]
