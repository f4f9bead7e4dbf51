"""Evaluation with samplers that cheat in known ways, and judges that read a drawn video exactly."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from livetalk.evaluation import landmarks
from livetalk.evaluation.evaluate import EvaluationConfig, Reconstructions, drift_rows, evaluate
from livetalk.evaluation.judges import Readings
from livetalk.evaluation.report import Report, contact_sheet, errors_table, main_table, plot_measure, write_report

TRACKS = ("mouth_open", "eye_open", "pitch", "yaw", "roll")
FRAMES, SIZE = 40, 16


@dataclass(frozen=True)
class CodedClip:
    """A clip whose frames carry their tracks as brightness of the first rows: what a perfect judge would read."""

    frames: np.ndarray
    reference: np.ndarray
    tracks: dict
    prompt: str = "nods"


def coded(index, frames=FRAMES):
    rng = np.random.default_rng(index)
    smooth = [np.convolve(rng.uniform(0, 1, frames + 2), np.ones(3) / 3, mode="valid") for _ in TRACKS]
    tracks = {name: curve.astype(np.float32) for name, curve in zip(TRACKS, smooth, strict=True)}
    speech = np.ones(frames, dtype=bool)
    speech[:12] = False
    tracks["mouth_open"] = np.where(speech, tracks["mouth_open"], 0.02).astype(np.float32)
    tracks["speech"] = speech
    # a standing picture below the coded rows, of its own for every clip
    picture = np.broadcast_to(rng.integers(0, 256, (1, SIZE, SIZE, 3)), (frames, SIZE, SIZE, 3)).astype(np.uint8).copy()
    for row, name in enumerate(TRACKS):
        picture[:, row] = np.round(tracks[name] * 255).astype(np.uint8)[:, None, None]
    return CodedClip(picture, picture[0], tracks)


class CodedJudges(torch.nn.Module):
    """Reads what `coded` wrote; the identity is the standing picture's direction."""

    def __init__(self):
        super().__init__()
        self.face = torch.nn.Module()
        self.face.register_buffer("track_mean", torch.zeros(1))

    def read_tracks(self, frames):
        return {name: frames[:, :, row].float().mean((-1, -2)) / 255 for row, name in enumerate(TRACKS)}

    def read(self, frames):
        x, tracks = frames.float() / 255, self.read_tracks(frames)
        identity = torch.nn.functional.normalize(x[:, :, len(TRACKS) :].flatten(2) - 0.5, dim=-1)
        features = torch.stack(list(tracks.values()), dim=-1)
        video = torch.cat([features.mean(1), features.std(1) if features.shape[1] > 1 else features[:, 0]], dim=-1)
        nothing = torch.zeros(len(x), 0)
        return Readings(tracks, identity, features, video, nothing, tracks["mouth_open"])


def frames_of(clips):
    return torch.from_numpy(np.stack([clip.frames for clip in clips]))


def late(clips):
    return torch.roll(frames_of(clips), 2, dims=1)


def frozen(clips):
    return frames_of(clips)[:, 20:21].expand(-1, FRAMES, -1, -1, -1).contiguous()


def stranger(clips):
    frames = frames_of(clips)
    frames[:, :, len(TRACKS) :] = 255 - frames[:, :, len(TRACKS) :]
    return frames


def measure(tracks):
    return {"nod": "nods" if tracks["pitch"].std() > 0.02 else "none"}


@pytest.fixture(scope="module")
def report():
    clips = [coded(i) for i in range(24)]
    config = EvaluationConfig(batch=7, bootstraps=10, sheets=2, seams=(9, 21, 33))
    samplers = {"copy": frames_of, "late": late, "frozen": frozen, "stranger": stranger}
    wanted = {"nod": "nods"}
    return evaluate(samplers, clips, CodedJudges(), config, measure=measure, wanted=lambda clip: wanted)


def test_a_copy_scores_as_the_truth(report):
    for measured in {row.measure for row in report.rows if not row.measure.startswith("Frechet")}:
        assert report.value("copy", measured) == pytest.approx(report.value("truth", measured), abs=1e-6), measured
    assert report.value("copy", "A/V correlation") > 0.99
    assert report.value("copy", "A/V lag (frames)") == 0
    assert report.value("copy", "Frechet distance, videos") < 1e-6
    assert report.value("truth", "Frechet distance, videos") > 1e-6
    assert report.compare("copy", "truth", "A/V correlation").value == pytest.approx(0, abs=1e-9)


def test_sync_rows_stand_beside_each_other(report):
    assert abs(report.value("copy", "A/V correlation, shuffled sound")) < 0.35
    assert report.value("copy", "A/V correlation, sound 200 ms later") < 0.6
    assert report.value("copy", "A/V correlation, sound 200 ms earlier") < 0.6
    assert report.value("late", "A/V lag (frames)") == 2
    assert report.value("late", "A/V correlation") > 0.95


def test_a_frozen_head_fails_where_it_should(report):
    assert report.value("frozen", "A/V correlation") == 0
    assert report.value("frozen", "frozen frames") == 1
    assert report.value("frozen", "variance of pitch / truth") == pytest.approx(0, abs=1e-6)
    assert report.value("frozen", "prompt's motion found") == 0
    assert report.value("truth", "prompt's motion found") == 1
    assert report.value("frozen", "mouth open in silence (share)") > 0.9
    assert report.value("truth", "mouth open in silence (share)") == 0
    assert report.value("frozen", "Frechet distance, videos") > report.value("truth", "Frechet distance, videos")


