"""What is a choice worth? Runs with it, the baseline, held against runs without: figures, intervals, outcomes, plots.

A result is one run of a variant and a seed, as commands/ablate.py keeps it in JSON: `variant`, `seed`, `teacher` and
`start` (figures of the teacher, and before training), `history` (rows with `step`, `updates`), `best step`, `healthy`,
`clips` (figures [N] of each clip at the best and at the last step), `stopped` (why it ended early, or "").

The rule. The advantage of the baseline is how much better its figure is. With two seeds or more of both, its 95%
interval comes from the pooled spread over seeds; with fewer, from the same clips in pairs (8 or more), which tells
these weights apart and says nothing of other seeds. "holds": the interval lies above 0. "does not hold": it lies below
what would be worth having (over seeds), or below 0 (over clips). Otherwise "cannot be told". A claim is decided by
DECIDING at the best checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livetalk.checks import at_least, known_name, known_part
from livetalk.evaluation.metrics import Estimate, bootstrap_interval, mean_or_nan, plain
from livetalk.evaluation.report import unique

BASELINE = "baseline"
ABLATIONS = (BASELINE, "short_ode", "plain", "spoiled")
HALVES = ("runs", "long", "report")
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
DECIDING = "A/V correlation"
CHECKPOINTS = ("best", "last")
DRAWS, FEW = 1000, 8
"""Of a bootstrap: repetitions, and clips below which their spread is not known well enough."""
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t of a 95% interval at 1, 2, ... degrees of freedom; beyond them the last, which is wider than need be."""


@dataclass(frozen=True)
class AblateRun:
    """`scripts/ablate.sh`: what choices of the recipe are worth, by DMD runs without each of them, in runs/NAME.

    variants, seeds: which of ABLATIONS to run, each with every seed; with parts > 1 the process runs every parts-th of
    them from the part-th on. seconds: nothing new is begun later than that (0: no limit). only: one of HALVES, ""
    for all. results: files ablations.json of other machines, reported together with what is here.

    Shared by all runs: the family's teacher; its ODE student (where there is none, one is trained as
    ode_config says); clean pairs, from a folder `pairs` or made as pairs_config says, count and held_out of them.
    What runs differ in: dmd_config as it stands is the baseline, for `steps` iterations, judged on `shown` clips at
    every save_every-th. short_ode: steps of the ODE initialisation of that variant; plain: guidance plain_scale, and
    rates plain_rates times those of the baseline; spoiled: share of the pairs (PairsRun).

    long_clips of long_seconds from split long_split: one student (of long_family, by default the family's) with and
    without anchors, with relative and absolute positions; batch: of them at a time.
    """

    run: str = "ablate"
    name: str = "ablation"
    family: str = "livetalk/assets/nano"
    device: str = "auto"
    variants: tuple[str, ...] = ABLATIONS
    seeds: tuple[int, ...] = (0, 1, 2)
    part: int = 0
    parts: int = 1
    seconds: float = 0.0
    only: str = ""
    results: tuple[str, ...] = ()
    pairs: str = ""
    pairs_config: str = "generate_ode_pairs.yaml"
    ode_config: str = "train_ode.yaml"
    dmd_config: str = "train_dmd.yaml"
    count: int = 1536
    held_out: int = 96
    shown: int = 96
    steps: int = 160
    save_every: int = 40
    short_ode: int = 100
    plain_scale: float = 1.0
    plain_rates: float = 0.5
    spoiled: float = 0.5
    long_family: str = ""
    long_split: str = "test"
    long_seconds: int = 180
    long_clips: int = 16
    batch: int = 32
    workers: int = 16
    output: str = "outputs/ablations"

    def __post_init__(self) -> None:
        for variant in self.variants:
            if variant not in ABLATIONS:
                raise ValueError(f"variants: {variant!r} is not known: use some of {', '.join(ABLATIONS)}")
        if self.only and self.only not in HALVES:
            raise ValueError(f"only={self.only} is not known: use one of {', '.join(HALVES)}, or leave it out for all")
        known_name(self.name)
        known_part(self.part, self.parts)
        at_least(0, self, "seeds")
        if not 0 < self.spoiled <= 1:
            raise ValueError(f"spoiled={self.spoiled}: it is a share, give a number above 0, at most 1")
        if self.plain_scale < 0 or self.plain_rates <= 0 or self.seconds < 0:
            raise ValueError(
                f"plain_scale={self.plain_scale}, plain_rates={self.plain_rates}, seconds={self.seconds}: give a scale "
                "and seconds of 0 or more, and rates above 0"
            )
        at_least(1, self, "count", "held_out", "shown", "steps", "save_every", "short_ode", "long_clips", "batch")


