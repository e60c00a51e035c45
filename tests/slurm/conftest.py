"""Start a real SLURM cluster of one node for the tests of this folder, and stop it afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from slurm_cluster import RUN, SMALL

HERE = Path(__file__).parent


def unavailable(reason: str) -> NoReturn:
    """Skip the tests, or fail in CI, where they must run."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no SLURM cluster: {reason}")


class Cluster:
    """A SLURM cluster in a folder; its programs find it through `environment`."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "etc/slurm.conf"), "OMP_NUM_THREADS": "1"}

    def ask(self, *command: str) -> list[list[str]]:
        """Return the rows of a SLURM program's output, whose fields are separated by |."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
        return [line.split("|") for line in done.stdout.splitlines()]

    def jobs(self) -> dict[str, str]:
        """Return the state of each waiting or running job by its number, such as `12_3` in an array."""
        return {row[0]: row[1] for row in self.ask("squeue", "--noheader", "--array", "--format=%i|%T")}

    def accounts(self, number: str) -> list[list[str]]:
        """Wait until all jobs of `number` have ended; return number, state, start and end of each."""
        fields = ("--allocations", "--noheader", "--parsable2", "--format=JobID,State,Start,End")
        self.wait_until(lambda states: not any(one.partition("_")[0] == number for one in states))
        deadline = time.monotonic() + 60  # the accounting records follow a little later
        while {"PENDING", "RUNNING"} & {row[1] for row in self.ask("sacct", "-j", number, *fields)}:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return self.ask("sacct", "-j", number, *fields)

    def wait_until(self, condition: Callable[[dict[str, str]], bool], limit_s: float = 120) -> dict[str, str]:
        """Wait until the states of the jobs meet `condition`, and return them."""
        deadline = time.monotonic() + limit_s
        while not condition(states := self.jobs()):
            assert time.monotonic() < deadline, f"after {limit_s} s the jobs are {states}"
            time.sleep(0.2)
        return states


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        unavailable("it is started as root, on a machine with apt-get")
    # Not pytest's own folder, which the daemons' users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    log = folder / "start.log"
    try:
        with log.open("w") as output:  # not a pipe, which the daemons would hold open
            started = subprocess.run([HERE / "start_cluster.sh", folder], stdout=output, stderr=output, check=False)
        if started.returncode != 0:
            unavailable("start_cluster.sh failed: " + "; ".join(log.read_text().splitlines()[-3:]))
        yield Cluster(folder)
    finally:
        if (folder / "etc/slurm.conf").exists():
            subprocess.run([HERE / "stop_cluster.sh", folder], check=True)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cluster: Cluster, cache: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts run.py launcher=slurm with small runs in `tmp_path`/sweep, from outside the project."""
    processes = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, RUN, *arguments, "launcher=slurm", "slurm.cpus_per_task=1", *SMALL]
        command += [f"cache_dir={cache}", f"hydra.sweep.dir={tmp_path}/sweep"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=cluster.environment, text=True, **pipes))
        return processes[-1]

    yield popen
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    cluster.ask("scancel", "--user=root")
    cluster.wait_until(lambda states: not states)
