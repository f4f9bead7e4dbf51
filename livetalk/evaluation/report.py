"""A report: rows of (method, measure, figure with interval), rendered as Markdown, JSON, plots and contact sheets."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livetalk.evaluation.metrics import Estimate, paired_difference


@dataclass(frozen=True)
class Row:
    """One figure of one method."""

    method: str
    measure: str
    estimate: Estimate
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a figure of a method reaches an aim: outcome "met", "not met" or "cannot be told"."""

    method: str
    measure: str
    aim: str
    estimate: Estimate
    outcome: str


@dataclass
class Report:
    """Rows in the order they were measured, and what plots and comparisons need besides.

    per_clip[(method, measure)] holds values [N] of the same N clips for every method; by_lag[method] the mean A/V
    correlation at every lag; sheets[method] a few clips uint8 [n, T, H, W, 3]; features[(method, "frames" or
    "videos")] those of the Frechet distances [N, n, D] or [N, D]. verdicts: on aims, see verdicts.py.
    """

    title: str
    clips: int
    rows: list[Row] = field(default_factory=list)
    per_clip: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    by_lag: dict[str, dict[int, float]] = field(default_factory=dict)
    sheets: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, method: str, measure: str, estimate: Estimate, note: str = "") -> None:
        self.rows.append(Row(method, measure, estimate, note))

    def estimate(self, method: str, measure: str) -> Estimate:
        """The figure of a method. Raises ValueError naming what there is."""
        for row in self.rows:
            if (row.method, row.measure) == (method, measure):
                return row.estimate
        known = sorted({f"{row.method} / {row.measure}" for row in self.rows})
        raise ValueError(f"no figure {method} / {measure} in this report; it holds {known}")

    def value(self, method: str, measure: str) -> float:
        return self.estimate(method, measure).value

    def compare(self, first: str, second: str, measure: str) -> Estimate:
        """Paired difference first - second over the same clips, for a measure kept per clip."""
        for method in (first, second):
            if (method, measure) not in self.per_clip:
                raise ValueError(f"{measure} of {method} is not kept per clip: {sorted(self.per_clip)}")
        return paired_difference(self.per_clip[first, measure], self.per_clip[second, measure])


def unique(names: list[str]) -> list[str]:
    """Names in order, each once."""
    return list(dict.fromkeys(names))


