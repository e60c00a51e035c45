"""Compare runs: one group per setting, mean and interval over seeds, tests against a baseline, figures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_exp import files
from speech_exp.comparison import figures, measures
from speech_exp.comparison.findings import Findings
from speech_exp.comparison.float_reference import reference_notes
from speech_exp.comparison.formats.latex import latex_table
from speech_exp.comparison.formats.markdown import markdown_report
from speech_exp.comparison.formats.page import page
from speech_exp.comparison.formats.tidy_csv import csv_table
from speech_exp.comparison.grouping import Group, Grouping, group_runs, seed, test_speaker
from speech_exp.comparison.paired_tests import choose_baseline, paired_tests
from speech_exp.comparison.score_intervals import with_intervals
from speech_exp.runs.reading import Run, find_runs, of_sessions

__all__ = ["Comparison", "Run", "compare", "find_runs"]


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison: `markdown` is the text of the report, `files` what was written, `not_counted` runs left out."""

    grouping: Grouping
    not_counted: tuple[Run, ...]
    markdown: str
    files: tuple[Path, ...]


def compare(
    runs: Iterable[Run],
    out_folder: str | os.PathLike[str],
    baseline: str | None = None,
) -> Comparison:
    """Write comparison.md, .csv, .tex, .html and the figures to `out_folder`; the order of `runs` does not matter.

    Groups differ in whatever varies among the runs apart from seed and test speaker. `baseline` is the label of the group
    that the others are tested against; None means the first float group. Runs without results are named in the report.
    Raises ValueError if no run has results or no group has the baseline's label.
    """
    everything = sorted(runs, key=lambda run: run.name)
    grouping = with_intervals(group_runs(everything))
    groups = grouping.groups
    reference = choose_baseline(groups, baseline)
    not_counted = tuple(run for run in everything if run.results is None)
    out = Path(out_folder)
    tests, test_notes = paired_tests(groups, reference)
    figure_paths, figure_notes = figures.draw(groups, out)
    notes = (*grouping.notes, *_notes(grouping), *reference_notes(groups), *figure_notes, *test_notes)
    findings = Findings(grouping, reference, tuple(tests), notes, not_counted, tuple(figure_paths))
    markdown = markdown_report(findings)
    written = [
        files.write_text(out / "comparison.md", markdown),
        files.write_text(out / "comparison.csv", csv_table(findings)),
        files.write_text(out / "comparison.tex", latex_table(findings)),
        files.write_text(out / "comparison.html", page(findings, out.resolve().name)),
    ]
    drawings = [path for figure in figure_paths if (path := figure.with_suffix(".svg")).is_file()]
    return Comparison(grouping, not_counted, markdown, (*written, *figure_paths, *drawings))


def _notes(grouping: Grouping) -> list[str]:
    groups, notes = grouping.groups, []
    if len({tuple(group.seeds) for group in groups}) > 1:
        seeds = "; ".join(f"{group.label}: {', '.join(map(str, group.seeds))}" for group in groups)
        notes.append(f"The groups have different seeds ({seeds}).")
    labels_by_directions: dict[float, list[str]] = {}
    for group in groups:
        for number in sorted({measures.directions(run) or 0 for run in group.runs}):
            labels_by_directions.setdefault(number, []).append(group.label)
    if len(labels_by_directions.keys() - {0}) > 1:
        both, one = (", ".join(labels_by_directions[number]) for number in (2.0, 1.0))
        notes.append(
            f"Not a like-for-like comparison, because directions differ (bidirectional: {both}; unidirectional: {one})."
        )
    if any(len(group.speakers) > 1 for group in groups):
        notes.append(
            "Each run holds out one test speaker: the value of a seed is its mean over the test speakers. The worst speaker "
            "is the one with the lowest mean over seeds."
        )
    if len({tuple(group.speakers) for group in groups}) > 1:
        speakers = "; ".join(f"{group.label}: {', '.join(group.speakers) or 'none'}" for group in groups)
        notes.append(f"The groups have different test speakers ({speakers}).")
    for group in groups:
        if missing := _missing_pairs(group):
            notes.append(
                f"{group.label}: no run of {', '.join(missing)}, so its seeds are not means over the same speakers."
            )
    notes += _environment_notes(groups)
    for group in groups:
        odd = [f"{run.name} ({run.status})" for run in group.runs if run.status not in ("finished", "unknown")]
        if odd:
            notes.append(
                f"{group.label}: counted because they have results, although they are not finished: {', '.join(odd)}."
            )
    return notes


def _environment_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on thread counts and commits that differ between runs: besides seed and config, results depend on them."""
    runs = [run for group in groups for run in group.runs]
    threads = sorted({text for run in runs for text in of_sessions(run, "threads")})
    commits = sorted({text[:10] for run in runs for text in of_sessions(run, "commit")})
    notes = []
    if len(threads) > 1:
        notes.append(
            f"Computed with different numbers of threads ({', '.join(threads)}), which changes the last bits of a run."
        )
    if len(commits) > 1:
        notes.append(f"The runs were made by different commits ({', '.join(commits)}).")
    return notes


def _missing_pairs(group: Group) -> list[str]:
    """Return the pairs of seed and test speaker that a group with several speakers lacks."""
    present = {(seed(run), test_speaker(run)) for run in group.runs}
    pairs = [(one, speaker) for one in group.seeds for speaker in group.speakers]
    return [f"seed {one} with speaker {speaker}" for one, speaker in pairs if (one, speaker) not in present]
