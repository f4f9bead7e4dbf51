"""The ablations as a user runs them, on a tiny family of random weights: every variant, what is shared, going on."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from livetalk import config
from livetalk.cli import CONFIGS, run_command
from livetalk.commands import ablate as command
from livetalk.commands.ablate import CACHES, KEYS, SHARED, Ablation, ablate, lay_family, updates
from livetalk.config import OdeRun
from livetalk.data import encoded, pairs
from livetalk.evaluation.ablations import ABLATIONS, LONG_BASELINE, LONG_CLAIMS
from livetalk.evaluation.judges import Judges, JudgesConfig, save_judges
from livetalk.flow import PLAIN, SkipLayer
from livetalk.training.dmd import STUDENT, DmdConfig, DmdObjective
from livetalk.training.trainer import Trainer

DEBUG = CONFIGS / "ablate_debug.yaml"


@pytest.fixture(scope="module")
def family(tiny_family, tmp_path_factory) -> Path:
    """The tiny family with judges, its student said to be of train_ode."""
    folder = tmp_path_factory.mktemp("judged") / "family"
    shutil.copytree(tiny_family, folder)
    (folder / "student/card.json").write_text(json.dumps({"settings": {"run": OdeRun().run}, "steps": 7}))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_judges(Judges(JudgesConfig(size=64, face_widths=(4,) * 5, identity_widths=(4,) * 5)), folder / "judges")
    return folder


@pytest.fixture
def run(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return config.load(DEBUG, [f"family={family}", "device=cpu", "name=a", "output=out"])


def known() -> dict:
    return json.loads(Path("runs/a/ablations.json").read_text())


def done() -> list[tuple[str, int]]:
    return [(one["variant"], one["seed"]) for one in known()["results"]]


def test_every_variant_is_run_from_what_it_says_and_only_once(run, family, capsys):
    before = {path: path.read_bytes() for path in family.rglob("*") if path.is_file()}
    whole = replace(run, variants=ABLATIONS, short_ode=1, only="runs")
    ablate(whole)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == ["nothing is left", "out"] and sum(line.startswith("- **cannot") for line in shown) == 3
    assert sorted(done()) == sorted((name, 0) for name in ABLATIONS)
    assert {path: path.read_bytes() for path in family.rglob("*") if path.is_file()} == before, "nothing is changed"
    for one in known()["results"]:
        assert [(row["step"], row["updates"]) for row in one["history"]] == [(1, 0), (2, 1)]
        assert one["best step"] in (1, 2) and len(one["clips"]["last"]["A/V correlation"]) == 2
        assert one["teacher"]["sharpness"] > 0 and "motion" in one["start"] and one["stopped"] == ""
    assert {"out/report.md", "out/av_correlation.png"} <= {str(path) for path in Path("out").iterdir()}
    text = Path("out/report.md").read_text()
    assert "ode-short: 1 steps" in text and "ode-converged: 7 steps" in text

    started = {name: Path(f"runs/a/{name}-seed0/family/student_ode") for name in ABLATIONS}
    starts = {name: load_file(next(part.glob("*.safetensors"))) for name, part in started.items()}
    own = load_file(next((family / "student").glob("*.safetensors")))
    for name, start in starts.items():
        assert all(torch.equal(start[key], own[key]) for key in own) == (name != "short_ode")
    clean, spoiled = (Path(f"runs/a/{name}pairs") for name in ("", "spoiled/"))
    assert json.loads((spoiled / "train/index.json").read_text())["settings"]["spoiled"] == 0.5
    assert (spoiled / "dev/index.json").read_bytes() == (clean / "dev/index.json").read_bytes()
    assert pairs.complete(spoiled / "train") and pairs.complete(spoiled / "dev")
    assert not list(Path("runs").rglob("*.partial"))
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Trainer], "a finished run leaves no trainer behind"

    times = {path: path.stat().st_mtime_ns for path in Path("runs/a").glob("*-seed0/result.json")}
    ablate(whole)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    with pytest.raises(ValueError, match=r"baseline, seed 0, made with other settings \(train.steps\): give another"):
        ablate(replace(whole, steps=4))
    kept = Path("runs/a/ablations.json").read_text()
    shutil.rmtree("runs/a")
    Path("runs/a").mkdir()
    Path("runs/a/ablations.json").write_text(kept)
    capsys.readouterr()
    ablate(whole)
    assert capsys.readouterr().out.splitlines()[-2] == "nothing is left", "that file alone is enough to go on"


def test_variants_differ_in_what_they_are_named_for(run):
    whole = Ablation(replace(run, plain_scale=1.0, plain_rates=0.5))
    whole.dmd = replace(whole.dmd, dmd=replace(whole.dmd.dmd, parallel=0.0, skip=SkipLayer(0.6, 1)))
    base, short, plain, spoiled = (whole.dmd_run(name, 3) for name in ABLATIONS)
    assert replace(short, name="one", family="") == replace(base, name="one", family="")
    assert replace(spoiled, name="one", family="", pairs="") == replace(base, name="one", family="", pairs="")
    assert spoiled.pairs == "runs/a/spoiled/pairs" and base.pairs == "runs/a/pairs"
    assert plain.dmd.guidance == PLAIN != base.dmd.guidance
    assert (plain.train.lr, plain.critic.lr) == (base.train.lr / 2, base.critic.lr / 2)
    assert base.train.seed == 3 and base.train.steps == run.steps and base.health.patience == 0
    assert len({one.family for one in (base, short, plain, spoiled)}) == 4


@pytest.mark.parametrize(
    "text, sound, said", [(2.5, 2.5, "guidance 2.5,"), (1.25, 2, "guidance 1.25 on text and 2 on sound,")]
)
def test_the_report_says_how_strong_guidance_was(run, text, sound, said):
    whole = Ablation(run)
    whole.dmd = replace(whole.dmd, dmd=replace(whole.dmd.dmd, text_scale=text, audio_scale=sound))
    assert f"baseline: {said}" in whole.about({"students": {}})
    stored = {"dmd.text_scale": 1.25, "dmd.audio_scale": 1.75, "train.lr": 3e-5, "critic.lr": 3e-5}
    content = {"students": {}, "results": [{"variant": "baseline", "settings": stored}]}
    assert "baseline: guidance 1.25 on text and 1.75 on sound, rates 3e-05" in whole.about(content)


def test_work_is_shared_cut_off_by_the_clock_and_reported_together(run, tmp_path, capsys, monkeypatch):
    many = replace(run, seeds=(0, 1), only="runs")
    parts = [Ablation(replace(many, part=part, parts=3)).mine() for part in range(3)]
    assert sorted(sum(parts, [])) == sorted(Ablation(many).all()) and [len(part) for part in parts] == [2, 1, 1]
    assert Ablation(many).all()[:2] == [("baseline", 0), ("spoiled", 0)], "a seed of every variant comes first"
    ablate(replace(many, seconds=1e-6))
    assert capsys.readouterr().out.splitlines()[-2].startswith("left: baseline seed 0, spoiled seed 0, baseline seed 1")

    def pretend(self, variant, seed, student):
        assert student.is_dir() and pairs.complete(self.folder / "pairs/train")
        made.append((variant, seed))

    made: list[tuple[str, int]] = []
    monkeypatch.setattr(Ablation, "measure", pretend)
    ablate(replace(many, part=1, parts=3))
    assert made == parts[1]
    other = {"results": [{"variant": "baseline", "seed": 5}], "long": {}, "students": {}}
    Path("other.json").write_text(json.dumps(other))
    whole = Ablation(replace(many, results=("other.json",)))
    assert [one["seed"] for one in whole.known()["results"]] == [5]
    with pytest.raises(ValueError, match="none.json not found"):
        Ablation(replace(many, results=("none.json",))).known()


def test_a_run_that_diverges_is_a_result(run, monkeypatch, capsys):
    def diverge(settings):
        raise FloatingPointError("step 3: {'loss': nan} is not finite")

    monkeypatch.setattr(command, "train_dmd", diverge)
    ablate(replace(run, variants=("baseline",), only="runs"))
    [one] = known()["results"]
    assert one["stopped"] == "step 3: not finite" and one["history"] == []
    assert capsys.readouterr().out.splitlines()[-2] == "nothing is left"
    assert "step 3: not finite" in Path("out/report.md").read_text()


def test_the_caches_alone_need_no_training(run, capsys, monkeypatch):
    ablate(replace(run, only="long"))
    assert capsys.readouterr().out.splitlines()[-2] == "nothing is left"
    long = known()["long"]
    assert list(long) == list(CACHES) and known()["results"] == [] and not list(Path("runs/a").glob("*-seed*"))
    assert {LONG_BASELINE, *LONG_CLAIMS} == set(CACHES)
    read = {name: one["figures"]["identity, last 10 s / first"]["value"] for name, one in long.items()}
    assert len(set(read.values())) == 4, "every cache makes a clip of its own"
    monkeypatch.setattr(command, "Bench", None)
    ablate(replace(run, only="long"))
    with pytest.raises(ValueError, match=r"anchors, relative, on long clips, made with other settings \(long_clips\)"):
        ablate(replace(run, only="long", long_clips=2))
    assert "## Long clips" in Path("out/report.md").read_text()
    assert Ablation(replace(run, long_seconds=0, only="long")).left() == []
    assert not Ablation(replace(run, part=1, parts=2)).follows(), "one process is enough"


def test_a_family_without_a_student_lends_its_parts_to_the_one_that_is_trained(run, family, tmp_path, monkeypatch):
    alone = tmp_path / "family"
    shutil.copytree(family, alone, ignore=shutil.ignore_patterns("student*"))
    followed = Ablation(replace(run, family=str(alone), only="long")).followed()
    assert followed == "runs/a/ode-converged/family"
    assert {path.name for path in Path(followed).iterdir()} == {*SHARED, "student"}
    assert {path.name for path in alone.iterdir()} == set(SHARED)


def test_the_students_updates_are_counted_as_it_learns():
    for every, first in ((4, 40), (5, 0), (2, 3), (1, 1)):
        told = DmdObjective.__new__(DmdObjective)
        told.config = DmdConfig(every=every, critic_first=first)
        count = 0
        for step in range(60):
            assert updates(told.config, step) == count
            count += STUDENT in told.turns(step)


def test_a_family_is_laid_of_links_which_are_mended(tmp_path):
    (tmp_path / "one/vae").mkdir(parents=True)
    (tmp_path / "two/vae").mkdir(parents=True)
    for source in ("one", "two"):
        lay_family(tmp_path / source, tmp_path / "made", ("vae", "judges", "vae"))
        assert (tmp_path / "made/vae").resolve() == tmp_path / source / "vae"
    assert not (tmp_path / "made/judges").exists()


MISTAKES = {
    "variants=[plane]": "variants: 'plane' is not known: use some of baseline",
    "only=all": "only=all is not known: use one of runs, long, report",
    "part=2": "part=2 of parts=1",
    "spoiled=0": "spoiled=0.0",
    "plain_rates=0": "plain_rates=0.0",
    "steps=0": "steps=0: give 1 or more",
    "long_seconds=5": "give 0, or 20 or more",
    "dmd_config=train_ode.yaml": "is for train_ode: name one for train_dmd",
    "results=[none.json]": "none.json not found",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_line(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = ["--config", str(DEBUG), "device=cpu", "only=report"]
    assert run_command("ablate", "", ablate, [*told, word]) == 2
    line = capsys.readouterr().err
    assert line.startswith("ablate: ") and line.count("\n") == 1 and MISTAKES[word] in line


def test_help_and_a_dry_run(run, capsys, monkeypatch):
    assert run_command("ablate", "", ablate, ["--help"], help_keys=KEYS) == 0
    assert "spoiled=0.5" in capsys.readouterr().out
    ablate(run, dry_run=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("total memory: ") and not Path("runs").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="instead of torchrun"):
        ablate(run)


def test_spoiled_pairs_are_as_many_as_those_that_are_given(run, monkeypatch):
    Path("given/train").mkdir(parents=True)
    (Path("given/train") / encoded.INDEX).write_text(json.dumps({"count": 41}))
    (Path("given/dev")).mkdir()
    asked = []
    monkeypatch.setattr(command, "make_pairs", lambda *told: asked.append(told))
    Ablation(replace(run, pairs="given")).spoiled()
    [(few, _, _, splits)] = asked
    assert (few.count, few.steps, few.spoiled, few.name, splits) == (41, 4, 0.5, "a/spoiled", ["train"])
    assert Path("runs/a/spoiled/pairs/dev").is_dir()
