"""Jobs of SLURM by submitit: the batch script, the submission, the wait for their end, and why one failed."""

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
from speech_exp.command_line import end_soon, silence
from speech_exp.launching.options import SlurmOptions

_log = logging.getLogger(__name__)
_SHOWN_LINES = 3  # of a trace: the place and the error

# Only SLURM's accounts tell of a job that was killed; submitit's own watcher comes to ask once in 10 minutes.
SlurmJob.watcher = SlurmInfoWatcher(delay_s=60)


@dataclass
class Run:
    """One run in its job, in each of its tasks. It raises what the run raised: SLURM sees the job fail, and the job's log
    ends in the trace.
    """

    launcher: Any  # hydra_submitit_launcher's, which composes the run's config and carries it out

    def __call__(self, *arguments: Any) -> Any:
        end_soon()
        if JobEnvironment().num_tasks > 1:
            # Each sees all GPUs of its node, of which it takes its own.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if ranks.number():
            silence(self.launcher)
        returned = self.launcher(*arguments)
        _ = returned.return_value
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # that its time is nearly over must not fail a job whose work is done
        return returned

    def checkpoint(self, *arguments: Any) -> DelayedSubmission:
        """What submitit starts in a new job when the time of this one is over."""
        return DelayedSubmission(self, *arguments)


class Executor(SlurmExecutor):
    """submitit's, which can make batch scripts where SLURM is not installed, too."""

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        super().__init__(folder, max_num_timeout=options.max_num_timeout, python=options.python)
        self.update_parameters(**options.parameters())

    @classmethod
    def affinity(cls) -> int:
        return 1

    def batch_script(self, runs: int) -> str:
        """What sbatch would get for `runs` runs."""
        if runs > 1:
            self.parameters["map_count"] = runs
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def submit_runs(self, run: Run, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, SlurmJob[Any]]:
        """One job, or an array of them: one for the arguments of each named run."""
        if shutil.which("sbatch") is None:
            raise ValueError(
                "launcher=slurm found no sbatch: start it on a machine of the cluster, or set launcher=local or dry_run=true"
            )
        if subprocess.run(["sacct", "--jobs=1"], capture_output=True, check=False).returncode != 0:
            _log.warning("this cluster keeps no accounts (sacct fails): a job that is killed is waited for without end")
        try:
            jobs: list[Any] = self.map_array(run, *zip(*arguments.values(), strict=True))
        except FailedJobError as error:
            said = str(error).strip().splitlines()[-1]
            raise ValueError(f"SLURM took no job ({said}): change the keys under slurm") from error
        return dict(zip(arguments, jobs, strict=True))


def wait_for(jobs: Mapping[str, SlurmJob[Any]]) -> dict[str, str]:
    """Tell when each of the named jobs ends, until all have; returns why for those that failed."""
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
    """The end of the trace and the log that holds all of it, or what SLURM says; None for a job that did its work."""
    outcomes = []
    for task in map(job.task, range(job.num_tasks)):
        # A file system may show the file a little later; where SLURM ended the job it will never come.
        if task.paths.result_pickle.exists() or job.state == "COMPLETED":
            with suppress(UncompletedJobError):
                outcomes.append((task, *task._get_outcome_and_result()))
    for task, outcome, trace in outcomes:
        if outcome == "error":
            return "\n".join([*trace.strip().splitlines()[-_SHOWN_LINES:], f"log: {task.paths.stderr}"])
    if len(outcomes) < job.num_tasks:
        return f"SLURM says {job.state}\nlog: {job.task(0).paths.stderr}"
    return None
