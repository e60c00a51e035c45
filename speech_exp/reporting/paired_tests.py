"""Each group against a baseline on the same seeds and utterances, from the runs' predictions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from speech_exp.objectives.scoring import character_edits, word_edits
from speech_exp.reporting.float_reference import FLOAT_TASKS
from speech_exp.reporting.grouping import Group, folds, seed, test_speaker
from speech_exp.reporting.run_record import Predictions, read_predictions
from speech_exp.reporting.runs import Run
from speech_exp.reporting.score import ACCURACY, score_of
from speech_exp.reporting.significance import exact_sign_p, holm, paired_bootstrap

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"
Counts = dict[str, np.ndarray]  # utterance id: errors of the group, errors of the baseline, size of the reference


@dataclass(frozen=True)
class PairedTest:
    """`difference` is the group's value less the baseline's, `low` and `high` its 95 % interval over utterances.

    An utterance is `better` where the group makes fewer errors in it than the baseline, over all seeds together.
    """

    group: str
    baseline: str
    metric: str  # accuracy, wer or cer
    pairs: int  # of runs
    utterances: int
    difference: float
    low: float
    high: float
    better: int
    worse: int
    test: str  # that `p` comes from
    p: float
    p_holm: float  # among all tests of this metric


def choose_baseline(groups: Sequence[Group], name: str | None) -> Group:
    """The group of that label, its separators as spaces or left as they are; without a name the first float group."""
    if name is None:
        return next((group for group in groups if all(_in_float(run) for run in group.runs)), groups[0])
    for group in groups:
        if _words(group.label) == _words(name):
            return group
    labels = "; ".join(group.label for group in groups)
    raise ValueError(f"baseline={name} is no group of these runs, expected one of {labels}: change baseline")


def paired_tests(groups: Sequence[Group], baseline: Group) -> tuple[list[PairedTest], list[str]]:
    """One test a group and metric, and notes on what could not be tested."""
    tests: list[PairedTest] = []
    notes: list[str] = []
    read: dict[str, Predictions] = {}
    for group in groups:
        if group is baseline:
            continue
        try:
            tests += _against(group, baseline, read)
        except (ValueError, OSError) as error:
            notes.append(f"{group.label} is not tested against {baseline.label}: {error}.")
    metrics = list(dict.fromkeys(test.metric for test in tests))
    corrected = []
    for metric in metrics:
        family = [test for test in tests if test.metric == metric]
        adjusted = holm([test.p for test in family])
        corrected += [replace(test, p_holm=p) for test, p in zip(family, adjusted, strict=True)]
    return corrected, notes


def _against(group: Group, baseline: Group, read: dict[str, Predictions]) -> list[PairedTest]:
    ours, theirs = _by_fold(group), _by_fold(baseline)
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    if not pairs:
        raise ValueError("no two runs share data, split, objective and seed")
    for run in (run for pair in pairs for run in pair):
        if run.name not in read:
            read[run.name] = read_predictions(run.folder / "predictions.csv")
    metrics = ("accuracy",) if score_of(pairs[0][0]) is ACCURACY else ("wer", "cer")
    predictions = [(read[run.name], read[other.name]) for run, other in pairs]
    return [_test(group.label, baseline.label, metric, predictions) for metric in metrics]


def _test(group: str, baseline: str, metric: str, pairs: Sequence[tuple[Predictions, Predictions]]) -> PairedTest:
    """An utterance is one unit whatever the number of seeds: its seeds are no independent observations."""
    counts = _summed([_errors(ours, theirs, metric) for ours, theirs in pairs])
    if not counts:
        raise ValueError("no utterance of one reference is in both")
    ours_U, theirs_U, weight_U = np.array([counts[name] for name in sorted(counts)]).T
    difference_U = theirs_U - ours_U if metric == "accuracy" else ours_U - theirs_U
    better, worse = int((ours_U < theirs_U).sum()), int((ours_U > theirs_U).sum())
    found = paired_bootstrap(difference_U, weight_U)
    test, p = (MCNEMAR, exact_sign_p(better, worse)) if metric == "accuracy" else (BOOTSTRAP, found.p)
    difference = float(difference_U.sum() / max(1, weight_U.sum()))
    return PairedTest(
        group, baseline, metric, len(pairs), len(counts), difference, found.low, found.high, better, worse, test, p, p
    )


def _errors(ours: Predictions, theirs: Predictions, metric: str) -> Counts:
    """Of the utterances that both have with one and the same reference."""
    both = [name for name in ours if name in theirs and ours[name][0] == theirs[name][0]]
    return {
        name: np.array([_error(*ours[name], metric)[0], *_error(*theirs[name], metric)], dtype=np.int64)
        for name in both
    }


@lru_cache(maxsize=200_000)  # the baseline's sentences come again with every group
def _error(reference: str, prediction: str, metric: str) -> tuple[int, int]:
    """Errors and the size of the reference, by the rules of the reported metric."""
    if metric == "accuracy":
        return int(prediction != reference), 1
    edits = (word_edits if metric == "wer" else character_edits)([reference], [prediction])
    return edits.total, edits.reference


def _summed(parts: Sequence[Counts]) -> Counts:
    total: Counts = {}
    for part in parts:
        for name, counts in part.items():
            total[name] = total[name] + counts if name in total else counts
    return total


def _by_fold(group: Group) -> Mapping[Hashable, Run]:
    found: dict[Hashable, Run] = {}
    for run in group.runs:
        assert run.results is not None
        data = (run.results["dataset"], run.results["split"], run.results["objective"])
        key = (*data, seed(run), test_speaker(run), folds(run))
        if key in found:
            raise ValueError(
                f"{found[key].name} and {run.name} in {group.label} share a seed, so no run has one partner"
            )
        found[key] = run
    return found


def _in_float(run: Run) -> bool:
    assert run.results is not None
    return run.results["task"] in FLOAT_TASKS


def _words(label: str) -> str:
    return " ".join(label.replace("·", " ").split())