def test_identity_is_compared_with_the_own_reference(report):
    assert report.value("truth", "identity similarity") == pytest.approx(1, abs=1e-4)
    assert abs(report.value("truth", "identity similarity, another person")) < 0.2
    assert report.value("stranger", "identity similarity") < -0.9


def test_report_renders_and_answers(report, tmp_path):
    table = main_table(report, methods=["truth", "late"], measures=["A/V correlation", "identity similarity"])
    lines = table.splitlines()
    assert lines[0] == "| measure | truth | late |" and len(lines) == 4
    path = write_report(report, tmp_path / "out")
    assert "24 clips" in path.read_text() and "the floor" in path.read_text()
    stored = json.loads((path.parent / "report.json").read_text())
    assert {row["method"] for row in stored["rows"]} == {"truth", "copy", "late", "frozen", "stranger"}
    assert stored["by_lag"]["late"]["2"] > 0.95
    assert (path.parent / "lags.png").stat().st_size > 1000 and (path.parent / "contact_sheet.png").is_file()
    plot_measure(report, "A/V correlation", tmp_path / "sync.png")
    assert (tmp_path / "sync.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no figure student"):
        report.value("student", "A/V correlation")
    with pytest.raises(ValueError, match="not kept per clip"):
        report.compare("late", "student", "A/V correlation")


def test_contact_sheet_puts_methods_under_each_other():
    black, white = np.zeros((2, 9, 8, 8, 3), np.uint8), np.full((2, 9, 8, 8, 3), 255, np.uint8)
    sheet = contact_sheet({"truth": black, "student": white}, columns=3, gap=2)
    assert sheet.shape == (2 * 16 + 2, 24, 3)
    assert sheet[:8].max() == 0 and sheet[8:18].min() == 255 and sheet[18:26].max() == 0
    with pytest.raises(ValueError, match="equal clips"):
        contact_sheet({"truth": black, "student": white[:1]})


def test_bad_samplers_and_arguments_are_refused():
    clips = [coded(i) for i in range(3)]
    with pytest.raises(ValueError, match="must return uint8"):
        evaluate({"short": lambda some: frames_of(some)[:, :-1]}, clips, CodedJudges())
    with pytest.raises(ValueError, match="another name"):
        evaluate({"truth": frames_of}, clips, CodedJudges())
    with pytest.raises(ValueError, match="both measure and wanted"):
        evaluate({}, clips, CodedJudges(), measure=measure)
    with pytest.raises(ValueError, match="at least one clip|at least one array"):
        evaluate({}, [], CodedJudges())


def test_reconstruction_of_a_coarser_copy():
    clips = [coded(i) for i in range(4)]
    table = Reconstructions(CodedJudges())
    for some in (clips[:3], clips[3:]):
        frames = frames_of(some)
        table.add("VAE", some, frames, (frames // 16 * 16 + 8).to(torch.uint8))
    with pytest.raises(ValueError, match="reconstruction must be uint8"):
        table.add("VAE", clips, frames_of(clips), frames_of(clips).float())
    found = table.report()
    assert found.clips == 4
    assert found.value("VAE", "PSNR (dB)") == pytest.approx(
        20 * np.log10(255 / np.sqrt((16**2 - 1) / 12 + 0.25)), abs=0.6
    )
    assert found.value("VAE", "SSIM") > 0.9
    assert found.value("VAE", "mouth read again, correlation") > 0.98
    assert found.value("VAE", "identity similarity") > 0.98
    exact = Reconstructions()
    exact.add("VAE", clips, frames_of(clips), frames_of(clips))
    assert exact.report().value("VAE", "PSNR (dB)") == 100
    assert exact.report().value("VAE", "sharpness / truth") == pytest.approx(1)


def test_drift_compares_the_end_with_the_start():
    clips = [coded(i, frames=64) for i in range(8)]
    frames = frames_of(clips)
    report = Report("long", 8)
    fading = frames.clone()
    fading[:, 32:] = (fading[:, 32:].float() * 0.5).to(torch.uint8)
    drift_rows(report, "steady", frames, clips, CodedJudges(), seconds=1)
    drift_rows(report, "fading", fading, clips, CodedJudges(), seconds=1)
    assert report.value("steady", "sharpness, last 1 s / first") == pytest.approx(1, abs=0.15)
    assert report.value("fading", "sharpness, last 1 s / first") < 0.4
    assert report.value("fading", "colour, last 1 s - first (0..1)") > 0.15
    assert report.value("steady", "identity, last 1 s / first") == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="frames or more"):
        drift_rows(report, "short", frames, clips, CodedJudges(), seconds=3)


def test_errors_become_a_table():
    assert errors_table({"yaw/pearson": 0.98765}).splitlines()[-1] == "| yaw | pearson | 0.9877 |"


def test_landmarks_say_when_they_are_not_available(tmp_path):
    frames = np.zeros((1, 8, 16, 16, 3), np.uint8)
    result = landmarks.landmark_agreement(frames, np.zeros((1, 8)), model=tmp_path / "none.dat")
    assert not result.available and "not available" in str(result)
