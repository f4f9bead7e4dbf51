"""What every command shares: progress on a terminal and elsewhere, and whose mistake an error is."""

import errno
import io
import os
import subprocess
from pathlib import Path

import pytest

from livetalk.cli import LINE_SECONDS, Bars, run_command

ROOT = Path(__file__).resolve().parents[1]


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    def screen(terminal):
        shown = Screen(terminal)
        monkeypatch.setattr("sys.stderr", shown)
        return shown

    return screen


def test_a_terminal_sees_bars(screen):
    shown = screen(True)
    with Bars() as bars:
        for done in range(1, 4):
            bars("decoding", done, 3)
            bars("denoising", done, 4)
    assert "decoding   100%|" in shown.getvalue() and "denoising   75%|" in shown.getvalue()
    assert "\r" in shown.getvalue()


def test_a_log_gets_plain_lines_and_not_many(screen, monkeypatch):
    shown = screen(False)
    with Bars() as bars:
        for done in range(1, 4):
            bars("decoding", done, 3)
        monkeypatch.setattr("time.monotonic", iter([100, 100, 100, 101, 100 + LINE_SECONDS, 111]).__next__)
        for done in range(1, 7):
            bars("denoising", done, 9)
    assert shown.getvalue().splitlines() == ["decoding   3/3", "denoising  5/9"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_the_users_mistake(tmp_path, capsys, place):
    (tmp_path / "file").touch()
    assert run_command("make_world", "", lambda run, dry: (tmp_path / place).mkdir(), []) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"make_world: {tmp_path / place} cannot be used (") and line.count("\n") == 1
    assert "name another place" in line


@pytest.mark.parametrize(
    "error", [OSError("ours"), OSError(errno.ENOENT, "none", "a"), OSError(errno.EROFS, "no name")]
)
def test_other_errors_of_the_system_are_not_hidden(error):
    def act(run, dry):
        raise error

    with pytest.raises(OSError) as raised:
        run_command("make_world", "", act, [])
    assert raised.value is error


def test_the_shipped_family_is_found_from_any_folder(tmp_path, monkeypatch):
    seen = []
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        for words in ([], ["family=own"]):
            assert run_command("train_ode", "", lambda run, dry: seen.append(run.family), words) == 0
    assert seen[:2] == ["livetalk/assets/nano", "own"] and seen[3] == "own"
    assert Path(seen[2]).resolve() == ROOT / "livetalk" / "assets" / "nano"


def test_an_interpreter_that_is_none_is_told_in_one_line():
    script = ROOT / "scripts" / "inference.sh"
    environment = {**os.environ, "LIVETALK_PYTHON": "/nowhere/python"}
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("set-up: LIVETALK_PYTHON=/nowhere/python is no") and done.stderr.count("\n") == 1


def test_a_config_of_another_command_is_named_before_its_keys(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("run: evaluate\nseed: 3\n")
    assert run_command("inference", "", lambda run, dry: None, ["--config", str(file), "image=face.png"]) == 2
    assert f"is for evaluate: run bash scripts/evaluate.sh --config {file}" in capsys.readouterr().err
