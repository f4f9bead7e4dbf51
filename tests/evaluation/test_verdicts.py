"""Aims and verdicts: the stated rule, and comparisons whose answer is known."""

import json
import math

import numpy as np
import pytest

from livetalk.evaluation import metrics, verdicts
from livetalk.evaluation.metrics import Estimate, plain
from livetalk.evaluation.report import Report, to_json, to_markdown
from livetalk.evaluation.verdicts import MET, NOT_MET, UNKNOWN, Aim, comparison_rows, judge


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((1.0, 0.9, 1.1), MET),
        ((1.0, 0.8, 1.1), UNKNOWN),
        ((1.3, 1.2, 1.4), NOT_MET),
        ((0.5, 0.4, 0.6), NOT_MET),
        ((1.0, math.nan, math.nan), UNKNOWN),
    ],
)
def test_an_interval_decides(interval, outcome):
    assert Aim("x", "within 15%", 0.85, 1.15).outcome(Estimate(*interval, 100)) == outcome


def test_exact_figures_count_by_their_value():
    lag = Aim("lag", "within one", -1, 1, exact=True)
    assert [lag.outcome(plain(value, 9)) for value in (-1, 0, 2, math.nan)] == [MET, MET, NOT_MET, UNKNOWN]


def test_an_inclusive_aim_wants_an_interval_that_is_narrow_enough_to_tell():
    motion = Aim("motion", "not below 0", low=0, inclusive=True)
    found = [motion.outcome(Estimate(v, v - h, v + h, 9)) for v, h in ((-0.01, 0.03), (-0.1, 0.3), (-0.1, 0.05))]
    assert found == [MET, UNKNOWN, NOT_MET]
    assert motion.outcome(Estimate(0.3, 0.1, 0.5, 9)) == MET


def report_of(shift):
    """A baseline and a method whose every clip lies `shift` from it, truth beside them."""
    rng = np.random.default_rng(0)
    report = Report("made up", 64)
    correlation = rng.uniform(0.8, 0.95, 64)
    features = {cloud: rng.normal(size=(64, *size)) for cloud, size in (("frames", (5, 6)), ("videos", (6,)))}
    for name, moved in (("truth", 0.0), ("teacher", 1.0), ("student", 1.0 + shift)):
        for measure in verdicts.PAIRED:
            report.per_clip[name, measure] = correlation + (shift if name == "student" else 0)
        for cloud, values in features.items():
            report.features[name, cloud] = values + moved
    report.add("student", "A/V correlation", metrics.mean_interval(report.per_clip["student", "A/V correlation"]))
    comparison_rows(report, "student", "teacher", draws=20)
    return report


def test_comparisons_are_paired():
    report = report_of(-0.01)
    difference = report.estimate("student", "A/V correlation, minus teacher")
    assert difference.value == pytest.approx(-0.01) and difference.high - difference.low < 1e-9
    ratio = report.estimate("student", "Frechet distance, videos / teacher")
    assert ratio.value == pytest.approx(0.99**2, rel=1e-6) and ratio.low < ratio.value < ratio.high
    far = report_of(1.0).estimate("student", "Frechet distance, frames / teacher")
    assert far.value == pytest.approx(4, rel=1e-6) and far.low > 1.15


def test_only_what_was_measured_is_judged_and_all_of_it_is_written():
    report = report_of(-0.025)
    verdicts.time_row(report, "student", "teacher", 0.5, 10.0, "CPU")
    report.verdicts = judge(report, "student", "teacher", faster=15)
    found = {verdict.measure: verdict.outcome for verdict in report.verdicts}
    assert found == {
        "A/V correlation": MET,
        "A/V correlation, minus teacher": MET,
        "identity similarity, minus teacher": NOT_MET,
        "prompt's motion found, minus teacher": NOT_MET,
        "Frechet distance, videos / teacher": MET,
        "Frechet distance, frames / teacher": MET,
        "denoising of a clip, teacher's time / own": MET,
    }
    assert [v.measure for v in judge(report, "student", None)] == ["A/V correlation"]
    assert "identity similarity, minus teacher | at least -0.02 | -0.025 [-0.025, -0.025] | not met" in to_markdown(
        report
    )
    stored = json.loads(to_json(report))["verdicts"]
    assert [row["outcome"] for row in stored] == list(found.values()) and stored[-1]["low"] is None


def test_the_baseline_is_the_teacher_of_smallest_distance():
    report = Report("scales", 8)
    assert verdicts.best_by_frechet(report, ["a", "b"]) == "a"
    for name, value in (("a", 2.0), ("b", 1.0), ("student", 0.1)):
        report.add(name, "Frechet distance, videos", plain(value, 8))
    assert verdicts.best_by_frechet(report, ["a", "b"]) == "b"


@pytest.mark.parametrize("shape", [(20, 6), (20, 3, 6)])
def test_sums_a_clip_give_the_moments_of_any_choice(shape):
    rng = np.random.default_rng(1)
    features = 5 + rng.normal(size=shape)
    index = rng.integers(0, 20, 20)
    mean, covariance = metrics.moments_of_clips(features, 0.1)(index)
    wanted = metrics.moments(features[index].reshape(-1, 6), 0.1)
    np.testing.assert_allclose(mean, wanted[0], atol=1e-12)
    np.testing.assert_allclose(covariance, wanted[1], atol=1e-12)
    with pytest.raises(ValueError, match="the same clips"):
        metrics.frechet_ratio(features, features[:9], features)
