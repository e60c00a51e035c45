"""Turn predictions into what a comparison resamples: the errors of each recording under each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from speech_exp.comparison.significance import Outcomes
from speech_exp.objectives.scoring import edits_of_words
from speech_exp.runs.record import Prediction, Predictions

Unit = tuple[str, str]  # speaker, and recording (or utterance, if no recordings are named)
Counts = dict[Unit, np.ndarray]  # errors and sizes


def unit_counts(predictions: Predictions, metric: str, speaker: str | None) -> Counts:
    """Return errors and size (2,) of each unit; `speaker` is the held-out test speaker, if the split holds one out.

    Strings that share a recording are not independent, and nearly all strings drawn from the same recordings are
    connected in this way. The errors of a string are therefore assigned to its recordings, by aligning its words: each
    recording is one unit, with its errors in all strings. A string with unequal numbers of words and recordings is one
    unit.
    """
    counts: Counts = {}
    for name, found in predictions.items():
        errors, sizes = _errors(found.reference, found.prediction, metric)
        names: Sequence[str] = found.recordings
        if len(names) != len(errors):
            names, errors, sizes = [name], [sum(errors)], [sum(sizes)]
        for unit, error, size in zip(names, errors, sizes, strict=True):
            key = (found.speaker or speaker or "", unit)
            counts[key] = counts.get(key, 0) + np.array([error, size], dtype=float)
    return counts


def outcomes(runs: Sequence[tuple[int, Counts]], models_per_speaker: bool) -> Outcomes:
    """Combine the counts of runs with their seeds; each run counts equally, whatever its size, as in the mean over runs."""
    units = sorted({unit for _, counts in runs for unit in counts})
    seeds = sorted({seed for seed, _ in runs})
    place = {unit: at for at, unit in enumerate(units)}
    errors_KU, sizes_KU = np.zeros((2, len(seeds), len(units)))
    for seed, counts in runs:
        total = sum(size for _, size in counts.values()) or 1.0
        for unit, (error, size) in counts.items():
            errors_KU[seeds.index(seed), place[unit]] += error / total
            sizes_KU[seeds.index(seed), place[unit]] += size / total
    known = all(speaker for speaker, _ in units)
    names = sorted({speaker for speaker, _ in units})
    speakers_U = np.array([names.index(speaker) if known else 0 for speaker, _ in units], dtype=np.int64)
    return Outcomes(errors_KU, sizes_KU, speakers_U, models_per_speaker)


def paired(ours: Predictions, theirs: Predictions) -> tuple[Predictions, Predictions]:
    """Return the utterances that both contain with the same reference; missing speakers and recordings come from the other."""
    both = [name for name in ours if name in theirs and ours[name].reference == theirs[name].reference]
    return {name: _completed(ours[name], theirs[name]) for name in both}, {
        name: _completed(theirs[name], ours[name]) for name in both
    }


def _completed(prediction: Prediction, other: Prediction) -> Prediction:
    return prediction._replace(
        speaker=prediction.speaker or other.speaker, recordings=prediction.recordings or other.recordings
    )


def difference(ours: Counts, theirs: Counts) -> Counts:
    """Return our errors minus theirs, with the size that both share."""
    return {unit: np.array([ours[unit][0] - theirs[unit][0], theirs[unit][1]]) for unit in theirs}


def resampled_text(found: Outcomes, utterances: Mapping[str, object]) -> str:
    """Describe in words what a bootstrap draws."""
    seeds, units = len(found.errors_KU), len(found.speakers_U)
    noun = "utterances" if units == len(utterances) else "recordings"
    speakers = len(found.units_of_speakers)
    parts = [f"{speakers} speakers"] if found.over_speakers else []
    parts += [f"{seeds} seeds"] if seeds > 1 else []
    return f"{', '.join(parts)} and {units:,} {noun}" if parts else f"{units:,} {noun}"


@lru_cache(maxsize=200_000)  # the baseline's sentences recur with every group
def _errors(reference: str, prediction: str, metric: str) -> tuple[list[int], list[int]]:
    """Return errors and sizes of the reference's words, or of a class as a whole, by the rules of the reported metric."""
    if metric == "accuracy":
        return [int(prediction != reference)], [1]
    return edits_of_words(reference, prediction, characters=metric == "cer")
