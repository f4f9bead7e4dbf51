"""The command on a tiny family of random weights: every column, timing, long clips, a second voice, and mistakes."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from livetalk.cli import CONFIGS
from livetalk.commands import evaluate as command
from livetalk.commands import evaluation_clips
from livetalk.commands.evaluate import Bench, Family, evaluate_family, present_methods
from livetalk.commands.evaluation_clips import VOICE2, has_voice, make_clips, require_voice
from livetalk.config import EvaluateRun, TeacherSampling, load
from livetalk.data.world.take import WorldConfig
from livetalk.evaluation.judges import Judges, JudgesConfig, save_judges
from livetalk.flow import SkipLayer
from livetalk.geometry import Geometry
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig
from livetalk.models.vae import WanVAE
from livetalk.parts import Card, export_part

CPU = torch.device("cpu")
WORLD = WorldConfig(engine="tone", second_engine="tone", size=32, supersample=1)


@pytest.fixture(scope="module")
def family(tiny_family, tmp_path_factory) -> Path:
    """The tiny family with judges and an ODE student."""
    folder = tmp_path_factory.mktemp("judged") / "family"
    shutil.copytree(tiny_family, folder)
    shutil.copytree(folder / "student", folder / "student_ode")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_judges(Judges(JudgesConfig(size=64, face_widths=(4,) * 5, identity_widths=(4,) * 5)), folder / "judges")
    return folder


@pytest.fixture
def run(family) -> EvaluateRun:
    geometry = Geometry(32, 32, window=9, anchors=3, clip_latents=6)
    return EvaluateRun(
        family=str(family), device="cpu", clips=4, frames=17, batch=3, steps=2, geometry=geometry, world=WORLD
    )


@pytest.fixture(scope="module")
def clips():
    return make_clips(WORLD, "dev", 3, 17, CPU)


def test_every_column_and_table_in_one_run(run, tmp_path, capsys, caplog):
    whole = replace(run, scales=(1.0, 2.0), voice2=2, timing=True, long_seconds=20, long_clips=2)
    whole = replace(whole, long_methods=("student", "teacher"), output=str(tmp_path))
    with caplog.at_level(logging.INFO):
        evaluate_family(whole)
    assert sum("watched 4 of 4" in line for line in caplog.messages) == 6, "truth, VAE, two scales, two students"
    stored = json.loads((tmp_path / "generation/report.json").read_text())
    rows = {(row["method"], row["measure"]): row["value"] for row in stored["rows"]}
    teachers = ["teacher, guidance 1", "teacher, guidance 2"]
    assert {method for method, _ in rows} == {"truth", "VAE", *teachers, "student", "ODE student"}
    best = next(name for name in teachers if ("student", f"Frechet distance, videos / {name}") in rows)
    assert rows[best, "Frechet distance, videos"] == min(rows[name, "Frechet distance, videos"] for name in teachers)
    own, theirs = (rows[name, "denoising of 5 s (s)"] for name in ("student", best))
    assert rows["student", f"denoising of a clip, {best}'s time / own"] == pytest.approx(theirs / own)
    assert rows["VAE", "decoding of 5 s (s)"] > 0
    for name in ("student", *teachers):
        assert rows[name, "sharpness, last 10 s / first"] > 0
    assert ("ODE student", "sharpness, last 10 s / first") not in rows
    judged = {(row["method"], row["measure"]) for row in stored["verdicts"]}
    assert ("student", "colour change, last 10 s / first") in judged and ("ODE student", "A/V correlation") in judged
    assert ("student", f"identity similarity, minus {best}") in judged and ("student", "blink rate / truth") in judged
    second = json.loads((tmp_path / "voice2/report.json").read_text())
    assert second["title"].startswith("test-voice2 (tone), 2 clips")
    assert {row["method"] for row in second["rows"]} == {"truth", best, "student", "ODE student"}
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == str(tmp_path) and "| student | A/V correlation | at least 0.8 |" in "\n".join(shown)


def test_methods_are_chosen_by_name_and_a_missing_student_is_an_error_only_then(run, family, tmp_path, caplog):
    assert present_methods(run) == ["teacher", "student", "student_ode"]
    assert present_methods(replace(run, methods=("student",))) == ["student"]
    alone = tmp_path / "family"
    shutil.copytree(family, alone, ignore=shutil.ignore_patterns("student*"))
    with caplog.at_level(logging.INFO):
        assert present_methods(replace(run, family=str(alone))) == ["teacher"]
    assert len(caplog.messages) == 1 and "has no student yet" in caplog.text
    with pytest.raises(ValueError, match=r"no weights for student in .*bash scripts/train_ode.sh"):
        present_methods(replace(run, family=str(alone), methods=("teacher", "student")))


def test_a_student_alone_needs_no_teacher(run, tmp_path):
    evaluate_family(replace(run, methods=("student",), clips=2, timing=True, output=str(tmp_path)))
    stored = json.loads((tmp_path / "generation/report.json").read_text())
    assert {row["method"] for row in stored["rows"]} == {"truth", "VAE", "student"}
    assert {row["measure"] for row in stored["verdicts"]} >= {"A/V correlation", "A/V lag (frames)"}


@pytest.mark.parametrize(("decoder", "other"), [("auto", "VAE"), ("vae", "small decoder")])
def test_the_decoder_that_is_not_the_usual_one_stands_beside_it(
    run, family, tmp_path, monkeypatch, capsys, decoder, other
):
    """In the reconstruction, as one more column of the student, with the time and the memory that it takes."""
    own = shutil.copytree(family, tmp_path / "family")
    sizes = SmallDecoderConfig(dim=8, mixes=1, widths=(8, 4, 4))
    export_part(own, "small_decoder", sizes, SmallDecoder(sizes).state_dict(), Card(0, 0))
    told = replace(run, family=str(own), methods=("student",), clips=2, timing=True, output=str(tmp_path / "made"))
    evaluate_family(told, dry_run=True)
    assert any(line.startswith("small_decoder ") for line in capsys.readouterr().out.splitlines())
    work = []
    for name in ("encode", "decode"):
        plain = getattr(WanVAE, name)
        monkeypatch.setattr(WanVAE, name, lambda own, x, act=plain, n=name: work.append((n, x.shape[2])) or act(own, x))
    evaluate_family(replace(told, decoder=decoder))
    assert work.count(("encode", 17)) == 1, "the truth, once for both decoders and both tables"
    assert work.count(("decode", 5)) == 1 + 1, "the truth, and the student's clips"
    found = {}
    for table in ("reconstruction", "generation"):
        stored = json.loads((tmp_path / "made" / table / "report.json").read_text())
        found[table] = {(row["method"], row["measure"]): row for row in stored["rows"]}
    assert {method for method, _ in found["reconstruction"]} == {"VAE", "small decoder"}
    assert {method for method, _ in found["generation"]} == {
        "truth",
        "VAE",
        "student",
        f"student, {other}",
        "small decoder",
    }
    notes = [found["generation"][name, "decoding of 5 s (s)"]["note"] for name in ("VAE", "small decoder")]
    assert notes == ["CPU, float32, one clip at a time"] * 2


@pytest.mark.parametrize("column", ["student", "teacher, guidance 2"])
def test_a_clip_does_not_depend_on_its_neighbours(run, clips, column):
    own = Family(run, CPU, ["teacher", "student"])
    sample = own.sampler({**own.teachers, **own.students}[column], own.vae)
    together = sample(clips)
    assert together.shape == (3, 17, 32, 32, 3) and together.dtype == torch.uint8
    alone = torch.cat([sample([clip]) for clip in clips])
    assert (together.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])


def test_the_precision_of_a_gpu(run, clips, monkeypatch):
    """Everything that a GPU does in bfloat16 fits together, and stays near the float32 of a CPU."""
    exact = Family(run, CPU, ["teacher", "student"])
    monkeypatch.setattr(command, "precision_of", lambda name, device: torch.bfloat16)
    rounded = Family(run, CPU, ["teacher", "student"])
    for name in ("teachers", "students"):
        near, far = (next(iter(getattr(one, name).values())) for one in (exact, rounded))
        difference = exact.sampler(near, exact.vae)(clips).int() - rounded.sampler(far, rounded.vae)(clips).int()
        assert difference.abs().float().mean() < 8


def test_the_ends_of_a_long_clip_are_those_of_the_whole(run):
    """Decoded piece by piece, with nothing kept between, for both kinds of sampler."""
    [clip] = make_clips(WORLD, "dev", 1, 65, CPU, long=True)
    own = Family(run, CPU, ["teacher", "student"])
    for method in (*own.teachers.values(), *own.students.values()):
        whole = own.decode(torch.cat(list(own.latents(method, [clip], 65)), dim=2), own.vae)
        ends = own.ends(method, [clip], 65, 20)
        assert whole.shape[1] == 65 and ends.shape[1] == 40
        assert (ends.int() - torch.cat([whole[:, :20], whole[:, -20:]], 1).int()).abs().max() <= 1


def test_a_long_clip_draws_its_first_frame_alone(clips):
    long = make_clips(WORLD, "dev", 3, 17, CPU, long=True)
    for clip, same in zip(clips, long, strict=True):
        assert same.frames.shape == (1, 32, 32, 3) and np.array_equal(same.reference, clip.reference)
        assert np.array_equal(same.tracks["mouth_open"], clip.tracks["mouth_open"])
        assert np.array_equal(same.pcm, clip.pcm) and same.prompt == clip.prompt


def test_processes_render_the_same_clips(clips, monkeypatch):
    monkeypatch.setattr(evaluation_clips, "GROUP", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    shared = make_clips(WORLD, "dev", 3, 17, CPU, workers=2)
    assert [clip.index for clip in shared] == [0, 1, 2]
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(shared, clips, strict=True))


def test_conditions_are_encoded_once_for_all_methods(run, clips):
    own = Family(run, CPU, ["student"])
    assert own.conditions(clips, 6) is own.conditions(list(clips), 6)
    assert own.conditions(clips, 6) is not own.conditions(clips, 9)


def test_a_missing_second_engine_is_said_in_one_line(run, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("livetalk.data.world.speech.which", lambda name: None)
    world = replace(WORLD, second_engine="flite")
    with caplog.at_level(logging.WARNING):
        assert not has_voice(world, VOICE2) and has_voice(world, "test")
    assert len(caplog.messages) == 1 and "apt-get install flite" in caplog.text
    with pytest.raises(ValueError, match="apt-get install flite"):
        require_voice(world, VOICE2)
    evaluate_family(replace(run, methods=("student",), clips=2, voice2=2, world=world, output=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"generation", "reconstruction"}


def test_long_clips_of_what_is_not_measured_are_left_out(run, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        evaluate_family(replace(run, methods=("teacher",), clips=2, long_seconds=20, output=str(tmp_path)))
    assert "no long clips: none of long_methods=[student]" in caplog.text


def test_what_is_slow_is_timed_once(run, monkeypatch):
    bench, done = Bench(run, CPU, ["student"]), []
    assert bench._median(lambda: done.append(1)) >= 0 and len(done) == 3
    monkeypatch.setattr(command, "SLOW_SECONDS", 0)
    assert bench._median(lambda: done.append(1)) >= 0 and len(done) == 4


def test_the_debug_run_makes_its_family_and_no_other(tmp_path, monkeypatch):
    """By the debug runs of all stages, student included."""
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(command, "train_dmd", asked.append)
    debug = load(CONFIGS / "evaluate_debug.yaml", ["device=cpu"])
    # The stand-in makes nothing, so that what follows it is a user's mistake again.
    with pytest.raises(ValueError, match="no weights for vae, audio, text, teacher, judges"):
        evaluate_family(debug)
    assert (asked[0].family, asked[0].device) == (debug.family, "cpu")
    for other in (replace(debug, family="runs/mine"), load(CONFIGS / "evaluate.yaml", ["family=none", "device=cpu"])):
        with pytest.raises(ValueError, match="no weights for"):
            evaluate_family(other)
    assert len(asked) == 1


def test_a_dry_run_of_the_debug_run_needs_no_weights(tmp_path, monkeypatch, capsys):
    """It plans with the sizes that the debug runs of all stages give their parts."""
    monkeypatch.chdir(tmp_path)
    debug = load(CONFIGS / "evaluate_debug.yaml", ["device=cpu"])
    evaluate_family(debug, dry_run=True)
    shown = capsys.readouterr().out
    parts = ("vae", "small_decoder", "audio", "text", "teacher", "student", "student_ode", "judges")
    assert all(f"\n{name} " in shown for name in parts) and "total memory: " in shown.splitlines()[-1]
    evaluate_family(replace(debug, methods=("student",)), dry_run=True)
    assert "teacher" not in capsys.readouterr().out and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no weights for"):
        evaluate_family(replace(debug, family="runs/mine"), dry_run=True)


def test_text_may_have_another_scale(run):
    family = Family(replace(run, scales=(1.5, 2.5), text_scales=(1.5, 1.0)), CPU, ["teacher"])
    found = {name: (one.settings.text_scale, one.settings.audio_scale) for name, one in family.teachers.items()}
    assert found == {"teacher, guidance 1.5": (1.5, 1.5), "teacher, guidance 1 on text and 2.5 on sound": (1.0, 2.5)}


def test_the_teacher_is_guided_as_the_run_says(run):
    told = {"steps": 3, "order": 2, "prefix": 2, "negative_prompt": "dull", "parallel": 0.25, "skip": SkipLayer(0.6, 1)}
    family = Family(replace(run, scales=(2.0,), text_scales=(1.25,), **told), CPU, ["teacher"])
    ((name, teacher),) = family.teachers.items()
    wanted = "guidance 1.25 on text and 2 on sound, 0.25 of its parallel part, layer 1 skipped 0.6"
    assert name == f"teacher, {wanted}" and teacher.settings == TeacherSampling(
        text_scale=1.25, audio_scale=2.0, **told
    )


def test_a_dry_run_counts_students_and_caches(run, capsys):
    evaluate_family(replace(run, long_seconds=20), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    names = {line[:40].strip() for line in lines}
    assert {"teacher", "student", "student_ode", "key-value cache", "ends of long clips"} <= names
    assert lines[-1].startswith("total memory: ")


MISTAKES = {
    "methods=[techer]": "methods: 'techer' is not known: use some of teacher, student, student_ode",
    "long_methods=[vae]": "long_methods: 'vae'",
    "scales=[]": "scales=[]",
    "text_scales=[1.0,2.0,3.0]": "text_scales=[1.0, 2.0, 3.0]: give one for each of scales=",
    "long_seconds=5": "give 0, or 20 or more",
    "clips=1": "clips=1: give 2 or more",
    "voice2=1": "voice2=1",
    "world.size=32": "world.size=32 and geometry.width=64",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes(word):
    with pytest.raises(ValueError, match=r".*") as caught:
        evaluate_family(load(CONFIGS / "evaluate_debug.yaml", [word]))
    assert MISTAKES[word] in str(caught.value)