def higher(value: float, teacher: float) -> float:
    return value


def lower(value: float, teacher: float) -> float:
    return -value


def near(value: float, teacher: float) -> float:
    """Minus the distance from the teacher's, as a share of that."""
    return -abs(value / teacher - 1)


@dataclass(frozen=True)
class Figure:
    """A figure of a checkpoint. good: (value, the teacher's) to a number that is larger where the figure is better;
    least: the smallest advantage worth having; relative: the value is over the teacher's already."""

    name: str
    better: str
    good: Callable[[float, float], float]
    least: float
    relative: bool = False

    def reference(self, teacher: Mapping[str, float]) -> float:
        return 1.0 if self.relative else teacher.get(self.name, math.nan)


FIGURES = (
    Figure(DECIDING, "higher", higher, 0.02),
    Figure("identity similarity", "higher", higher, 0.01),
    Figure("sharpness", "near the teacher's", near, 0.05),
    Figure("motion", "near the teacher's", near, 0.05, relative=True),
    Figure("flicker", "near the teacher's", near, 0.05),
    Figure("black frames", "lower", lower, 0.01),
)
PLOTTED = (DECIDING, "sharpness", "motion", "identity similarity")
CLAIMS = {
    "short_ode": "an ODE initialisation that has converged is better than a short one",
    "plain": "strong guidance and doubled rates are better than plain ones",
    "spoiled": "curated conditions are better than spoiled ones",
}
"""What the baseline has and each variant lacks."""

Result = dict
Long = Mapping[str, Mapping[str, Mapping[str, list]]]
"""Of one student: setting of the cache: {"clips": {figure: [N]}, "figures": {measure: estimate}}."""