def main_table(report: Report, methods: list[str] | None = None, measures: list[str] | None = None) -> str:
    """Markdown table with a column a method and a row a measure; empty where a method lacks the measure."""
    methods = unique([row.method for row in report.rows]) if methods is None else methods
    measures = unique([row.measure for row in report.rows]) if measures is None else measures
    cells = {(row.method, row.measure): str(row.estimate) for row in report.rows}
    lines = ["| measure | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for measure in measures:
        lines.append(f"| {measure} | " + " | ".join(cells.get((method, measure), "") for method in methods) + " |")
    return "\n".join(lines)


def verdict_table(verdicts: list[Verdict]) -> str:
    """Markdown table of aims, the figures held against them, and the outcomes."""
    lines = ["| aim of | measure | aim | found | outcome |", "|---|---|---|---|---|"]
    lines += [f"| {v.method} | {v.measure} | {v.aim} | {v.estimate} | {v.outcome} |" for v in verdicts]
    return "\n".join(lines)


def errors_table(errors: dict[str, float]) -> str:
    """Markdown of a flat table of judges' errors, {"track/measure": value}."""
    lines = ["| judge | measure | value |", "|---|---|---|"]
    for key, value in errors.items():
        judge, measure = key.split("/", 1)
        lines.append(f"| {judge} | {measure} | {value:.4g} |")
    return "\n".join(lines)


def to_markdown(report: Report) -> str:
    """Title, number of clips, main table, notes."""
    notes = unique([f"- {row.method}, {row.measure}: {row.note}" for row in report.rows if row.note])
    text = f"# {report.title}\n\n{report.clips} clips; brackets are 95% intervals.\n\n{main_table(report)}\n"
    text += "\n" + verdict_table(report.verdicts) + "\n" if report.verdicts else ""
    return text + ("\n" + "\n".join(notes) + "\n" if notes else "")


def finite(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value


def figures(estimate: Estimate) -> dict[str, float | None]:
    """An estimate for JSON."""
    named = {name: finite(getattr(estimate, name)) for name in ("value", "low", "high")}
    return {**named, "count": estimate.count}


def to_json(report: Report) -> str:
    """Every row, the verdicts, and the correlation by lag, as JSON text."""
    rows = [
        {"method": row.method, "measure": row.measure, **figures(row.estimate), "note": row.note} for row in report.rows
    ]
    verdicts = [
        {"method": v.method, "measure": v.measure, "aim": v.aim, **figures(v.estimate), "outcome": v.outcome}
        for v in report.verdicts
    ]
    by_lag = {name: {str(lag): finite(value) for lag, value in curve.items()} for name, curve in report.by_lag.items()}
    content = {"title": report.title, "clips": report.clips, "rows": rows, "verdicts": verdicts, "by_lag": by_lag}
    return json.dumps(content, indent=1) + "\n"


def grid(clips: np.ndarray, columns: int) -> np.ndarray:
    """Clips uint8 [n, T, H, W, 3] -> image [n*H, columns*W, 3] of frames spread evenly over each clip."""
    steps = np.linspace(0, clips.shape[1] - 1, columns).round().astype(int)
    return np.concatenate([np.concatenate(list(clip[steps]), axis=1) for clip in clips], axis=0)


def contact_sheet(sheets: dict[str, np.ndarray], columns: int = 10, gap: int = 4) -> np.ndarray:
    """Clips of several methods, clip by clip under each other: uint8 image [H', W', 3].

    Row order within a clip is the order of `sheets` (truth first by convention); a white line parts the clips.
    """
    if len({clips.shape for clips in sheets.values()}) != 1:
        raise ValueError(f"a contact sheet needs equal clips, got { {k: v.shape for k, v in sheets.items()} }")
    bands = []
    for index in range(len(next(iter(sheets.values())))):
        bands += [grid(clips[index : index + 1], columns) for clips in sheets.values()]
        bands.append(np.full((gap, bands[0].shape[1], 3), 255, dtype=np.uint8))
    return np.concatenate(bands[:-1], axis=0)


def plot_lags(report: Report, path: Path) -> None:
    """Mean A/V correlation at every lag, a line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for name, curve in report.by_lag.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set(xlabel="lag in frames (positive: the picture is late)", ylabel="mean correlation", title=report.title)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def plot_measure(report: Report, measure: str, path: Path) -> None:
    """One measure of every method that has it, with intervals."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.measure == measure]
    if not rows:
        raise ValueError(f"no row measures {measure!r}; there are {unique([row.measure for row in report.rows])}")
    figure = Figure(figsize=(6, 0.5 * len(rows) + 1))
    axes = figure.subplots()
    values = np.asarray([row.estimate.value for row in rows])
    low = np.asarray([row.estimate.low for row in rows])
    high = np.asarray([row.estimate.high for row in rows])
    error = np.nan_to_num(np.abs(np.stack([values - low, high - values])))
    axes.errorbar(values, np.arange(len(rows)), xerr=error, fmt="o", capsize=3)
    axes.set(yticks=np.arange(len(rows)), yticklabels=[row.method for row in rows], xlabel=measure)
    axes.invert_yaxis()
    figure.savefig(path, dpi=100, bbox_inches="tight")


def write_report(report: Report, folder: str | Path) -> Path:
    """Writes report.md, report.json, and, where there is something to show, lags.png and contact_sheet.png.

    Returns the path of report.md.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(to_json(report))
    if report.by_lag:
        plot_lags(report, folder / "lags.png")
    if report.sheets:
        from PIL import Image

        Image.fromarray(contact_sheet(report.sheets)).save(folder / "contact_sheet.png")
    path = folder / "report.md"
    path.write_text(to_markdown(report))
    return path
