import sys
from types import SimpleNamespace

import pytest

from livetalk.training import tracking


class Fake:
    """Stands for the wandb package: keeps what it is given."""

    def __init__(self):
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.started.append(settings)
        return SimpleNamespace(log=lambda row, step: self.logged.append((step, row)), finish=self.finish)

    def finish(self):
        self.finished += 1

    def Image(self, path):
        return ("image", path)

    def Video(self, path, format):
        return ("video", path, format)


def test_off_needs_no_package_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = tracking.start("off", "p", "a", tmp_path / "run", {})
    tracker.log(1, {"loss": 0.5}, {"sheet": tmp_path / "a.png"})
    tracker.finish()
    assert not list(tmp_path.iterdir())


def test_mistakes_are_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb, or use tracking=off"):
        tracking.start("offline", "p", "a", tmp_path, {})
    with pytest.raises(ValueError, match="use one of off, offline, online"):
        tracking.start("yes", "p", "a", tmp_path, {})


def test_a_run_that_goes_on_keeps_its_identity_and_logs_figures_and_files(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        tracker = tracking.start("offline", "project", "nano/dmd", tmp_path / "dmd", {"train.lr": 1e-4})
        tracker.log(7, {"loss": 0.5}, {"sheet": tmp_path / "a.png", "video": tmp_path / "a.mp4"})
        tracker.finish()
    one, other = fake.started
    assert one == other and one["mode"] == "offline" and one["project"] == "project" and one["resume"] == "allow"
    assert one["config"] == {"train.lr": 1e-4} and one["id"] == (tmp_path / "dmd" / tracking.ID).read_text().strip()
    step, row = fake.logged[0]
    assert step == 7 and row["loss"] == 0.5 and fake.finished == 2
    assert row["sheet"] == ("image", str(tmp_path / "a.png"))
    assert row["video"] == ("video", str(tmp_path / "a.mp4"), "mp4")
