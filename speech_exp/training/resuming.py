"""Decide whether a run starts, resumes from a training state, or is already finished."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from speech_exp.folder_names import best_checkpoints
from speech_exp.training.state import states

Resume = bool | str | None
_LOCK = ".lock"


@dataclass(frozen=True)
class Plan:
    """What to do in a run folder.

    `finished` contains the results if nothing is left to do; `start` is the folder of training states to resume from,
    `threads` the number of CPU threads that its run used; `note` is a message for the user.
    """

    finished: dict[str, Any] | None = None
    start: Path | None = None
    note: str | None = None
    threads: int | None = None


def plan(folder: Path, resume: Resume, config_hash: str) -> Plan:
    """Decide what to do according to `resume`.

    false starts over. true or null resumes what the folder contains. A run folder resumes from there, unless this folder
    already has states of the same run (a requeued job). Only resume=false may replace states or results of a different run;
    otherwise that is a ValueError.
    """
    record, results, checkpoints = _read(folder / "run.json"), _read(folder / "results.json"), folder / "checkpoints"
    same = record is not None and record.get("config_hash") == config_hash
    outputs = [folder / "results.json", folder / "predictions.csv", *best_checkpoints(folder), *states(checkpoints)]
    has_outputs = any(path.exists() for path in outputs)
    if resume is False:
        if has_outputs:
            return Plan(note=f"resume=false: the run in {folder} is replaced")
        return Plan()
    if record is not None and same and record.get("status") == "finished" and results is not None:
        return Plan(finished=results)
    if states(checkpoints) and (same or resume is True):  # StateFiles refuses a state of a different run
        return Plan(start=checkpoints, threads=_threads(folder))
    if has_outputs and not same:
        what, way_out = (
            ("a run with a different config", "repeat its command")
            if record is not None
            else ("a run whose run.json is missing or damaged", "resume from its training state with resume=true")
        )
        raise ValueError(
            f"{folder} contains {what}: set hydra.run.dir to another folder, {way_out}, or replace it with resume=false"
        )
    if isinstance(resume, str):
        if not states(Path(resume) / "checkpoints"):
            raise ValueError(
                f"resume={resume} contains no training state (checkpoints/checkpoint_epoch_N.pt): give the folder of a run that "
                f"has begun"
            )
        return Plan(start=Path(resume) / "checkpoints", threads=_threads(Path(resume)))
    if resume is True:
        return Plan(note=f"resume=true: {folder} contains nothing to resume, so the run starts")
    return Plan()


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder against other processes; the lock is released even if this process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / _LOCK), folder / f"{_LOCK}.owner"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = note.read_text(encoding="utf-8") if note.exists() else "another process"
        raise ValueError(
            f"{folder} is in use by {owner}: wait until it ends, or set hydra.run.dir to another folder"
        ) from None
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _threads(folder: Path) -> int | None:
    """Return the number of CPU threads that run.json records for the last process of a run; None if it records none."""
    try:
        threads = (_read(folder / "run.json") or {})["sessions"][-1]["threads"]
    except (KeyError, IndexError, TypeError):
        return None
    return threads if type(threads) is int and threads > 0 else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
