"""What a sweep is made of and what became of its jobs: sweep.json in its folder, outcome.json in the folder of a job."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speech_exp.reporting import files
from speech_exp.reporting.run_record import TRACE_LINES, now
from speech_exp.reporting.runs import read_json

SWEEP_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True)
class Job:
    folder: str  # below the sweep's
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """`jobs` are all that will run; none where the sweeper chooses the next by the results of the last."""

    command: str  # as typed
    rerun: str  # command that runs what is missing
    host: str
    pid: int  # of the process that starts the jobs
    started: str
    finished: str | None  # None while that process goes on, and if it was killed
    jobs: tuple[Job, ...]


def start_sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.json of the sweep that this process starts; two jobs with one folder raise a ValueError."""
    numbers: dict[str, int] = {}
    for number, job in enumerate(jobs):
        if numbers.setdefault(job.folder, number) != number:
            raise ValueError(
                f"jobs {numbers[job.folder]} and {number} of the sweep would share the folder {job.folder}: name each value "
                "once, sweep over keys that change the result, and leave hydra.sweep.subdir as it is"
            )
    words = [Path(sys.executable).name, *sys.argv]
    sweep = Sweep(
        shlex.join(words), rerun_command(words, folder), socket.gethostname(), os.getpid(), now(), None, tuple(jobs)
    )
    files.write_json(folder / SWEEP_FILE, asdict(sweep))


def finish_sweep(folder: Path) -> None:
    files.write_json(folder / SWEEP_FILE, asdict(replace(read_sweep(folder), finished=now())))


def read_sweep(folder: Path) -> Sweep:
    content = read_json(folder / SWEEP_FILE)
    jobs = tuple(Job(job["folder"], tuple(job["overrides"])) for job in content.pop("jobs"))
    return Sweep(**content, jobs=jobs)


def rerun_command(words: Sequence[str], folder: Path) -> str:
    """The sweep's command that goes on in its folder."""
    kept = [word for word in words if not word.startswith(("hydra.sweep.dir=", "resume="))]
    # Beside the other overrides: Hydra's command line does not allow flags between them.
    last = max((at for at, word in enumerate(kept) if "=" in word and word[0] != "-"), default=len(kept) - 1)
    path = str(folder)
    if not re.fullmatch(r"[\w./:+-]+", path):
        # In Hydra's quotes; a backslash means itself except before a quote.
        path = "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), path) + "'"
    return shlex.join([*kept[: last + 1], f"hydra.sweep.dir={path}", "resume=true", *kept[last + 1 :]])


def start_job(folder: Path) -> None:
    """An earlier attempt's outcome no longer holds."""
    (folder / OUTCOME_FILE).unlink(missing_ok=True)


def finish_job(folder: Path, error: BaseException | None) -> dict[str, Any]:
    """Write outcome.json, also where the job failed before its record began: status, error, last lines of the trace."""
    outcome: dict[str, Any] = {"status": "finished", "error": None, "trace": None}
    if error is not None:
        cause = error.__cause__ or error  # behind an error in the form for users
        trace = "".join(traceback.format_exception(cause)).rstrip().splitlines()
        outcome = {"status": "failed", "error": f"{type(cause).__name__}: {cause}", "trace": trace[-TRACE_LINES:]}
    files.write_json(folder / OUTCOME_FILE, outcome)
    return outcome
