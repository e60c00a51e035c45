"""Compute intervals of each group's test metrics, over speakers, seeds and recordings."""

from __future__ import annotations

from dataclasses import replace

from speech_exp.comparison.estimates import MIN_SEEDS
from speech_exp.comparison.grouping import Group, Grouping, Interval, seed, test_speaker
from speech_exp.comparison.outcomes import outcomes, resampled_text, unit_counts
from speech_exp.comparison.score import METRICS, score_of
from speech_exp.comparison.significance import exact_interval, hierarchical_bootstrap
from speech_exp.runs.record import read_predictions


def with_intervals(grouping: Grouping) -> Grouping:
    """Return the groups with intervals of their metrics; notes say what was resampled, and which groups lack them and why."""
    groups, notes = [], dict[str, list[str]]()
    for group in grouping.groups:
        intervals: dict[str, Interval] = {}
        try:
            if len(group.seeds) < MIN_SEEDS:
                note = f"No intervals, because they need at least {MIN_SEEDS} seeds"
            else:
                intervals = _intervals(group)
                note = f"Intervals of test metrics are over {next(iter(intervals.values())).over}"
        except (ValueError, OSError) as error:
            note = f"Intervals of test metrics are over seeds alone, because {error}"
        groups.append(replace(group, intervals=intervals))
        notes.setdefault(note, []).append(group.label)
    many = len(grouping.groups) > 1
    lines = [f"{text} ({', '.join(labels)})." if many else f"{text}." for text, labels in notes.items()]
    return replace(grouping, groups=tuple(groups), notes=(*grouping.notes, *lines))


def _intervals(group: Group) -> dict[str, Interval]:
    """Return bootstrap intervals of a group's test metrics.

    For accuracy, and for an error rate of 0, an interval is never narrower than the exact one for as many independent
    recordings: a resample of only correct answers has no spread.
    """
    read = [(seed(run), test_speaker(run), read_predictions(run.folder / "predictions.csv")) for run in group.runs]
    if not all(predictions for *_, predictions in read):
        raise ValueError("a predictions.csv is empty")
    utterances = {name: None for *_, predictions in read for name in predictions}
    found: dict[str, Interval] = {}
    for metric in METRICS[score_of(group.runs[0])]:
        counts = [(number, unit_counts(predictions, metric, speaker)) for number, speaker, predictions in read]
        made = outcomes(counts, models_per_speaker=any(speaker for _, speaker, _ in read))
        if not made.sizes_KU.sum():
            raise ValueError("every reference of predictions.csv is empty")
        rate = made.errors_KU.sum() / made.sizes_KU.sum()
        drawn = hierarchical_bootstrap(made)
        low, high = drawn.low, drawn.high
        if metric == "accuracy" or not rate:
            units = len(made.speakers_U)
            right_low, right_high = exact_interval(units * (1 - rate), units)
            low, high = min(low, 1 - right_high), max(high, 1 - right_low)
        if metric == "accuracy":
            low, high = 1 - high, 1 - low
        found[metric] = Interval(max(0.0, low), high, resampled_text(made, utterances))
    return found
