"""Hydra callback: records what a sweep is made of, and lets no failed job take the others along."""

from __future__ import annotations

import logging
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
from speech_exp.reporting.status import missing_text, sweep_status
from speech_exp.reporting.sweep_record import Job, finish_job, finish_sweep, start_job, start_sweep

_log = logging.getLogger(__name__)


class RecordSweep(Callback):
    """A sweep with a run that is not done ends with exit status 1, and says why and how to go on."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.dry_run:
            return
        HydraConfig.instance().set_config(config)  # for ${hydra:...}, which Hydra itself lets jobs alone read
        try:
            start_sweep(Path(config.hydra.sweep.dir), _jobs(config))
        except (ValueError, OSError, HydraException) as error:
            # Hydra would make a warning of the exception and go on.
            raise SystemExit(f"error: {error}") from error

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if _of_sweep(config):
            start_job(Path(config.hydra.runtime.output_dir))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Takes the error out of the job's return: Hydra's sweeper would raise it and skip the end of the sweep."""
        if not _of_sweep(config):
            return
        folder = Path(config.hydra.runtime.output_dir)
        # Not `return_value`, which would raise the error.
        error = job_return._return_value if job_return.status is JobStatus.FAILED else None
        outcome = finish_job(folder, error)
        # A job of SLURM must fail itself, and its launcher tells why; a search makes up for trials that fail; and of several
        # processes the others have ended.
        if error is not None and "slurm" not in config and not _is_search(config) and ranks.count() == 1:
            _log.error("%s failed: %s", folder.name, outcome["error"])
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.dry_run:
            return
        folder = Path(config.hydra.sweep.dir)
        if _is_search(config):
            finish_sweep(folder)
            return
        try:
            finish_sweep(folder)
            text = missing_text(sweep_status(folder))
        except Exception as error:
            _log.exception("what %s lacks is not known", folder)
            raise SystemExit(1) from error
        if text:
            print(text)
            raise SystemExit(1)


def _of_sweep(config: DictConfig) -> bool:
    """Whether a job is one of a sweep, which numbers them."""
    return not OmegaConf.is_missing(config.hydra.job, "num")


def _is_search(config: DictConfig) -> bool:
    return "study_name" in config.hydra.sweeper


def _jobs(config: DictConfig) -> list[Job]:
    """All jobs of Hydra's own sweeper in their order; none of another, which chooses them as it goes."""
    sweeper = config.hydra.sweeper
    if sweeper._target_ != BasicSweeperConf._target_:
        return []
    loader = GlobalHydra.instance().config_loader()
    typed = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [Job(_subdir(loader, config, overrides, at), tuple(overrides)) for at, overrides in enumerate(batch)]


def _subdir(loader: ConfigLoader, config: DictConfig, overrides: list[str], number: int) -> str:
    """The job's folder below the sweep's, from its config as Hydra composes it."""
    job = loader.load_sweep_config(config, overrides)
    with open_dict(job.hydra.job):
        job.hydra.job.num, job.hydra.job.id = number, str(number)
    return str(job.hydra.sweep.subdir)
