"""Record the jobs of a sweep (sweep.json in its folder) and how each one ended (outcome.json in the folder of the job)."""

from __future__ import annotations

import re
import shlex
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speech_exp import files
from speech_exp.runs import environment
from speech_exp.runs.bounded_files import read_json
from speech_exp.runs.environment import now
from speech_exp.runs.record import TRACE_LINES

SWEEP_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True)
class Job:
    folder: str  # path below the sweep folder
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Content of sweep.json; `jobs` lists all jobs, or none if the sweeper chooses jobs by the results of earlier ones."""

    command: str  # as typed
    rerun: str  # command that runs the missing jobs
    host: str
    pid: int  # of the process that starts the jobs
    process_started_s: float  # start of that process, in seconds since 1970
    started: str
    finished: str | None  # None while that process runs, or if it was killed
    jobs: tuple[Job, ...]


def start_sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.json for the sweep that this process starts; raise ValueError if two jobs share a folder."""
    numbers: dict[str, int] = {}
    for number, job in enumerate(jobs):
        if numbers.setdefault(job.folder, number) != number:
            raise ValueError(
                f"jobs {numbers[job.folder]} and {number} of the sweep would share the folder {job.folder}: list each value "
                "once, sweep over keys that change the result, and do not set hydra.sweep.subdir"
            )
    words = [Path(sys.executable).name, *sys.argv]
    sweep = Sweep(
        shlex.join(words),
        rerun_command(words, folder),
        socket.gethostname(),
        **environment.process(),
        started=now(),
        finished=None,
        jobs=tuple(jobs),
    )
    files.write_json(folder / SWEEP_FILE, asdict(sweep))


def finish_sweep(folder: Path) -> None:
    files.write_json(folder / SWEEP_FILE, asdict(replace(read_sweep(folder), finished=now())))


def read_sweep(folder: Path) -> Sweep:
    content = read_json(folder / SWEEP_FILE)
    try:
        jobs = tuple(Job(_text(job["folder"]), tuple(map(_text, job["overrides"]))) for job in content.pop("jobs"))
        sweep = Sweep(**content, jobs=jobs)
        for text in (sweep.command, sweep.rerun, sweep.host, sweep.started, sweep.finished or ""):
            _text(text)
        places = [Path(job.folder) for job in jobs]
        if any(place.is_absolute() or ".." in place.parts or "\0" in str(place) for place in places):
            raise TypeError("a job's folder is outside the sweep folder")
        return sweep
    except (KeyError, TypeError):
        raise ValueError(
            f"{folder / SWEEP_FILE} is not the record of a sweep: remove it, or choose another folder"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def rerun_command(words: Sequence[str], folder: Path, key: str = "hydra.sweep.dir") -> str:
    """Return the command that resumes in the folder of a sweep, or of a run with the key hydra.run.dir."""
    kept = [word for word in words if not word.startswith((f"{key}=", "resume="))]
    # Insert next to the other overrides: Hydra's command line does not allow flags between them.
    last = max((at for at, word in enumerate(kept) if "=" in word and word[0] != "-"), default=len(kept) - 1)
    path = str(folder)
    if not re.fullmatch(r"[\w./:+-]+", path):
        # Quote for Hydra, where a backslash is literal except before a quote.
        path = "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), path) + "'"
    return shlex.join([*kept[: last + 1], f"{key}={path}", "resume=true", *kept[last + 1 :]])


def start_job(folder: Path) -> None:
    """Delete the outcome of an earlier attempt."""
    (folder / OUTCOME_FILE).unlink(missing_ok=True)


def finish_job(folder: Path, error: BaseException | None) -> dict[str, Any]:
    """Write outcome.json (status, error, last lines of the traceback), even if the job failed before writing run.json."""
    outcome: dict[str, Any] = {"status": "finished", "error": None, "trace": None}
    if error is not None:
        cause = error.__cause__ or error  # the original error behind one reworded for users
        trace = "".join(traceback.format_exception(cause)).rstrip().splitlines()
        outcome = {"status": "failed", "error": f"{type(cause).__name__}: {cause}", "trace": trace[-TRACE_LINES:]}
    files.write_json(folder / OUTCOME_FILE, outcome)
    return outcome
