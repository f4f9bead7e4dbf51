"""Progress of a command on a terminal, and where there is none."""

import io

import pytest

from livetalk.cli import LINE_SECONDS, Bars


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
