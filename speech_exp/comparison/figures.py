"""Choose and draw the figures of a comparison: one set for each score that runs are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from speech_exp.comparison import charts, curve_charts, measures
from speech_exp.comparison.estimates import by_seed, by_speaker, mean
from speech_exp.comparison.grouping import Group
from speech_exp.comparison.pareto import BYTES, LATENCY, TRAINING, Point, comparison_front, pareto_front
from speech_exp.comparison.score import SCORES, Score, score_of
from speech_exp.runs.reading import Run

PREFIXES = {"accuracy": "comparison", "wer": "comparison_wer"}
FIRST = {"accuracy": "comparison_accuracy.png", "wer": "comparison_wer.png"}
KINDS = ("per_class", "curves", "bytes", "latency", "training")
FIGURES = (*FIRST.values(), *(f"{prefix}_{kind}.png" for prefix in PREFIXES.values() for kind in KINDS))
REPLACED_FIGURES = ("comparison_size.png",)  # written by earlier versions


def draw(groups: Sequence[Group], out: Path) -> tuple[list[Path], list[str]]:
    """Draw the figures that the runs have data for; return their paths, and notes on missing ones and the Pareto front.

    Figures of an earlier comparison are deleted first: a report must not link to a stale figure.
    """
    for name in (*FIGURES, *REPLACED_FIGURES):
        for path in (out / name, (out / name).with_suffix(".svg")):
            path.unlink(missing_ok=True)
    paths: list[Path] = []
    notes: list[str] = []
    for score in SCORES:
        judged = [group for group in groups if all(score_of(run) is score for run in group.runs)]
        if judged:
            paths += _draw_scores(judged, score, out)
            front_paths, front_notes = _draw_fronts(judged, score, out)
            paths, notes = [*paths, *front_paths], [*notes, *front_notes]
    return paths, notes


def _draw_scores(groups: Sequence[Group], score: Score, out: Path) -> list[Path]:
    prefix = PREFIXES[score.key]
    seeds = {group.label: _by_seed(group, score.of) for group in groups}
    means = {group.label: _mean(group, score) for group in groups}
    worst = {group.label: _worst(group, score) for group in groups if len(group.speakers) > 1}
    names = {group.label: (group.model, group.setting) for group in groups}
    paths = [charts.comparison_scores(seeds, means, worst, names, score, out / FIRST[score.key])]
    classes = {group.label: _f1(group) for group in groups}
    if any(classes.values()):
        paths.append(charts.comparison_per_class(classes, out / f"{prefix}_per_class.png"))
    curves = {group.label: _curves(group, score) for group in groups}
    if any(curves.values()):
        paths.append(curve_charts.comparison_curves(curves, names, score, out / f"{prefix}_curves.png"))
    return paths


def _draw_fronts(groups: Sequence[Group], score: Score, out: Path) -> tuple[list[Path], list[str]]:
    paths, notes = [], []
    for name, cost, of, devices in (
        ("bytes", BYTES, measures.stored_bytes, None),
        ("latency", LATENCY, measures.latency, measures.latency_devices),
        ("training", TRAINING, measures.train_seconds, measures.training_devices),
    ):
        shown = [group for group in groups if cost is not LATENCY or not any(map(measures.emulated, group.runs))]
        if left_out := [group.label for group in groups if group not in shown]:
            notes.append(
                f"Left out of the figure over {cost.title}, because they are {measures.EMULATED}: {', '.join(left_out)}."
            )
        if not shown:
            continue
        measured_on = sorted({device for group in shown for device in devices(group)}) if devices else []
        points = _points(shown, score, of)
        if len(measured_on) > 1:
            notes.append(
                f"No figure over {cost.title}, because the runs used different devices: {', '.join(measured_on)}."
            )
        elif points is None:
            notes.append(f"No figure over {cost.title}, because not every run has a value above 0.")
        else:
            paths.append(comparison_front(points, cost, score, out / f"{PREFIXES[score.key]}_{name}.png"))
            notes += _front_note(groups, points, score) if cost is BYTES else []
    return paths, notes


def _front_note(groups: Sequence[Group], points: Sequence[Point], score: Score) -> list[str]:
    if len(points) < 2:
        return []
    front = pareto_front(points, score)
    listed = ", ".join(f"{groups[at].label} ({points[at].cost:,.0f} bytes)" for at in front)
    return [f"Pareto front of {score.title} over stored bytes: {listed}."]


def _points(groups: Sequence[Group], score: Score, cost: Callable[[Run], float | None]) -> list[Point] | None:
    """Return one point per group; None if a run has no cost above 0, which a logarithmic axis cannot show."""
    points = []
    for group in groups:
        costs = [cost(run) or 0.0 for run in group.runs]
        if min(costs) <= 0:
            return None
        points.append(Point(group.model, group.setting, mean(costs), *_mean(group, score), group.label))
    return points


def _mean(group: Group, score: Score) -> charts.Mean:
    """Return the estimate that the tables show."""
    found = measures.estimate(group, measures.measure(score.key))
    assert found is not None
    return found.mean, found.low, found.high


def _by_seed(group: Group, value: Callable[[Run], float | None]) -> list[float]:
    return list(by_seed(group, partial(_present, value)).values())


def _worst(group: Group, score: Score) -> float:
    speakers = by_speaker(group, partial(_present, score.of)).values()
    return min(speakers) if score.higher_is_better else max(speakers)


def _present(value: Callable[[Run], float | None], run: Run) -> float:
    found = value(run)
    assert found is not None
    return found


def _f1(group: Group) -> dict[str, float]:
    return {name: mean(values["f1"]) for name, values in measures.per_class(group).items()}


def _curves(group: Group, score: Score) -> list[curve_charts.Curve]:
    """Return (epochs, validation scores) of each run that has a history."""
    curves: list[curve_charts.Curve] = []
    for run in group.runs:
        key = f"val_{score.key}"
        rows = [row for row in run.history if "epoch" in row and math.isfinite(row.get(key, math.nan))]
        if rows:
            curves.append(([row["epoch"] for row in rows], [row[key] for row in rows]))
    return curves
