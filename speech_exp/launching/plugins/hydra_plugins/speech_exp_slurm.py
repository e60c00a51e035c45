"""Hydra launcher for launcher=slurm.

It is here because Hydra finds launchers only in packages named `hydra_plugins` (`speech_exp.command_line.main` adds this one to
the path). It imports little at the top, because Hydra loads this file at every start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SlurmLauncher(Launcher):
    """Submits the runs, waits for them, and reports which ones failed and why."""

    def __init__(self, array_parallelism: int) -> None:
        self.array_parallelism = array_parallelism

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from speech_exp import ranks
        from speech_exp.command_line.main import UserError
        from speech_exp.launching.options import QUOTES, check_text, read_options

        if ranks.world_size() > 1:
            raise UserError(
                f"error: {ranks.world_size()} processes were started and each would submit the job: start launcher=slurm without "
                f"torchrun, and set slurm.tasks_per_node={ranks.world_size()}"
            )
        self.config, self.callbacks = config, hydra_context.callbacks
        node: Any = OmegaConf.to_container(config.slurm, resolve=True)
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as OneRun

            from speech_exp.launching.jobs import Executor, Run

            options = read_options({**node, "array_parallelism": self.array_parallelism})
            check_text("hydra.sweep.dir", config.hydra.sweep.dir, QUOTES)
        except ImportError as error:
            raise UserError(f"error: launcher=slurm needs pip install 'speech_exp[slurm]' ({error})") from error
        except ValueError as error:
            raise UserError(f"error: {error}") from error
        self.executor = Executor(options, Path(config.hydra.sweep.dir) / ".submitit" / "%j")
        one_run = OneRun()
        one_run.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.run = Run(one_run)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from speech_exp.command_line.main import UserError

        if self.config.dry_run:
            print(self.executor.batch_script(len(job_overrides)), flush=True)
            print("dry_run=true: nothing was submitted", file=sys.stderr)
            raise SystemExit(0)
        arguments = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        try:
            return self._carry_out(arguments)
        except ValueError as error:
            raise UserError(f"error: {error}") from error

    def _carry_out(self, arguments: list[tuple[Any, ...]]) -> Sequence[JobReturn]:
        from speech_exp.folder_names import sweep_subdir
        from speech_exp.launching.jobs import wait_for

        runs = {sweep_subdir(overrides): (overrides, *rest) for overrides, *rest in arguments}
        jobs = self.executor.submit_runs(self.run, runs)
        number = next(iter(jobs.values())).job_id.partition("_")[0]
        print(
            f"submitted as job {number}, runs: {len(jobs)}; this waits for them, and `scancel {number}` ends them",
            flush=True,
        )
        try:
            failures = wait_for(jobs)
        except KeyboardInterrupt:
            print(f"no longer waiting; the runs go on, and `scancel {number}` ends them", file=sys.stderr)
            raise SystemExit(130) from None
        if failures:
            reasons = "".join(f"\n{name}\n{indent(reason, '  ')}" for name, reason in failures.items())
            print(f"error: {len(failures)} of {len(jobs)} runs failed{reasons}", file=sys.stderr, flush=True)
            # Hydra skips this after an error, but the other runs can still be compared and the missing ones named.
            self.callbacks.on_multirun_end(config=self.config, config_name=self.config.hydra.job.config_name)
            raise SystemExit(1)
        return [job.results()[0] for job in jobs.values()]