LONG_BASELINE = "anchors, relative"
LONG_FIGURES = (
    Figure("A/V correlation at the end", "higher", higher, 0.02),
    Figure("identity at the end", "higher", higher, 0.01),
    Figure("sharpness, end / start", "near 1", near, 0.05, relative=True),
    Figure("colour change", "lower", lower, 0.02),
)
LONG_DECIDING = "identity at the end"
LONG_CLAIMS = {
    "anchors, absolute": "positions relative to the window are better than absolute ones, with anchors",
    "no anchors, relative": "anchors are better than none, with relative positions",
    "no anchors, absolute": "anchors with relative positions are better than neither",
}


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """The baseline's advantage in one figure at one checkpoint; basis: what the interval rests on."""

    claim: str
    variant: str
    figure: str
    better: str
    at: str
    advantage: Estimate
    basis: str
    outcome: str


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Difference of the means of two groups of runs, two or more each, with the interval of their pooled spread."""
    counts = len(first), len(second)
    free = sum(counts) - 2
    pooled = sum((count - 1) * np.var(group, ddof=1) for count, group in zip(counts, (first, second), strict=True))
    half = T95[min(free, len(T95)) - 1] * math.sqrt(pooled / free * sum(1 / count for count in counts))
    value = float(np.mean(first) - np.mean(second))
    return Estimate(value, value - half, value + half, sum(counts))


def over_clips(first: np.ndarray, second: np.ndarray, good: Callable[[float], float]) -> Estimate:
    """Difference of `good` of the means over the same clips [N], drawn anew in pairs; no interval under FEW clips."""

    def difference(chosen: np.ndarray) -> float:
        return good(mean_or_nan(first[chosen])) - good(mean_or_nan(second[chosen]))

    if len(first) < FEW:
        return plain(difference(np.arange(len(first))), len(first))
    return bootstrap_interval(difference, len(first), DRAWS)


def outcome(advantage: Estimate, least: float) -> str:
    if math.isnan(advantage.low) or math.isnan(advantage.high):
        return UNKNOWN
    if advantage.low > 0:
        return HOLDS
    return FAILS if advantage.high < least else UNKNOWN


def row_at(result: Result, at: str) -> Mapping[str, float]:
    """The figures of a run at its best or last checkpoint, {} of one that stopped before the first."""
    history = result["history"]
    if not history or at == "last":
        return history[-1] if history else {}
    return next(row for row in history if row["step"] == result["best step"])


def goods(results: Sequence[Result], variant: str, figure: Figure, at: str) -> dict[int, float]:
    """By seed, how good a figure of a variant is."""
    found = {}
    for result in results:
        value = row_at(result, at).get(figure.name, math.nan)
        if result["variant"] == variant and not math.isnan(value):
            found[result["seed"]] = figure.good(value, figure.reference(result["teacher"]))
    return {seed: value for seed, value in found.items() if not math.isnan(value)}


def clip_values(results: Sequence[Result], variant: str, seeds: Sequence[int], name: str, at: str) -> np.ndarray:
    """A figure of each clip [N], the mean over seeds; [0] where a run keeps none."""
    kept = {result["seed"]: result["clips"].get(at, {}).get(name) for result in results if result["variant"] == variant}
    rows = [kept[seed] for seed in seeds]
    if not rows or None in rows or len({len(row) for row in rows}) > 1:
        return np.empty(0)
    return np.asarray(rows, dtype=np.float64).mean(0)  # None becomes nan


def advantage(results: Sequence[Result], variant: str, figure: Figure, at: str) -> tuple[Estimate, str, float]:
    """Of the baseline over a variant: the estimate, what it rests on, and the least that the rule asks for."""
    own, other = (goods(results, name, figure, at) for name in (BASELINE, variant))
    if len(own) > 1 and len(other) > 1:
        return over_seeds(list(own.values()), list(other.values())), f"{len(own)} and {len(other)} seeds", figure.least
    seeds = sorted(own.keys() & other.keys())
    first, second = (clip_values(results, name, seeds, figure.name, at) for name in (BASELINE, variant))
    if not len(first) or first.shape != second.shape:
        return plain(math.nan, 0), "not measured", 0.0
    teacher = figure.reference(next(one for one in results if one["seed"] == seeds[0])["teacher"])
    found = over_clips(first, second, lambda value: figure.good(value, teacher))
    return found, f"{len(first)} clips, {'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}", 0.0


def findings(results: Sequence[Result]) -> list[Finding]:
    """Every claim whose variant was run, in every figure, at both checkpoints."""
    there = {result["variant"] for result in results}
    found = []
    for variant, claim in CLAIMS.items():
        for figure in FIGURES if variant in there else ():
            for at in CHECKPOINTS:
                difference, basis, least = advantage(results, variant, figure, at)
                decided = outcome(difference, least)
                row = Finding(claim, variant, figure.name, figure.better, at, difference, basis, decided)
                found.append(row)
    return found


def long_findings(long: Long) -> list[Finding]:
    """The same for settings of the cache on long clips, of which there is one student: clips in pairs decide."""
    found = []
    for setting, claim in LONG_CLAIMS.items():
        for figure in LONG_FIGURES if {setting, LONG_BASELINE} <= long.keys() else ():
            first, second = (
                np.asarray(long[name]["clips"][figure.name], dtype=np.float64) for name in (LONG_BASELINE, setting)
            )
            difference = over_clips(first, second, lambda value, figure=figure: figure.good(value, 1.0))
            decided, basis = outcome(difference, figure.least), f"{len(first)} clips"
            found.append(Finding(claim, setting, figure.name, figure.better, "end", difference, basis, decided))
    return found


def headlines(found: Sequence[Finding]) -> list[str]:
    """One line a claim: what the deciding figure says, and where others say something else."""
    lines = []
    for claim in unique([one.claim for one in found]):
        own = [one for one in found if one.claim == claim and one.at in ("best", "end")]
        decided = next(one for one in own if one.figure in (DECIDING, LONG_DECIDING))
        others = [f"{one.figure} {one.outcome}" for one in own if one not in (decided,) and one.outcome != UNKNOWN]
        also = f"; by itself, {', '.join(others)}" if others else ""
        lines.append(f"- **{decided.outcome}**: {claim} ({decided.figure} {decided.advantage}, {decided.basis}{also})")
    return lines


# --- tables and plots -------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Mean and deviation over seeds, and how many there are."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def variants_of(results: Sequence[Result]) -> list[str]:
    """The baseline first."""
    return sorted(unique([result["variant"] for result in results]), key=lambda name: (name != BASELINE, name))


def teacher_of(results: Sequence[Result]) -> Mapping[str, float]:
    """The same for all that got as far as to look at it."""
    return next((result["teacher"] for result in results if result["teacher"]), {})


def figures_table(results: Sequence[Result], at: str) -> str:
    """A row a variant, mean and spread over seeds of every figure at a checkpoint; the teacher's first."""
    rows = []
    if results:
        known = [figure.reference(teacher_of(results)) for figure in FIGURES]
        rows.append(["teacher", "", "", *("" if math.isnan(value) else f"{value:.3f}" for value in known)])
    for variant in variants_of(results):
        runs = [(result, row_at(result, at)) for result in results if result["variant"] == variant]
        values = [[row[figure.name] for _, row in runs if figure.name in row] for figure in FIGURES]
        updates = [row["updates"] for _, row in runs if "updates" in row]
        rows.append([variant, str(len(runs)), ", ".join(map(str, updates)), *map(spread, values)])
    return table(["variant", "seeds", "updates", *(figure.name for figure in FIGURES)], rows)


