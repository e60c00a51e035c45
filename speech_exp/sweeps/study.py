"""A stored Optuna study of runs, which killed and repeated searches continue (extra `sweep`).

A trial's parameters are what the search varies, its user attributes the other settings. Together they are the overrides of
its run, in the order in which hydra-optuna-sweeper passes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from speech_exp.folder_names import that_change_results

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def open_study(storage: str, name: str, goal: str) -> Study:
    """Open the study `name` in the database `storage`, or create it; its `goal` is maximize or minimize."""
    try:
        import hydra_plugins.hydra_optuna_sweeper.optuna_sweeper  # noqa: F401  (Hydra needs it next)
        import optuna
    except ImportError as error:
        raise ValueError(f"a search needs the extra sweep ({error}): pip install 'speech_exp[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(storage=storage, study_name=name, direction=goal, load_if_exists=True)
    except ValueError:
        raise ValueError(
            f"study={name} contains trials that do not {goal} the metric: set study to another name"
        ) from None


def check_settings(study: Study, fixed: Mapping[str, str]) -> None:
    """Raise ValueError if finished trials have other settings: their values cannot be compared with those of new trials."""
    new = set(that_change_results(f"{key}={value}" for key, value in fixed.items()))
    for trial in finished(study):
        old = set(that_change_results(f"{key}={value}" for key, value in trial.user_attrs.items()))
        if old != new:
            raise ValueError(
                f"study={study.study_name} contains trials with {_listed(old - new)}, but this command has {_listed(new - old)}: "
                "use the same settings, or study=NAME for another study"
            )


def _listed(overrides: set[str]) -> str:
    return " ".join(sorted(overrides)) or "none of them"


def finished(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def requeue_interrupted(study: Study) -> int:
    """Queue the trials that a killed search left running again, to complete their run folders; return their number.

    No other process may be working on the study.
    """
    import optuna

    left = [trial for trial in study.trials if trial.state.name == "RUNNING"]
    for trial in left:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.enqueue_trial(trial.params)
    return len(left)


def overrides_of(trial: FrozenTrial) -> list[str]:
    """Return the overrides that the trial's run was started with."""
    return [f"{key}={value}" for key, value in {**trial.params, **trial.user_attrs}.items()]
