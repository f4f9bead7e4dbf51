"""What training sees of a student at a checkpoint (livetalk/commands/examination.py)."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.commands.examination import SHEET_CLIPS, TOGETHER, Examination, likeness
from livetalk.data.pairs import OdePairs
from livetalk.evaluation.judges import Judges, JudgesConfig, save_judges

LEVELS = (1000.0, 625.0)


@pytest.fixture(scope="module")
def family(tiny_family, tmp_path_factory) -> Path:
    """The tiny family with judges of random weights."""
    folder = tmp_path_factory.mktemp("judged") / "family"
    shutil.copytree(tiny_family, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_judges(Judges(JudgesConfig(size=32)), folder / "judges")
    return folder


def some_pairs(count: int, truth: bool) -> OdePairs:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(count, 3, 6, 16, 4, 4, generator=generator).bfloat16()
    tracks = {"mouth_open": torch.rand(count, 21, generator=generator), "speech": torch.ones(count, 21)}
    tracks = {name: track.bfloat16() for name, track in tracks.items()} if truth else {}
    return OdePairs(states, torch.zeros(count, 21, 8).bfloat16(), ["a"] * count, LEVELS, {}, tracks)


def test_likeness_is_one_for_the_teacher_itself():
    latents = torch.randn(2, 16, 6, 4, 4)
    same = likeness(latents, latents, 3)
    assert same["motion"] == same["contrast"] == 1 and same["seams"] == same["seams of the teacher"]
    half = likeness(0.5 * latents, latents, 3)
    assert half["motion"] == pytest.approx(0.5) and half["contrast"] == pytest.approx(0.5)


def test_the_teacher_itself_is_found_to_be_the_teacher(family):
    looked = Examination(str(family), some_pairs(3, truth=True), 8, 3)
    assert len(looked.chosen) == 3 and looked.seams == (9,), "frame 9 is the first of the second block"
    figures, seen = looked.figures(looked.truth)
    assert figures["motion"] == 1 and figures["mouth like the teacher's"] == pytest.approx(1)
    assert all(figures[f"variance of {name} / teacher"] == pytest.approx(1) for name in ("pitch", "yaw", "roll"))
    assert {name: figures[name] for name in looked.teacher} == looked.teacher
    assert {"sharpness", "flicker", "black frames", "frozen frames", "clipped colours"} < set(looked.teacher)
    assert {"seam difference", "identity similarity", "A/V correlation", "A/V lag"} < set(looked.teacher)
    assert seen.frames.shape == (3, 21, 32, 32, 3) and seen.frames.dtype == torch.uint8


def test_a_student_that_stands_still_is_seen_to(family):
    looked = Examination(str(family), some_pairs(2, truth=True), 2, 3)
    looked.vae = SimpleNamespace(decode=lambda latents: torch.zeros(len(latents), 3, 21, 32, 32))
    figures, _ = looked.figures(torch.zeros_like(looked.truth))
    assert figures["motion"] == figures["contrast"] == 0
    assert figures["black frames"] == figures["frozen frames"] == 1, "flat grey, too"
    assert figures["sharpness"] == figures["flicker"] == 0
    assert figures["A/V correlation"] == figures["mouth like the teacher's"] == 0
    assert figures["variance of yaw / teacher"] == pytest.approx(0, abs=1e-9)


def test_without_truth_the_teachers_mouth_is_the_reference_and_without_judges_pixels_alone(family, tiny_family, caplog):
    looked = Examination(str(family), some_pairs(2, truth=False), 2, 3)
    assert "A/V correlation" not in looked.teacher and looked.teacher["mouth like the teacher's"] == pytest.approx(1)
    unjudged = Examination(str(tiny_family), some_pairs(2, truth=True), 2, 3)
    figures, seen = unjudged.figures(unjudged.truth)
    assert "mouth like the teacher's" not in figures and "sharpness" in figures and not seen.tracks
    assert sum("has no judges" in record.message for record in caplog.records) == 1


def test_silence_is_no_figure_and_no_nan(family):
    found = some_pairs(2, truth=True)
    found.tracks["speech"].zero_()
    looked = Examination(str(family), found, 2, 3)
    assert "A/V correlation" not in looked.teacher and np.isfinite(list(looked.teacher.values())).all()


def test_many_clips_are_looked_at_in_turns_and_the_first_are_shown(family):
    found = some_pairs(TOGETHER + 2, truth=False)
    looked = Examination(str(family), found, len(found), 3)
    alone = Examination(str(family), found, SHEET_CLIPS, 3)
    one, other = looked.seen.frames.int(), alone.seen.frames.int()
    assert one.shape == other.shape and len(one) == SHEET_CLIPS and (one - other).abs().max() <= 1
    assert looked.seen.images["sharpness"].shape == (TOGETHER + 2,)


def test_a_sheet_and_a_video_are_written(family, tmp_path):
    looked = Examination(str(family), some_pairs(2, truth=False), 2, 3)
    files = looked.show(looked.seen, tmp_path, "step-0000001")
    sheet = np.asarray(Image.open(files["sheet"]))
    assert sheet.shape == (4 * 32 + 4, 8 * 32, 3), "teacher and student of two clips, a line between"
    assert (sheet[:32] == sheet[32:64]).all()
    assert files["video"] == tmp_path / "videos" / "step-0000001.mp4" and files["video"].stat().st_size > 500


def test_without_ffmpeg_there_are_sheets_and_one_line(family, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    looked = Examination(str(family), some_pairs(1, truth=False), 1, 3)
    assert set(looked.show(looked.seen, tmp_path, "a")) == {"sheet"}
    assert set(looked.show(looked.seen, tmp_path, "b")) == {"sheet"}
    assert sum("no videos" in record.message for record in caplog.records) == 1
