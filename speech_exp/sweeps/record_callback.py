"""Hydra callback that records the jobs of a sweep and keeps a failed job from stopping the others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from speech_exp import ranks
from speech_exp.command_line.composition_errors import one_sentence
from speech_exp.command_line.credentials import refuse_written_secrets
from speech_exp.files import reason
from speech_exp.safe_text import text_of
from speech_exp.sweeps.clock import SweepClock
from speech_exp.sweeps.record import Job, finish_job, finish_sweep, start_job, start_sweep
from speech_exp.sweeps.status import missing_text, sweep_status

_log = logging.getLogger(__name__)


class RecordSweep(Callback):
    """Records a sweep; if a run is not done at the end, prints why and how to continue and exits with status 1."""

    failed = False  # whether a job in this process failed
    clock: SweepClock | None = None  # None if the jobs are not known beforehand, or if they run in other processes

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.dry_run:
            return
        HydraConfig.instance().set_config(config)  # to resolve ${hydra:...}, which Hydra allows only in jobs
        try:
            plain = OmegaConf.to_container(config, resolve=False)
            assert isinstance(plain, dict)
            refuse_written_secrets({str(key): value for key, value in plain.items() if key != "hydra"})
            folder, jobs = Path(config.hydra.sweep.dir), _jobs(config)
            start_sweep(folder, jobs)
            if jobs and "slurm" not in config:
                self.clock = SweepClock(folder, jobs)
        except HydraException as error:
            raise SystemExit(f"error: {one_sentence(error, sys.argv[1:])}") from error
        except ValueError as error:  # Hydra would turn the exception into a warning and continue
            raise SystemExit(f"error: {text_of(error)}") from error
        except OSError as error:
            raise SystemExit(
                f"error: {config.hydra.sweep.dir} could not be written ({reason(error)}): set hydra.sweep.dir to a folder that "
                f"can be written"
            ) from error

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if _of_sweep(config):
            start_job(Path(config.hydra.runtime.output_dir))
            if self.clock is not None:
                print(f"\n{self.clock.begin(config.hydra.job.num)}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Remove the error from the job's return: Hydra's sweeper would raise it and skip the end of the sweep."""
        if not _of_sweep(config):
            return
        folder = Path(config.hydra.runtime.output_dir)
        # Not `return_value`, which raises the error.
        error = job_return._return_value if job_return.status is JobStatus.FAILED else None
        outcome = finish_job(folder, error)
        if self.clock is not None:
            self.clock.end()
        # Keep the error of a SLURM job, which must fail itself (its launcher says why), in a search, which makes up for
        # failed trials, and with several ranks, where the others have ended.
        if error is not None and "slurm" not in config and not _is_search(config) and ranks.world_size() == 1:
            _log.error("%s failed: %s", folder.name, outcome["error"])
            self.failed = True
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.dry_run:
            if self.failed:
                raise SystemExit(1)
            return
        folder = Path(config.hydra.sweep.dir)
        if _is_search(config):
            finish_sweep(folder)
            return
        try:
            finish_sweep(folder)
            text = missing_text(sweep_status(folder))
        except Exception as error:
            _log.exception("cannot tell which runs of %s are not done", folder)
            raise SystemExit(1) from error
        if text:
            print(text)
            raise SystemExit(1)


def _of_sweep(config: DictConfig) -> bool:
    """Return whether a job belongs to a sweep: only these have a number."""
    return not OmegaConf.is_missing(config.hydra.job, "num")


def _is_search(config: DictConfig) -> bool:
    return "study_name" in config.hydra.sweeper


def _jobs(config: DictConfig) -> list[Job]:
    """Return all jobs of Hydra's basic sweeper in order; none for another sweeper, which chooses jobs as it goes."""
    sweeper = config.hydra.sweeper
    for key in ("n_trials", "n_jobs") if _is_search(config) else ():
        if type(sweeper[key]) is not int or sweeper[key] < 1:
            raise ValueError(f"hydra.sweeper.{key}={sweeper[key]}: expected an integer of at least 1")
    if sweeper._target_ != BasicSweeperConf._target_:
        return []
    loader = GlobalHydra.instance().config_loader()
    task_overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # ${oc.env:...} may be a secret
    typed = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *map(str, task_overrides or [])]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    if not batch:
        raise ValueError("the sweep has no run: one of its keys has an empty list or range of values")
    return [Job(_subdir(loader, config, overrides, at), tuple(overrides)) for at, overrides in enumerate(batch)]


def _subdir(loader: ConfigLoader, config: DictConfig, overrides: list[str], number: int) -> str:
    """Return the job's folder below the sweep folder, from its config as Hydra composes it."""
    job = loader.load_sweep_config(config, overrides)
    with open_dict(job.hydra.job):
        job.hydra.job.num, job.hydra.job.id = number, str(number)
    return str(job.hydra.sweep.subdir)
