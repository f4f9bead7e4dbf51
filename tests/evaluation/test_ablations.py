"""What a choice is worth (livetalk/evaluation/ablations.py): intervals, outcomes, tables, on results made by hand."""

import math

import numpy as np
import pytest

from livetalk.evaluation import ablations
from livetalk.evaluation.ablations import (
    CLAIMS,
    FAILS,
    FIGURES,
    HOLDS,
    LONG_CLAIMS,
    LONG_FIGURES,
    UNKNOWN,
    curves,
    figures_table,
    findings,
    long_findings,
    near,
    over_clips,
    over_seeds,
    report,
    row_at,
    write_plots,
)
from livetalk.evaluation.metrics import Estimate

TEACHER = {"A/V correlation": 0.8, "identity similarity": 1.0, "sharpness": 400.0, "flicker": 2.0, "black frames": 0.0}
CLIPS = 32


def result(variant="baseline", seed=0, correlation=0.7, **others):
    """A run of two checkpoints, the first the best; clips spread by 0.1 around the correlation, the same for all."""
    row = {"step": 4, "updates": 2, "motion": 1.1, **TEACHER, "A/V correlation": correlation, **others}
    noise = np.random.default_rng(0).normal(0, 0.1, CLIPS)
    clips = {name: list(value + 0 * noise) for name, value in row.items()}
    clips["A/V correlation"] = list(correlation + noise - noise.mean())
    last = {**row, "step": 8, "updates": 4, "A/V correlation": correlation - 0.1}
    return {
        "variant": variant,
        "seed": seed,
        "teacher": TEACHER,
        "start": {**row, "A/V correlation": 0.5},
        "history": [row, last],
        "best step": 4,
        "healthy": True,
        "clips": {"best": clips},
        "stopped": "",
        "seconds": 3.0,
    }


def decided(results, variant="plain", figure="A/V correlation", at="best"):
    [found] = [one for one in findings(results) if (one.variant, one.figure, one.at) == (variant, figure, at)]
    return found


def test_seeds_decide_by_their_pooled_spread():
    found = over_seeds([1.0, 3.0], [0.0, 2.0])
    assert found.value == pytest.approx(1) and found.high - found.value == pytest.approx(4.303 * math.sqrt(2))
    many = over_seeds([1.0, 3.0] * 20, [0.0, 2.0] * 20)
    assert 0 < many.low < many.high

    def of(baseline, plain):
        both = [result(seed=i, correlation=value) for i, value in enumerate(baseline)]
        return decided(both + [result("plain", i, value) for i, value in enumerate(plain)])

    assert of([0.70, 0.71], [0.60, 0.61]).outcome == HOLDS
    assert of([0.60, 0.61], [0.70, 0.71]).outcome == FAILS
    assert of([0.70, 0.7001], [0.70, 0.7001]).outcome == FAILS, "an advantage worth having is excluded"
    assert of([0.60, 0.80], [0.61, 0.79]).outcome == UNKNOWN
    assert of([0.70, 0.71], [0.60, 0.61]).basis == "2 and 2 seeds"


def test_one_seed_is_told_only_where_clips_in_pairs_are():
    one = decided([result(correlation=0.7), result("plain", correlation=0.65)])
    assert one.outcome == HOLDS and one.basis == f"{CLIPS} clips, one seed"
    assert decided([result(), result("plain")]).outcome == UNKNOWN, "no difference at all"
    assert decided([result(correlation=0.65), result("plain", correlation=0.7)]).outcome == FAILS
    assert decided([result(), result("plain", correlation=0.6)], at="last").outcome == UNKNOWN, "no clips are kept"
    assert decided([result(seed=0), result("plain", seed=1, correlation=0.6)]).outcome == UNKNOWN, "other seeds"
    noisy, other = (np.random.default_rng(i).normal(0, 1, CLIPS) for i in (0, 1))
    found = over_clips(noisy, other, float)
    assert found.low < 0 < found.high
    assert math.isnan(over_clips(noisy[:7], other[:7], float).low), "too few"
    holes = np.where(np.arange(CLIPS) < 4, np.nan, noisy)
    assert over_clips(holes, holes - 1, float).low == pytest.approx(1)


def test_what_is_better_depends_on_the_figure():
    assert near(440, 400) == pytest.approx(-0.1) == near(360, 400)
    both = [result(seed=i, sharpness=390.0 + i) for i in (0, 1)]
    both += [result("plain", i, sharpness=500.0 + i, flicker=2.0, **{"black frames": 0.5}) for i in (0, 1)]
    assert decided(both, figure="sharpness").outcome == HOLDS, "beyond the teacher's is no better than short of it"
    assert decided(both, figure="black frames").outcome == HOLDS
    assert decided(both, figure="motion").advantage == Estimate(0, 0, 0, 4)


def test_a_run_that_stopped_before_its_first_checkpoint_is_no_figure_and_no_crash():
    dead = {**result("plain"), "history": [], "teacher": {}, "start": {}, "best step": None, "healthy": None}
    dead |= {"clips": {}, "stopped": "step 3: not finite"}
    assert row_at(dead, "best") == row_at(dead, "last") == {}
    assert decided([result(), dead]).outcome == UNKNOWN
    text = report("A", "about", [dead, result()], {}, "")
    assert "| teacher |  |  | 0.800 |" in text
    assert "step 3: not finite" in text and "| plain | 1 |" in text


def test_tables_and_plots_show_means_spreads_and_every_update(tmp_path):
    both = [result(seed=i, correlation=0.7 + 0.1 * i) for i in (0, 1)] + [result("spoiled")]
    assert "| baseline | 2 | 2, 2 | 0.750 ± 0.071 |" in figures_table(both, "best")
    assert "| teacher |  |  | 0.800 | 1.000 | 400.000 | 1.000 |" in figures_table(both, "last")
    found = curves(both, "baseline", "A/V correlation")
    assert list(found) == [0, 2, 4] and found[2] == pytest.approx([0.7, 0.8])
    write_plots(both, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("av_correlation.png", "sharpness.png", "motion.png", "identity_similarity.png")
    }
    text = report("Ablations", "what was run", both, {}, "")
    assert CLAIMS["spoiled"] in text and CLAIMS["plain"] not in text
    assert all(f"({path.name})" in text for path in tmp_path.iterdir())
    assert "How it is decided: The advantage" in text and "DECIDING" not in text


def test_long_clips_decide_for_one_student(tmp_path):
    rng = np.random.default_rng(0)
    steady = {figure.name: list(rng.normal(0.9, 0.01, 16)) for figure in LONG_FIGURES}
    worse = {**steady, "identity at the end": list(rng.normal(0.5, 0.01, 16))}
    estimate = {"value": 0.9, "low": 0.8, "high": None, "count": 16}
    long = {
        "anchors, relative": {"clips": steady, "figures": {"identity": estimate}},
        "no anchors, relative": {"clips": worse, "figures": {}},
    }
    found = {one.figure: one for one in long_findings(long)}
    assert found["identity at the end"].outcome == HOLDS and found["colour change"].outcome == FAILS
    assert {one.claim for one in found.values()} == {LONG_CLAIMS["no anchors, relative"]}
    text = report("A", "about", [], long, "of one student")
    assert f"- **holds**: {LONG_CLAIMS['no anchors, relative']}" in text and "of one student" in text
    assert "## Figures" not in text and ablations.long_findings({}) == []


def test_every_figure_has_a_reference():
    for figure in FIGURES:
        assert not math.isnan(figure.reference(TEACHER))
