"""The command: what it refuses, and, slowly, the whole of it with the shipped student, from its start to SIGTERM."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from livetalk.cli import run_command
from livetalk.commands import serve as command
from livetalk.config import load
from livetalk.realtime.server.settings import ServeRun

ROOT = Path(__file__).resolve().parents[1]


def refused(capsys, *arguments: str) -> str:
    """The one line with which the command ends with status 2."""
    assert run_command("serve", "", command.serve, arguments, command.KEYS) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("serve: ")
    return err


def test_what_the_command_refuses(capsys, monkeypatch):
    monkeypatch.delenv(command.TOKEN_VARIABLE, raising=False)
    assert "no token is set" in refused(capsys, "host=0.0.0.0")
    assert "no token is set" in refused(capsys, "names=[talk.example.org]")
    assert "at least 16" in refused(capsys, "host=0.0.0.0", "token=short")
    assert "did you mean 'sessions'" in refused(capsys, "sesions=2")
    assert "port=70000" in refused(capsys, "port=70000")
    for token in ((), ("token=" + 16 * "a",)):
        told = refused(capsys, "host=nowhere.invalid", *token)
        assert "host=nowhere.invalid is no address of this machine" in told and "token" not in told
    monkeypatch.setenv(command.TOKEN_VARIABLE, "short")
    assert "at least 16" in refused(capsys, "host=0.0.0.0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.delenv(command.TOKEN_VARIABLE)
        assert "cannot be used" in refused(capsys, f"port={taken.getsockname()[1]}")


def test_the_config_is_the_default_written_out():
    assert load(ROOT / "configs" / "serve.yaml") == ServeRun()


def test_help_and_dry_run_load_nothing(capsys):
    assert run_command("serve", "Serves.", command.serve, ["--help"], command.KEYS) == 0
    assert "limits.idle_s=300.0" in capsys.readouterr().out
    assert run_command("serve", "", command.serve, ["--dry-run"], command.KEYS) == 0
    assert "GiB" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_command():
    """It prints the page's address as its only line, talks, logs in JSON without what was said, and ends when told."""
    pytest.importorskip("espeakng_loader")
    from tests.realtime.server.viewer import Viewer, fetch

    async def talk(address: str) -> tuple[np.ndarray, float]:
        async with Viewer(address) as viewer:
            assert (await viewer.open())[0] == 201
            await viewer.event(lambda event: event["type"] == "hello")
            await asyncio.sleep(2)
            viewer.send("say", text="Tell me something secret.")
            await viewer.event(lambda event: event["type"] == "caption" and event["who"] == "avatar")
            await asyncio.sleep(3)
            loud = max(np.abs(samples).max() for _, _, samples in viewer.sounds)
            return np.stack([pixels for _, _, pixels in viewer.frames]), float(loud)

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "serve.py"), "port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != command.TOKEN_VARIABLE},
    )
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert fetch(address, "/readyz")[0] == 200 and b"LiveTalk" in fetch(address, "/")[2]
        frames, loud = asyncio.run(talk(address))
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and out == ""
    assert loud > 3000 and frames.shape[1:] == (384, 384, 3) and len(frames) > 40
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.3
    assert '"event": "session ended"' in err and "secret" not in err and "Traceback" not in err
