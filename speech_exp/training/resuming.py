"""Whether a run starts, goes on from a training state, or was finished before."""

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

from speech_exp.training.state import newest

Resume = bool | str | None
_LOCK = ".lock"


@dataclass(frozen=True)
class Plan:
    """What to do in a run folder: `finished` holds its results where nothing is left to do, `start` the folder of
    training states to go on from."""

    finished: dict[str, Any] | None = None
    start: Path | None = None


def plan(folder: Path, resume: Resume, config_hash: str) -> Plan:
    """By `resume`: true goes on, or starts where nothing was begun; false starts anew; a run folder goes on from there,
    unless this one has come further already (a job that was put into the queue again).

    None goes on in a folder where the same run (by its config's hash) was begun, and starts anew elsewhere.
    """
    if isinstance(resume, str):
        own = plan(folder, None, config_hash)
        if own != Plan():
            return own
        other = Path(resume)
        if newest(other / "checkpoints") is None:
            raise ValueError(
                f"resume={resume} holds no training state (checkpoints/checkpoint_epoch_N.pt): name the folder of a run that "
                f"was begun"
            )
        return Plan(start=other / "checkpoints")
    begun = _read(folder / "run.json")
    if resume is False or begun is None or (resume is None and begun.get("config_hash") != config_hash):
        return Plan()
    results = _read(folder / "results.json")
    if begun.get("status") == "finished" and results is not None and begun.get("config_hash") == config_hash:
        return Plan(finished=results)
    return Plan(start=folder / "checkpoints" if newest(folder / "checkpoints") else None)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; a process that is killed leaves it open."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / _LOCK), folder / f"{_LOCK}.owner"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = note.read_text(encoding="utf-8") if note.exists() else "another process"
        raise ValueError(
            f"{folder} is in use by {owner}: wait for its end, or set hydra.run.dir to another folder"
        ) from None
    try:
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