def findings_table(found: Sequence[Finding]) -> str:
    """A row for each variant and figure."""
    rows = []
    for one in found:
        rows.append([one.variant, one.figure, one.better, one.at, str(one.advantage), one.basis, one.outcome])
    return table(["against", "figure", "better is", "at", "advantage of the baseline", "rests on", "outcome"], rows)


def runs_table(results: Sequence[Result]) -> str:
    """A row a run."""
    rows = []
    for one in sorted(results, key=lambda one: (one["variant"] != BASELINE, one["variant"], one["seed"])):
        last = row_at(one, "last").get("step", 0)
        note = one["stopped"] or ("" if one["healthy"] else "no checkpoint is healthy")
        rows.append([one["variant"], str(one["seed"]), str(one["best step"]), str(last), f"{one['seconds']:.0f}", note])
    return table(["variant", "seed", "best step", "last step", "seconds", "note"], rows)


def long_table(long: Long) -> str:
    """A row a setting of the cache: every drift measure with its interval."""
    measures = unique([name for one in long.values() for name in one["figures"]])
    rows = []
    for setting, one in long.items():
        cells = [_shown(one["figures"].get(measure)) for measure in measures]
        rows.append([setting, *cells])
    return table(["cache", *measures], rows)


def _shown(found: Mapping | None) -> str:
    if found is None or found["value"] is None:
        return ""
    known = {name: math.nan if found[name] is None else found[name] for name in ("value", "low", "high")}
    return str(Estimate(**known, count=found["count"]))


def report(title: str, about: str, results: Sequence[Result], long: Long, long_about: str) -> str:
    """Markdown: outcomes first, then what they rest on. about, long_about: a sentence each on what was run."""
    rule = " ".join((__doc__ or "").split("The rule. ")[1].split())
    found, far = findings(results), long_findings(long)
    parts = [f"# {title}", about, "## Claims", *(["\n".join(headlines([*found, *far]))] if found or far else [])]
    parts.append(f"How it is decided: {rule.replace('DECIDING', f'{DECIDING} (on long clips: {LONG_DECIDING})')}")
    if results:
        for at in CHECKPOINTS:
            parts += [f"## Figures at the {at} checkpoint", figures_table(results, at)]
        plots = [f"![{name}]({plot_name(name)})" for name in PLOTTED if _measured(results, name)]
        parts += ["Mean ± deviation over seeds.", "\n".join(plots), "## Differences", findings_table(found)]
        parts += ["## Runs", runs_table(results)]
    if long:
        parts += ["## Long clips", long_about, long_table(long), findings_table(far)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot_name(figure: str) -> str:
    return f"{figure.replace('/', '').replace(' ', '_').lower()}.png"


def _measured(results: Sequence[Result], name: str) -> bool:
    return any(name in row for result in results for row in result["history"])


def curves(results: Sequence[Result], variant: str, name: str) -> dict[int, list[float]]:
    """A figure of a variant at every number of updates, from before training on, of all seeds."""
    found: dict[int, list[float]] = {}
    for result in results:
        if result["variant"] == variant:
            for row in [{**result["start"], "updates": 0}, *result["history"]]:
                if name in row:
                    found.setdefault(row["updates"], []).append(row[name])
    return dict(sorted(found.items()))


def plot(results: Sequence[Result], figure: Figure, path: Path) -> None:
    """A figure against the student's updates: a line a variant, its mean over seeds in a band from least to most; the
    teacher's level dashed."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6, 4))
    axes = canvas.subplots()
    for variant in variants_of(results):
        found = curves(results, variant, figure.name)
        axes.plot(list(found), [np.mean(values) for values in found.values()], marker="o", markersize=3, label=variant)
        low, high = ([bound(values) for values in found.values()] for bound in (min, max))
        axes.fill_between(list(found), low, high, alpha=0.15)
    level = figure.reference(teacher_of(results))
    if not math.isnan(level):
        axes.axhline(level, color="grey", linestyle="--", linewidth=0.8, label="teacher")
    name = f"{figure.name} / teacher's" if figure.relative else figure.name
    axes.set(xlabel="updates of the student", ylabel=name)
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=100, bbox_inches="tight")


def write_plots(results: Sequence[Result], folder: Path) -> None:
    """One PNG for each of PLOTTED that was measured."""
    for figure in FIGURES:
        if figure.name in PLOTTED and _measured(results, figure.name):
            plot(results, figure, folder / plot_name(figure.name))
