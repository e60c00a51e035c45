"""Which figures a comparison has, made of the runs' numbers: one set for each score that the runs are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from speech_exp.reporting import measures
from speech_exp.reporting.estimates import by_seed, by_speaker, mean, student_interval
from speech_exp.reporting.figures import comparing
from speech_exp.reporting.figures.pareto import BYTES, LATENCY, TRAINING, Point, comparison_front, pareto_front
from speech_exp.reporting.grouping import Group
from speech_exp.reporting.runs import Run
from speech_exp.reporting.score import SCORES, Score, score_of

PREFIXES = {"accuracy": "comparison", "wer": "comparison_wer"}
FIRST = {"accuracy": "comparison_accuracy.png", "wer": "comparison_wer.png"}
KINDS = ("per_class", "curves", "bytes", "latency", "training")
FIGURES = (*FIRST.values(), *(f"{prefix}_{kind}.png" for prefix in PREFIXES.values() for kind in KINDS))
REPLACED_FIGURES = ("comparison_size.png",)  # of earlier versions


def draw(groups: Sequence[Group], out: Path) -> tuple[list[Path], list[str]]:
    """The figures that the runs have data for, and notes on those that they have not and on the Pareto front.

    Earlier ones go first: a report never links to a figure that is left from another comparison.
    """
    for name in (*FIGURES, *REPLACED_FIGURES):
        (out / name).unlink(missing_ok=True)
    paths: list[Path] = []
    notes: list[str] = []
    for score in SCORES:
        judged = [group for group in groups if all(score_of(run) is score for run in group.runs)]
        if judged:
            paths += _draw_scores(judged, score, out)
            drawn, told = _draw_fronts(judged, score, out)
            paths, notes = [*paths, *drawn], [*notes, *told]
    return paths, notes


def _draw_scores(groups: Sequence[Group], score: Score, out: Path) -> list[Path]:
    prefix = PREFIXES[score.key]
    seeds = {group.label: _by_seed(group, score.of) for group in groups}
    estimates = {label: student_interval(values) for label, values in seeds.items()}
    means = {label: (found.mean, found.half_width) for label, found in estimates.items()}
    worst = {group.label: _worst(group, score) for group in groups if len(group.speakers) > 1}
    paths = [comparing.comparison_scores(seeds, means, score, out / FIRST[score.key], worst)]
    classes = {group.label: _f1(group) for group in groups}
    if any(classes.values()):
        paths.append(comparing.comparison_per_class(classes, out / f"{prefix}_per_class.png"))
    curves = {group.label: _curves(group, score) for group in groups}
    if any(curves.values()):
        names = {group.label: (group.model, group.setting) for group in groups}
        paths.append(comparing.comparison_curves(curves, names, score, out / f"{prefix}_curves.png"))
    return paths


def _draw_fronts(groups: Sequence[Group], score: Score, out: Path) -> tuple[list[Path], list[str]]:
    paths, notes = [], []
    for name, cost, of, devices in (
        ("bytes", BYTES, measures.stored_bytes, None),
        ("latency", LATENCY, measures.latency, measures.latency_devices),
        ("training", TRAINING, measures.train_seconds, measures.training_devices),
    ):
        measured_on = sorted({device for group in groups for device in devices(group)}) if devices else []
        points = _points(groups, score, of)
        if len(measured_on) > 1:
            notes.append(f"No figure over {cost.title}, as the runs were on several devices: {', '.join(measured_on)}.")
        elif points is None:
            notes.append(f"No figure over {cost.title}, as not every run has one above 0.")
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
    """None where a run has no such cost: a logarithmic axis has no place for it."""
    points = []
    for group in groups:
        costs = [cost(run) or 0.0 for run in group.runs]
        if min(costs) <= 0:
            return None
        found = student_interval(_by_seed(group, score.of))
        points.append(Point(group.model, group.setting, mean(costs), found.mean, found.half_width))
    return points


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


def _curves(group: Group, score: Score) -> list[comparing.Curve]:
    """(epochs, validation score) of each run that has a history."""
    curves: list[comparing.Curve] = []
    for run in group.runs:
        key = f"val_{score.key}"
        rows = [row for row in run.history if "epoch" in row and math.isfinite(row.get(key, math.nan))]
        if rows:
            curves.append(([row["epoch"] for row in rows], [row[key] for row in rows]))
    return curves
