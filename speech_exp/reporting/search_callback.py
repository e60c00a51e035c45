"""Hydra callback of a search (`experiment=search_*`): the same command again completes its study instead of adding to it.

Trials are judged by what action=train returns, the validation metric of the deployable model; no test result is read.
"""

from __future__ import annotations

import atexit
import shlex
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, read_write

from speech_exp import ranks
from speech_exp.objectives.objective import Objective
from speech_exp.progress import print_table
from speech_exp.reporting.study import check_settings, finished, open_study, overrides_of, requeue_interrupted


class Search(Callback):
    """Sets `hydra.sweeper` to what the stored study lacks, before the sweeper is built from it; shows the best trial."""

    wanted: int  # finished trials

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._begin(config)
        except ValueError as error:  # Hydra would make a warning of it and go on
            raise SystemExit(f"error: {error}") from None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        sweeper = config.hydra.sweeper
        study = open_study(sweeper.storage, sweeper.study_name, sweeper.direction)
        done, best = len(finished(study)), study.best_trial
        overrides = overrides_of(best)
        print_table(
            {
                "study": f"{study.study_name} in {sweeper.storage}",
                "trials": f"{done} of {self.wanted} finished"
                + ("" if done >= self.wanted else "; the same command again makes up for those that failed"),
                "best trial": f"validation {_objective(config).primary} {best.value:.2%}",
                **{f"  {key}": str(value) for key, value in best.params.items()},
                "its run folder": str(_run_folder(Path(config.hydra.sweep.dir), overrides) or "is gone"),
                "to train it alone": shlex.join(["python", "run.py", "hydra.mode=RUN", *overrides]),
            }
        )

    def _begin(self, config: DictConfig) -> None:
        if ranks.count() > 1:
            raise ValueError(
                "a search chooses in one process: start it without torchrun, with launcher=slurm for several GPUs a run"
            )
        HydraConfig.instance().set_config(config)  # for ${hydra:...}, which Hydra itself lets jobs alone read
        sweeper, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir)
        _check_action(config)
        goal = _goal(config)
        fixed = _fixed(config)
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        study = open_study(sweeper.storage, sweeper.study_name, goal)
        check_settings(study, fixed)
        self.wanted, done = sweeper.n_trials, len(finished(study))
        if interrupted := requeue_interrupted(study):
            print(f"{interrupted} interrupted trials are done again")
        if study.trials:
            print(f"{done} of {self.wanted} trials are finished already")
        with read_write(config.hydra):
            sweeper.direction = goal
            sweeper.n_trials = max(0, self.wanted - done)
            if sweeper.sampler.seed is not None:
                sweeper.sampler.seed += len(study.trials)


def _check_action(config: DictConfig) -> None:
    action = config.hydra.runtime.choices.action
    if action != "train" or config.dry_run:
        typed = "dry_run=true" if action == "train" else f"action={action}"
        raise ValueError(f"{typed} gives a search nothing to choose by, it must train: leave it or experiment out")


def _objective(config: DictConfig) -> type[Objective]:
    found = get_class(config.objective._target_)
    assert issubclass(found, Objective)
    return found


def _goal(config: DictConfig) -> str:
    """Whether the objective's metric is to be maximized or minimized."""
    objective, direction = _objective(config), config.hydra.sweeper.direction
    if direction not in (None, objective.goal):
        raise ValueError(
            f"hydra.sweeper.direction={direction}, but {objective.primary} of objective={objective.name} is to "
            f"{objective.goal}: leave hydra.sweeper.direction out"
        )
    return objective.goal


def _fixed(config: DictConfig) -> dict[str, str]:
    """Settings of every trial, beside those that the search varies."""
    preset = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*preset, *config.hydra.overrides.task])
    latest = {override.get_key_element(): override for override in parsed}
    return {key: str(one.get_value_element_as_str()) for key, one in latest.items() if not one.is_sweep_override()}


def _run_folder(sweep: Path, overrides: list[str]) -> Path | None:
    """By the overrides in any order: the study does not keep the one that names folders."""
    for path in sweep.glob("*/.hydra/overrides.yaml"):
        if set(OmegaConf.load(path)) == set(overrides):
            return path.parents[1]
    return None


def _lock(folder: Path) -> None:
    """Keep other processes out of the study until this one ends."""
    lock = FileLock(folder / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process searches in {folder}: wait for its end, or set study to another name"
        ) from None
    atexit.register(lock.release)  # which keeps it; an attribute of the callback would go to SLURM jobs, pickled
