"""Runs side by side: one group for each setting, mean and interval over seeds, as Markdown, CSV and figures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_exp.reporting import files
from speech_exp.reporting.comparison_tables import csv_table, markdown_report
from speech_exp.reporting.estimates import by_seed, by_speaker, mean, student_interval
from speech_exp.reporting.figures import comparing
from speech_exp.reporting.figures.pareto import Point, comparison_bytes, pareto_front
from speech_exp.reporting.float_reference import reference_notes
from speech_exp.reporting.grouping import Group, Grouping, group_runs, test_speaker
from speech_exp.reporting.measures import accuracy, per_class, stored_bytes
from speech_exp.reporting.runs import Run, find_runs

__all__ = ["Comparison", "Run", "compare", "find_runs"]

FIGURES = ("comparison_accuracy.png", "comparison_per_class.png", "comparison_curves.png", "comparison_bytes.png")
REPLACED_FIGURES = ("comparison_size.png",)  # of earlier versions


@dataclass(frozen=True)
class Comparison:
    """What was written: `markdown` is the report's text, `files` its paths, `not_counted` the runs left out."""

    grouping: Grouping
    not_counted: tuple[Run, ...]
    markdown: str
    files: tuple[Path, ...]


def compare(
    runs: Iterable[Run], out_folder: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> Comparison:
    """Write comparison.md, comparison.csv and the figures to `out_folder`; the order of `runs` changes no byte.

    Groups differ in whatever varies among the runs apart from seed and test speaker; `columns` (such as ["model"])
    fixes the keys instead. Runs without results are named in the report. Raises ValueError when no run has results.
    """
    everything = sorted(runs, key=lambda run: run.name)
    grouping = group_runs(everything, columns)
    not_counted = tuple(run for run in everything if run.results is None)
    notes = [*grouping.notes, *_notes(grouping), *reference_notes(grouping.groups), *_front_note(grouping.groups)]
    out = Path(out_folder)
    # Figures first: a report never links to one that is missing or left from an earlier comparison.
    for name in (*FIGURES, *REPLACED_FIGURES):
        (out / name).unlink(missing_ok=True)
    figures = _draw(grouping.groups, out)
    markdown = markdown_report(grouping, notes, not_counted, [path.name for path in figures])
    written = [
        files.write_text(out / "comparison.md", markdown),
        files.write_text(out / "comparison.csv", csv_table(grouping)),
    ]
    return Comparison(grouping, not_counted, markdown, (*written, *figures))


def _notes(grouping: Grouping) -> list[str]:
    groups, notes = grouping.groups, []
    if len({tuple(group.seeds) for group in groups}) > 1:
        seeds = "; ".join(f"{group.label}: {', '.join(map(str, group.seeds))}" for group in groups)
        notes.append(f"The groups have different seeds ({seeds}).")
    single = [group.label for group in groups if len(group.seeds) == 1]
    if single:
        which = "in every group" if len(single) == len(groups) else f"in {', '.join(single)}"
        notes.append(f"One seed only {which}, so no interval there.")
    if any(len(group.speakers) > 1 for group in groups):
        notes.append(
            "The split holds out one speaker a run: a seed's value is its mean over the test speakers, the interval is "
            "over seeds. The worst speaker is the one with the lowest mean over seeds."
        )
    if len({tuple(group.speakers) for group in groups}) > 1:
        speakers = "; ".join(f"{group.label}: {', '.join(group.speakers) or 'none'}" for group in groups)
        notes.append(f"The groups have different test speakers ({speakers}).")
    for group in groups:
        lacking = _lacking(group)
        if lacking:
            notes.append(
                f"{group.label}: no run of {', '.join(lacking)}, so its seeds are not means over the same speakers."
            )
    for group in groups:
        odd = [f"{run.name} ({run.status})" for run in group.runs if run.status not in ("finished", "unknown")]
        if odd:
            notes.append(
                f"{group.label}: counted, as results are there, although not marked finished: {', '.join(odd)}."
            )
    return notes


def _lacking(group: Group) -> list[str]:
    """Pairs of seed and test speaker that a group of several speakers does not have."""
    present = {(run.results["seed"], test_speaker(run)) for run in group.runs if run.results is not None}
    pairs = [(seed, speaker) for seed in group.seeds for speaker in group.speakers]
    return [f"seed {seed} with speaker {speaker}" for seed, speaker in pairs if (seed, speaker) not in present]


def _classified(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if all(accuracy(run) is not None for run in group.runs)]


def _front_note(groups: Sequence[Group]) -> list[str]:
    classified = _classified(groups)
    if len(classified) < 2:
        return []
    points = _points(classified)
    listed = [f"{classified[at].label} ({points[at].stored_bytes:,.0f} bytes)" for at in pareto_front(points)]
    return [f"Pareto front of accuracy over stored bytes: {', '.join(listed)}."]


def _draw(groups: Sequence[Group], out: Path) -> list[Path]:
    """The figures that the runs have data for; those of recognition by words need other runs than classification."""
    classified = _classified(groups)
    paths: list[Path] = []
    if not classified:
        return paths
    seeds = {group.label: list(by_seed(group, _accuracy).values()) for group in classified}
    estimates = {label: student_interval(values) for label, values in seeds.items()}
    means = {label: (found.mean, found.half_width) for label, found in estimates.items()}
    worst = {group.label: min(by_speaker(group, _accuracy).values()) for group in classified if len(group.speakers) > 1}
    paths.append(comparing.comparison_accuracy(seeds, means, out / FIGURES[0], worst))
    scores = {
        group.label: {name: mean(values["f1"]) for name, values in per_class(group).items()} for group in classified
    }
    paths.append(comparing.comparison_per_class(scores, out / FIGURES[1]))
    curves = {group.label: _curves(group) for group in classified}
    if any(curves.values()):
        names = {group.label: (group.model, group.setting) for group in classified}
        paths.append(comparing.comparison_curves(curves, names, out / FIGURES[2]))
    paths.append(comparison_bytes(_points(classified), out / FIGURES[3]))
    return paths


def _points(classified: Sequence[Group]) -> list[Point]:
    """Accuracy over the bytes stored, one point a group."""
    points = []
    for group in classified:
        found = student_interval(list(by_seed(group, _accuracy).values()))
        stored = mean([stored_bytes(run) or 0 for run in group.runs])
        points.append(Point(group.model, group.setting, stored, found.mean, found.half_width))
    return points


def _accuracy(run: Run) -> float:
    value = accuracy(run)
    assert value is not None
    return value


def _curves(group: Group) -> list[tuple[list[float], list[float]]]:
    """(epochs, validation accuracy) of each run that has a history."""
    curves = []
    for run in group.runs:
        rows = [row for row in run.history if "epoch" in row and math.isfinite(row.get("val_accuracy", math.nan))]
        if rows:
            curves.append(([row["epoch"] for row in rows], [row["val_accuracy"] for row in rows]))
    return curves
