"""Measure the seconds that Hydra, the launcher and the callbacks add to a run, beyond process start and the run itself.

    PYTHONPATH=. python benchmarks/launcher.py [--rounds 3]          sweeps of 1, 9 and 36 runs in one process (--small: 1, 2 and 4)
    PYTHONPATH=. python benchmarks/launcher.py --slurm [--rounds 3]  arrays of 6 jobs, one at a time, on the cluster that sbatch finds

The run itself is what its action does, from reading the data to the last figure. The process start is that of a process
that imports the same modules and exits. The rest of the wall time is overhead, including that of SLURM and submitit, and the
end of the process. The comparison at the end of a sweep is reported separately. Each round measures everything once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from speech_exp.registry import REGISTERED
from speech_exp.sweeps.compare_callback import CompareSweep

PROJECT = Path(__file__).resolve().parents[1]
START = "import os, hydra, speech_exp.command_line.main, speech_exp.actions.train; os._exit(0)"
SMALL = ["dataset=digits_demo", "trainer=debug", "trainer.device=cpu"]
TIMED = ["action._target_=benchmarks.launcher.TimedTrain"]
TIMED += ["hydra.callbacks.comparison._target_=benchmarks.launcher.TimedComparison"]
REGISTERED["action"] += (
    "benchmarks.launcher.TimedTrain",
)  # takes effect in the process that imports this module to run it


class TimedTrain:
    """action=train that writes its seconds to `action_s` in the run folder."""

    def __init__(self, dry_run: bool, resume: bool | str | None) -> None:
        from speech_exp.actions.train import Train

        self.train = Train(dry_run, resume)

    def __call__(self, experiment: Any) -> float | None:
        started = time.perf_counter()
        returned = self.train(experiment)
        (experiment.folder / "action_s").write_text(str(time.perf_counter() - started))
        return returned


class TimedComparison(CompareSweep):
    """Comparison of a sweep that writes its seconds to `comparison_s` in the sweep folder."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        super().on_multirun_end(config, **kwargs)
        Path(config.hydra.sweep.dir, "comparison_s").write_text(str(time.perf_counter() - started))


@dataclass(frozen=True)
class Sweep:
    started: float  # as seconds since 1970
    ended: float
    actions_s: list[float]
    comparison_s: float
    jobs: list[list[float]]  # start and end of each batch script

    @property
    def rest_s(self) -> float:
        """Return the time of a sweep in one process that is spent neither in the runs nor in the comparison."""
        return self.ended - self.started - sum(self.actions_s) - self.comparison_s


def sweep(*overrides: str) -> Sweep:
    with tempfile.TemporaryDirectory(prefix="launcher-") as scratch:
        folder, moments = Path(scratch, "sweep"), Path(scratch, "moments")
        moments.mkdir()
        command = [sys.executable, "run.py", "-m", *SMALL, *TIMED, f"hydra.sweep.dir={folder}", *overrides]
        if "launcher=slurm" in overrides:
            note = f"date +%s.%N >>{moments}/$SLURM_JOB_ID"
            command.append(f'slurm.setup=["{note}","trap \'{note}\' EXIT"]')
        started = time.time()
        subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
        ended = time.time()
        actions_s = [float(path.read_text()) for path in folder.glob("*/action_s")]
        comparison_s = float((folder / "comparison_s").read_text())
        return Sweep(started, ended, actions_s, comparison_s, read_jobs(moments))


def read_jobs(moments: Path) -> list[list[float]]:
    """Return start and end of each batch script; waits, because the last script may end after the command."""
    while True:
        jobs = [[float(moment) for moment in path.read_text().split()] for path in moments.iterdir()]
        if all(len(job) == 2 for job in jobs):
            return jobs
        time.sleep(0.1)


def start_s() -> float:
    """Return the seconds to start a process, as the median of five starts."""
    moments = [time.perf_counter()]
    for _ in range(5):
        subprocess.run([sys.executable, "-c", START], cwd=PROJECT, check=True)
        moments.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(moments))


def local(small: bool) -> Iterator[tuple[str, float]]:
    """Run one round in this process; yield what was measured and its seconds."""
    process_start_s = start_s()
    seeds, *groups = (1, 2, 4) if small else (3, 3, 12)
    some_runs, many_runs = (seeds * count for count in groups)
    one, some, many = (
        sweep(f"trainer.lr={','.join(f'{at}e-3' for at in range(1, 1 + count))}", f"seed=range({each})")
        for count, each in ((1, 1), *((count, seeds) for count in groups))
    )
    yield "process start", process_start_s
    yield "a run itself", statistics.mean(many.actions_s)
    yield "**overhead of a sweep of one run**", one.rest_s - process_start_s
    yield f"**overhead of each further run, of {some_runs}**", (some.rest_s - one.rest_s) / (some_runs - 1)
    yield f"**overhead of each further run, of {many_runs}**", (many.rest_s - one.rest_s) / (many_runs - 1)
    yield f"comparison of {some_runs} runs ({groups[0]} groups)", some.comparison_s
    yield f"comparison of {many_runs} runs ({groups[1]} groups)", many.comparison_s


def slurm() -> Iterator[tuple[str, float]]:
    """Run one round as a job array; yield what was measured and its seconds."""
    process_start_s = start_s()
    array = sweep("launcher=slurm", "slurm.cpus_per_task=1", "slurm.array_parallelism=1", "seed=range(6)")
    starts, ends = zip(*array.jobs, strict=True)
    job_s, action_s = (sum(ends) - sum(starts)) / len(starts), statistics.mean(array.actions_s)
    yield "process start", process_start_s
    yield "a run itself", action_s
    yield "a job, its batch script from first line to end", job_s
    yield "**overhead of a job**", job_s - process_start_s - action_s
    yield "from the command to the first job's start", min(starts) - array.started
    yield "from the last job's end to the command's", array.ended - max(ends)
    yield "comparison of 6 runs (1 group), in it", array.comparison_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    sweep("seed=0")  # fills the feature cache
    rounds = [dict(slurm() if arguments.slurm else local(arguments.small)) for _ in range(arguments.rounds)]
    print("| seconds | median | all rounds |\n| --- | ---: | --- |")
    for what in rounds[0]:
        values = [found[what] for found in rounds]
        print(f"| {what} | {statistics.median(values):.2f} | {', '.join(f'{value:.2f}' for value in values)} |")


if __name__ == "__main__":
    main()
