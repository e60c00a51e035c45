"""Runs side by side: one group for each setting, mean and interval over seeds, tests against a baseline, figures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_exp.reporting import comparison_figures, files
from speech_exp.reporting.comparison_csv import csv_table
from speech_exp.reporting.comparison_latex import latex_table
from speech_exp.reporting.comparison_page import page
from speech_exp.reporting.comparison_tables import markdown_report
from speech_exp.reporting.findings import Findings
from speech_exp.reporting.float_reference import reference_notes
from speech_exp.reporting.grouping import Group, Grouping, group_runs, seed, test_speaker
from speech_exp.reporting.paired_tests import choose_baseline, paired_tests
from speech_exp.reporting.runs import Run, find_runs

__all__ = ["Comparison", "Run", "compare", "find_runs"]


@dataclass(frozen=True)
class Comparison:
    """What was written: `markdown` is the report's text, `files` its paths, `not_counted` the runs left out."""

    grouping: Grouping
    not_counted: tuple[Run, ...]
    markdown: str
    files: tuple[Path, ...]


def compare(
    runs: Iterable[Run],
    out_folder: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Comparison:
    """Write comparison.md, .csv, .tex, .html and the figures to `out_folder`; the order of `runs` changes no byte.

    Groups differ in whatever varies among the runs apart from seed and test speaker; `columns` (such as ["model"])
    fixes the keys instead. `baseline` is the label of the group that the others are tested against, None the first
    float group. Runs without results are named in the report. Raises ValueError when no run has results, or no group
    the baseline's label.
    """
    everything = sorted(runs, key=lambda run: run.name)
    grouping = group_runs(everything, columns)
    groups = grouping.groups
    reference = choose_baseline(groups, baseline)
    not_counted = tuple(run for run in everything if run.results is None)
    out = Path(out_folder)
    tests, test_notes = paired_tests(groups, reference)
    figures, figure_notes = comparison_figures.draw(groups, out)
    notes = (*grouping.notes, *_notes(grouping), *reference_notes(groups), *figure_notes, *test_notes)
    findings = Findings(grouping, reference, tuple(tests), notes, not_counted, tuple(figures))
    markdown = markdown_report(findings)
    written = [
        files.write_text(out / "comparison.md", markdown),
        files.write_text(out / "comparison.csv", csv_table(findings)),
        files.write_text(out / "comparison.tex", latex_table(findings)),
        files.write_text(out / "comparison.html", page(findings)),
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
    present = {(seed(run), test_speaker(run)) for run in group.runs}
    pairs = [(one, speaker) for one in group.seeds for speaker in group.speakers]
    return [f"seed {one} with speaker {speaker}" for one, speaker in pairs if (one, speaker) not in present]
