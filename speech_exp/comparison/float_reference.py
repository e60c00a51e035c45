"""Find the float model that a constrained run is compared with: same setting, data and seed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from speech_exp.comparison.estimates import mean
from speech_exp.comparison.grouping import CONSTRAINT_KEYS, RESULT_KEYS, Group, folds, seed, test_speaker
from speech_exp.comparison.score import ACCURACY, WER, score_of
from speech_exp.runs.reading import Run, result_at

FLOAT_TASKS = ("A", "B1")  # they deploy the model as it was trained, without loss
REFERENCE_TASK = "B1"


@dataclass(frozen=True)
class FloatReference:
    value: float  # of the score that the run is judged by
    from_run: bool  # True: from a run of task B1; False: from the float model that the constrained run itself tested


def float_references(groups: Sequence[Group]) -> dict[str, FloatReference]:
    """Return {name of a constrained run: its reference}; runs without a reference are left out.

    The reference is the run of task B1 with the same data, features, encoder, objective, model and seed. If there are
    several, as in a sweep of both tasks over a learning rate, it is the mean of those that share most of the settings in
    which groups differ. If there is none, it is the float model that the run itself tested.
    """
    candidates: dict[Hashable, list[tuple[Group, float]]] = {}
    for group in groups:
        for run in group.runs:
            score = score_of(run)
            if _task(run) == REFERENCE_TASK and score is not None and (value := score.of(run)) is not None:
                candidates.setdefault(_key(run), []).append((group, value))
    found = {}
    for group in groups:
        for run in group.runs:
            score = score_of(run)
            if _task(run) in FLOAT_TASKS or score is None:
                continue
            test_float = result_at(run, "metrics", "test_float", score.key)
            if same := candidates.get(_key(run)):
                agreement = [_agreement(group, other) for other, _ in same]
                closest = [one for (_, one), count in zip(same, agreement, strict=True) if count == max(agreement)]
                found[run.name] = FloatReference(mean(closest), from_run=True)
            elif test_float is not None:
                found[run.name] = FloatReference(test_float, from_run=False)
    return found


def reference_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on which references were used and which groups are measured differently from most."""
    found = float_references(groups)
    from_runs, from_test_float, without = 0, [], []
    for group in groups:
        constrained = [run for run in group.runs if _task(run) not in FLOAT_TASKS]
        references = [found.get(run.name) for run in constrained]
        from_runs += sum(reference is not None and reference.from_run for reference in references)
        if count := sum(reference is not None and not reference.from_run for reference in references):
            from_test_float.append(f"{group.label} ({count} of {len(constrained)} runs)")
        if None in references:
            without.append(group.label)
    text = f"Lost against float: {_points(groups)}, paired by seed, negative if the constrained model is better; "
    if from_runs:
        text += f"the reference is the run of task {REFERENCE_TASK} with the same data, features, encoder, objective, "
        text += f"model and seed ({from_runs} of {len(found)} runs)"
        text += (
            f", or without one the float model that the run itself tested: {', '.join(from_test_float)}"
            if from_test_float
            else ""
        )
    else:
        text += f"the reference is the float model that each run itself tested, because no run of task {REFERENCE_TASK} has "
        text += "the same data, features, encoder, objective, model and seed"
    notes = [f"{text}."] if found else []
    longer = [group.label for group in groups if any(run.config.get("task.qat_epochs") for run in group.runs)]
    if found and longer:
        notes.append(f"Trained longer than its float reference, by task.qat_epochs: {', '.join(longer)}.")
    if without:
        notes.append(f"Without a float reference, so that their loss is unknown: {', '.join(without)}.")
    return notes


def _points(groups: Sequence[Group]) -> str:
    scores = {score_of(run) for group in groups for run in group.runs}
    words = ["points of test accuracy"] * (ACCURACY in scores) + ["points of added word error rate"] * (WER in scores)
    return " or ".join(words)


def _task(run: Run) -> str:
    assert run.results is not None
    return str(run.results["task"])


def _key(run: Run) -> Hashable:
    assert run.results is not None
    same = tuple(run.results[key] for key in RESULT_KEYS if key not in CONSTRAINT_KEYS)
    return (*same, seed(run), test_speaker(run), folds(run))


def _agreement(group: Group, other: Group) -> int:
    return sum(group.fields[key] == other.fields[key] for key in group.fields if key not in CONSTRAINT_KEYS)
