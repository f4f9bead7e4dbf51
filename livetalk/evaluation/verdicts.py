"""Does one generator reach its aims beside another? Figures of a report held against stated bounds, with intervals.

The rule. "met": the whole 95% interval lies within the aim. "not met": the whole of it lies outside. "cannot be told":
it holds the bound, or it is not known; more clips may tell. Exact figures, a lag and times, have no interval and count
by their value. The prompt's motion is "met" when the interval of the difference does not exclude the baseline's and is
no wider than +-WIDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from livetalk.evaluation import metrics
from livetalk.evaluation.evaluate import drift_name
from livetalk.evaluation.metrics import Estimate
from livetalk.evaluation.report import Report, Verdict

PAIRED = ("A/V correlation", "identity similarity", "prompt's motion found")
CLOUDS = ("videos", "frames")
TIME_RATIO = "denoising of a clip, {baseline}'s time / own"
WIDE = 0.05
MET, NOT_MET, UNKNOWN = "met", "not met", "cannot be told"


@dataclass(frozen=True)
class Aim:
    """Bounds on a measure. exact: it is known without an interval; inclusive: it suffices that the interval does not
    lie beyond the bounds, if it is no wider than +-WIDE."""

    measure: str
    text: str
    low: float = -math.inf
    high: float = math.inf
    exact: bool = False
    inclusive: bool = False

    def outcome(self, found: Estimate) -> str:
        if math.isnan(found.value):
            return UNKNOWN
        if self.exact:
            return MET if self.low <= found.value <= self.high else NOT_MET
        if math.isnan(found.low) or math.isnan(found.high):
            return UNKNOWN
        if self.low <= found.low and found.high <= self.high:
            return MET
        if found.high < self.low or found.low > self.high:
            return NOT_MET
        return MET if self.inclusive and 0.5 * (found.high - found.low) <= WIDE else UNKNOWN


def minus(measure: str, baseline: str) -> str:
    return f"{measure}, minus {baseline}"


def over(cloud: str, baseline: str) -> str:
    return f"Frechet distance, {cloud} / {baseline}"


def comparison_rows(report: Report, method: str, baseline: str, draws: int) -> None:
    """Paired differences of `method` from `baseline` over the same clips, and the ratio of the Frechet distances."""
    for measure in PAIRED:
        if (method, measure) in report.per_clip:
            report.add(method, minus(measure, baseline), report.compare(method, baseline, measure))
    for cloud in CLOUDS:
        mine, theirs, truth = (report.features[name, cloud] for name in (method, baseline, "truth"))
        if len(mine) >= 4:
            report.add(method, over(cloud, baseline), metrics.frechet_ratio(mine, theirs, truth, draws))


def best_by_frechet(report: Report, methods: list[str]) -> str:
    """The method of smallest Frechet distance of videos; the first where there are too few clips for one."""
    measured = {row.method: row.estimate.value for row in report.rows if row.measure == "Frechet distance, videos"}
    return min(methods, key=lambda name: measured.get(name, math.inf))


def aims(baseline: str | None, faster: float | None, seconds: float) -> list[Aim]:
    """The aims of a student, those relative to a baseline where there is one. faster: how many times the baseline's
    speed it must reach, None for no such aim; seconds: of the ends of long clips."""
    within = "within 15% of truth"
    found = [
        Aim("A/V correlation", "at least 0.8", low=0.8),
        Aim("A/V lag (frames)", "within one frame", -1, 1, exact=True),
        *(Aim(f"variance of {name} / truth", within, 0.85, 1.15) for name in ("pitch", "yaw", "roll")),
        Aim("blink rate / truth", within, 0.85, 1.15),
        *(
            Aim(drift_name(name, seconds), "within 10%", 0.9, 1.1)
            for name in ("A/V correlation", "identity", "sharpness")
        ),
        Aim(drift_name("colour change", seconds), "within 10%", high=0.1),
    ]
    if baseline is None:
        return found
    correlation, identity, motion = (minus(measure, baseline) for measure in PAIRED)
    found += [
        Aim(correlation, "at least -0.03", low=-0.03),
        Aim(identity, "at least -0.02", low=-0.02),
        Aim(motion, f"not below 0, told to +-{WIDE}", low=0, inclusive=True),
        *(Aim(over(cloud, baseline), "at most 1.15", high=1.15) for cloud in CLOUDS),
    ]
    if faster is not None:
        found.append(Aim(TIME_RATIO.format(baseline=baseline), f"at least {faster:g}", low=faster, exact=True))
    return found


def judge(
    report: Report, method: str, baseline: str | None, faster: float | None = None, seconds: float = 10.0
) -> list[Verdict]:
    """Verdicts on every aim whose measure is in the report for `method`; see `aims`."""
    measured = {row.measure: row.estimate for row in report.rows if row.method == method}
    return [
        Verdict(method, aim.measure, aim.text, measured[aim.measure], aim.outcome(measured[aim.measure]))
        for aim in aims(baseline, faster, seconds)
        if aim.measure in measured
    ]


def time_row(report: Report, method: str, baseline: str, own: float, theirs: float, note: str) -> None:
    """How many times as long the baseline takes for the same clip."""
    report.add(method, TIME_RATIO.format(baseline=baseline), metrics.plain(theirs / own, 1), note)
