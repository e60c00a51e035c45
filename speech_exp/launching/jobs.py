"""SLURM jobs via submitit: write the batch script, submit, wait for the end, and find out why a job failed."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import JobEnvironment, SlurmExecutor, SlurmJob
from submitit.core.utils import DelayedSubmission, FailedJobError, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment
from submitit.slurm.slurm import SlurmInfoWatcher

from speech_exp import ranks
from speech_exp.command_line.main import silence, skip_final_gc
from speech_exp.launching.options import SlurmOptions

_log = logging.getLogger(__name__)
_SHOWN_LINES = 3  # of a traceback: where it happened, and the error

# A killed job shows up only in SLURM's accounting, which submitit's default watcher queries every 10 minutes.
SlurmJob.watcher = SlurmInfoWatcher(delay_s=60)


@dataclass
class Run:
    """One run, called in each task of its SLURM job.

    It raises whatever the run raises: SLURM then sees the job fail, and the job's log ends with the traceback.
    """

    launcher: Any  # hydra_submitit_launcher's; composes the config of the run and executes the run

    def __call__(self, *arguments: Any) -> Any:
        skip_final_gc()
        if JobEnvironment().num_tasks > 1:
            # Each task sees all GPUs of its node and selects one by its local rank.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if ranks.rank():
            silence(self.launcher)
        with ranks.fail_together():
            returned = self.launcher(*arguments)
            _ = returned.return_value
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a late time-limit warning must not fail a finished job
        return returned

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """Return what submitit submits as a new job when this one reaches its time limit."""
        return DelayedSubmission(self, *arguments)


class Executor(SlurmExecutor):
    """submitit's SLURM executor, extended to write batch scripts on machines without SLURM."""

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        super().__init__(folder, max_num_timeout=options.max_num_timeout, python=options.python)
        self.update_parameters(**options.parameters())

    @classmethod
    def affinity(cls) -> int:
        return 1

    def batch_script(self, runs: int) -> str:
        """Return the batch script that would be submitted for `runs` runs."""
        if runs > 1:
            self.parameters["map_count"] = runs
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def submit_runs(self, run: Run, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, SlurmJob[Any]]:
        """Submit one job for each named run, several as a job array; return the jobs by name."""
        if shutil.which("sbatch") is None:
            raise ValueError(
                "launcher=slurm found no sbatch: start it on a machine of the cluster, or set launcher=local or dry_run=true"
            )
        if subprocess.run(["sacct", "--jobs=1"], capture_output=True, check=False).returncode != 0:
            _log.warning(
                "this cluster keeps no accounting records (sacct fails): the wait for a killed job will not end"
            )
        try:
            jobs: list[Any] = self.map_array(run, *zip(*arguments.values(), strict=True))
        except FailedJobError as error:
            answer = str(error).strip().splitlines()[-1]
            raise ValueError(f"SLURM rejected the job ({answer}): change the keys under slurm") from error
        return dict(zip(arguments, jobs, strict=True))


def wait_for(jobs: Mapping[str, SlurmJob[Any]]) -> dict[str, str]:
    """Wait for all named jobs, logging each one that ends; return the reasons of those that failed, by name."""
    waiting, failures = dict(jobs), {}
    while waiting:
        for name, job in list(waiting.items()):
            if job.done():
                del waiting[name]
                if reason := why_failed(job):
                    failures[name] = reason
                _log.info("%s: %s (job %s, %d to go)", name, "failed" if reason else "done", job.job_id, len(waiting))
        time.sleep(bool(waiting))
    return failures


def why_failed(job: SlurmJob[Any]) -> str | None:
    """Return the end of the traceback and the path of the log, or the state that SLURM reports; None if the job succeeded."""
    outcomes = []
    for task in map(job.task, range(job.num_tasks)):
        # The file system may show the result a little late; if SLURM killed the job, it never appears.
        if task.paths.result_pickle.exists() or job.state == "COMPLETED":
            with suppress(UncompletedJobError):
                outcomes.append((task, *task._get_outcome_and_result()))
    for task, outcome, trace in outcomes:
        if outcome == "error":
            return "\n".join([*trace.strip().splitlines()[-_SHOWN_LINES:], f"log: {task.paths.stderr}"])
    if len(outcomes) < job.num_tasks:
        return f"SLURM says {job.state}\nlog: {job.task(0).paths.stderr}"
    return None
