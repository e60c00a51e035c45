"""Hydra callback of a search (`experiment=search_*`): repeating a command completes its study instead of adding to it.

Trials are judged by the return value of action=train, the validation metric of the deployable model; no test result is read.
"""

from __future__ import annotations

import atexit
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, read_write

from speech_exp import ranks
from speech_exp.figures.search import Trial, search_figure
from speech_exp.objectives.objective import Objective
from speech_exp.progress import print_table
from speech_exp.runs.reading import find_runs
from speech_exp.sweeps.study import check_settings, finished, open_study, overrides_of, requeue_interrupted

if TYPE_CHECKING:
    from optuna import Study


class Search(Callback):
    """Sets `hydra.sweeper` to the trials that the stored study lacks; at the end, prints the best one and draws them all."""

    wanted: int  # number of finished trials to reach

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._begin(config)
        except ValueError as error:  # Hydra would turn it into a warning and continue
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
                + ("" if done >= self.wanted else "; repeat the command to replace those that failed"),
                "best trial": f"validation {_objective(config).primary} {best.value:.2%}",
                **{f"  {key}": str(value) for key, value in best.params.items()},
                "its run folder": str(_run_folder(Path(config.hydra.sweep.dir), overrides) or "missing"),
                "figure": str(_draw(config, study)),
                "to train it alone": shlex.join(["python", "run.py", "hydra.mode=RUN", *overrides]),
            }
        )

    def _begin(self, config: DictConfig) -> None:
        if ranks.world_size() > 1:
            raise ValueError(
                "a search runs in one process: start it without torchrun, or with launcher=slurm for several GPUs per run"
            )
        HydraConfig.instance().set_config(config)  # to resolve ${hydra:...}, which Hydra allows only in jobs
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
            print(f"repeating {interrupted} interrupted trials")
        if study.trials:
            print(f"{done} of {self.wanted} trials are already finished")
        with read_write(config.hydra):
            sweeper.direction = goal
            sweeper.n_trials = max(0, self.wanted - done)
            if sweeper.sampler.seed is not None:
                sweeper.sampler.seed += len(study.trials)


def _check_action(config: DictConfig) -> None:
    action = config.hydra.runtime.choices.action
    if action != "train" or config.dry_run:
        typed = "dry_run=true" if action == "train" else f"action={action}"
        raise ValueError(f"{typed} cannot be used with a search, which must train: remove it, or experiment")


def _objective(config: DictConfig) -> type[Objective]:
    found = get_class(config.objective._target_)
    assert issubclass(found, Objective)
    return found


def _goal(config: DictConfig) -> str:
    """Return whether the objective's metric is to be maximized or minimized."""
    objective, direction = _objective(config), config.hydra.sweeper.direction
    if direction not in (None, objective.goal):
        raise ValueError(
            f"hydra.sweeper.direction={direction}, but {objective.primary} of objective={objective.name} must be "
            f"{objective.goal}d: remove hydra.sweeper.direction"
        )
    return objective.goal


def _fixed(config: DictConfig) -> dict[str, str]:
    """Return the settings shared by all trials, without those that the search varies."""
    preset = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    own = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # ${oc.env:...} may be a secret
    parsed = OverridesParser.create().parse_overrides([*preset, *map(str, own or [])])
    latest = {override.get_key_element(): override for override in parsed}
    return {key: str(one.get_value_element_as_str()) for key, one in latest.items() if not one.is_sweep_override()}


def _draw(config: DictConfig, study: Study) -> Path:
    """Draw the search beside its run folders."""
    from optuna.distributions import IntLogUniformDistribution, LogUniformDistribution

    done, on_log_scale = finished(study), (LogUniformDistribution, IntLogUniformDistribution)
    scales = {key: scale for one in done for key, scale in one.distributions.items()}
    return search_figure(
        [Trial(one.number, one.value, one.params) for one in done if one.value is not None],
        _objective(config).primary,
        config.hydra.sweeper.direction == "maximize",
        [key for key, scale in scales.items() if isinstance(scale, on_log_scale)],
        study.study_name,
        Path(config.hydra.sweep.dir) / "search.png",
    )


def _run_folder(sweep: Path, overrides: list[str]) -> Path | None:
    """Find a run folder by its overrides in any order: the study does not keep the order that names folders."""
    found = (run.folder for run in find_runs(sweep) if set(run.run_info.get("overrides", ())) == set(overrides))
    return next(found, None)


def _lock(folder: Path) -> None:
    """Keep other processes out of the study until this one ends."""
    lock = FileLock(folder / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is searching in {folder}: wait until it ends, or set study to another name"
        ) from None
    atexit.register(
        lock.release
    )  # also keeps the lock alive; an attribute of the callback would be pickled into SLURM jobs
