"""Test each group against a baseline on the same seeds and utterances, from the predictions of the runs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from speech_exp.comparison.estimates import MIN_SEEDS
from speech_exp.comparison.float_reference import FLOAT_TASKS
from speech_exp.comparison.grouping import Group, folds, seed, test_speaker
from speech_exp.comparison.outcomes import difference, outcomes, paired, resampled_text, unit_counts
from speech_exp.comparison.score import METRICS, score_of
from speech_exp.comparison.significance import exact_sign_p, hierarchical_bootstrap, holm
from speech_exp.runs.reading import Run
from speech_exp.runs.record import Predictions, read_predictions

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"


@dataclass(frozen=True)
class PairedTest:
    """One test: `difference` is the group's value minus the baseline's, `low` and `high` its 95 % interval.

    An utterance is `better` if the group makes fewer errors in it than the baseline, summed over seeds. With fewer than
    three seeds the interval is None, and `p` applies only to these trained models, not to training them again.
    """

    group: str
    baseline: str
    metric: str  # accuracy, wer or cer
    pairs: int  # number of pairs of runs
    utterances: int
    difference: float
    low: float | None
    high: float | None
    better: int
    worse: int
    test: str  # name of the test that gave `p`
    over: str  # what it resamples or counts, such as "6 speakers, 3 seeds and 300 utterances"
    p: float
    p_holm: float  # corrected for all tests of this metric


def choose_baseline(groups: Sequence[Group], name: str | None) -> Group:
    """Return the group with that label (spaces may replace its separators), or without a name the first float group."""
    if name is None:
        return next((group for group in groups if all(_in_float(run) for run in group.runs)), groups[0])
    for group in groups:
        if _words(group.label) == _words(name):
            return group
    labels = "; ".join(group.label for group in groups)
    raise ValueError(f"baseline={name} is not a group of these runs, expected one of {labels}: change baseline")


def paired_tests(groups: Sequence[Group], baseline: Group) -> tuple[list[PairedTest], list[str]]:
    """Return one test per group and metric, and notes on what could not be tested."""
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
        raise ValueError("no two runs have the same data, split, objective and seed")
    for run in (run for pair in pairs for run in pair):
        if run.name not in read:
            read[run.name] = read_predictions(run.folder / "predictions.csv")
        if not read[run.name]:
            raise ValueError(f"{run.name}/predictions.csv is empty")
    return [_test(group.label, baseline.label, metric, pairs, read) for metric in METRICS[score_of(pairs[0][0])]]


def _test(
    group: str, baseline: str, metric: str, pairs: Sequence[tuple[Run, Run]], read: Mapping[str, Predictions]
) -> PairedTest:
    """Test by bootstrap; for classes with unknown or too few speakers, p comes from McNemar's test over the recordings.

    In McNemar's test an utterance is one unit, whatever the number of seeds: its seeds are not independent observations.
    """
    counts, errors = [], dict[str, float]()
    for run, other in pairs:
        ours, theirs = paired(read[run.name], read[other.name])
        unit_errors = difference(*(unit_counts(part, metric, test_speaker(run)) for part in (ours, theirs)))
        counts.append((seed(run), unit_errors))
        for name in ours:
            (gained,) = difference(
                *(unit_counts({name: part[name]._replace(recordings=())}, metric, "") for part in (ours, theirs))
            ).values()
            errors[name] = errors.get(name, 0.0) + gained[0]
    if not errors:
        raise ValueError("no utterance with the same reference is in both")
    better, worse = (sum(bool(sign * one > 0) for one in errors.values()) for sign in (-1, 1))
    found = outcomes(counts, models_per_speaker=any(test_speaker(run) for run, _ in pairs))
    sign = -1 if metric == "accuracy" else 1
    mean = sign * float(found.errors_KU.sum() / len(pairs))
    bootstrap = hierarchical_bootstrap(found) if found.independent > 1 else None
    low = high = None
    if bootstrap and len(found.errors_KU) >= MIN_SEEDS:
        low, high = sorted((sign * bootstrap.low, sign * bootstrap.high))
    if metric == "accuracy" and not found.over_speakers:
        test, p, over = (
            MCNEMAR,
            exact_sign_p(better, worse),
            f"{len(errors):,} recordings (speakers unknown or too few)",
        )
    else:
        test, p, over = BOOTSTRAP, bootstrap.p if bootstrap else 1.0, resampled_text(found, errors)
    return PairedTest(
        group, baseline, metric, len(pairs), len(errors), mean, low, high, better, worse, test, over, p, p
    )


def _by_fold(group: Group) -> Mapping[Hashable, Run]:
    found: dict[Hashable, Run] = {}
    for run in group.runs:
        assert run.results is not None
        data = (run.results["dataset"], run.results["split"], run.results["objective"])
        found[(*data, seed(run), test_speaker(run), folds(run))] = run
    return found


def _in_float(run: Run) -> bool:
    assert run.results is not None
    return run.results["task"] in FLOAT_TASKS


def _words(label: str) -> str:
    return " ".join(label.replace("·", " ").split())
