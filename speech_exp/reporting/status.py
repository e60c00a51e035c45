"""How far the runs of a sweep are, read from their folders at any time."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from speech_exp.reporting.run_record import read_history
from speech_exp.reporting.runs import RECORD_FILES, read_config, read_json
from speech_exp.reporting.sweep_record import OUTCOME_FILE, SWEEP_FILE, Sweep, read_sweep

# silent: on another machine, and no sign of life for long; stopped: its process has ended and left no outcome
STATES = ("done", "running", "waiting", "silent", "stopped", "failed")
SILENT_AFTER_S = 600.0
_TRACE_LINES = 6  # shown; run.json has more


@dataclass(frozen=True)
class RunState:
    name: str  # of its folder, below the sweep's
    state: str  # one of STATES
    epoch: int | None = None  # the last that ended
    epochs: int | None = None  # that the config asks for
    seconds: float | None = None  # since its start
    metrics: tuple[tuple[str, float], ...] = ()  # of the last epoch
    reason: str | None = None  # why it is not done
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepStatus:
    folder: Path
    runs: tuple[RunState, ...]
    sweep: Sweep | None  # None for run folders that no recorded sweep started
    over: bool  # no process starts further jobs

    @property
    def missing(self) -> list[RunState]:
        return [run for run in self.runs if run.state != "done"]


def sweep_status(folder: Path, silent_after_s: float = SILENT_AFTER_S) -> SweepStatus:
    """State of the jobs that sweep.json lists, or, where it lists none, of all run folders below `folder`.

    Raises a ValueError where there is neither.
    """
    sweep = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else None
    names = [job.folder for job in sweep.jobs] if sweep is not None else []
    if not names:
        names = sorted(path.relative_to(folder).as_posix() for path in _run_folders(folder))
    if not names and sweep is None:
        raise ValueError(f"runs={folder} holds neither {SWEEP_FILE} nor run folders: set runs to the folder of a sweep")
    runs = tuple(_run_state(folder / name, name, silent_after_s) for name in names)
    return SweepStatus(folder, runs, sweep, _over(sweep, runs))


def status_text(status: SweepStatus) -> str:
    """One line a run in the order of the jobs, then what failed and how to go on."""
    counts = Counter(run.state for run in status.runs)
    counted = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none started"
    cells = [(run.state, run.name, *_progress(run)) for run in status.runs]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    total = f"{len(status.runs)} run{'s' * (len(status.runs) != 1)}"
    return "\n".join([f"{status.folder}: {total}, {counted}", *rows, *_missing_lines(status)])


def missing_text(status: SweepStatus) -> str:
    """What is not done, why, and the command that runs it; empty where all is done."""
    if not status.missing:
        return ""
    unexplained = [f"{run.state} {run.name}" for run in status.missing if run.reason is None]
    headline = f"{len(status.missing)} of {len(status.runs)} runs are not done:"
    return "\n".join([headline, *unexplained, *_missing_lines(status)])


def _missing_lines(status: SweepStatus) -> list[str]:
    lines = []
    for run in status.missing:
        if run.reason is not None:
            trace = [line for line in run.trace if line.strip(" ^~")][-_TRACE_LINES:]
            lines += ["", f"{run.state} {run.name}", *(f"    {line}" for line in trace or [run.reason])]
    if status.over and status.sweep is not None and status.missing:
        lines += ["", f"rerun: {status.sweep.rerun}"]
    return lines


def _progress(run: RunState) -> tuple[str, str, str]:
    epoch = "" if run.epoch is None else f"epoch {run.epoch}" + (f" of {run.epochs}" if run.epochs else "")
    seconds = "" if run.seconds is None else f"{run.seconds:,.0f} s"
    return epoch, seconds, "  ".join(f"{name} {value:.4g}" for name, value in run.metrics)


def _run_folders(folder: Path) -> Iterator[Path]:
    """A run's own folder only: what lies below it, such as a teacher, is part of it."""
    for place, folders, file_names in os.walk(folder):
        if ".hydra" in folders or any(name in file_names for name in (*RECORD_FILES, OUTCOME_FILE)):
            yield Path(place)
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]


def _run_state(folder: Path, name: str, silent_after_s: float) -> RunState:
    if not folder.is_dir():
        return RunState(name, "waiting")
    try:
        record = _read(folder / "run.json")
        state, reason, trace = _judge(folder, record, silent_after_s)
        history = read_history(folder / "history.csv") if (folder / "history.csv").is_file() else []
        epochs = read_config(folder / ".hydra" / "config.yaml").get("trainer.epochs")
    except (ValueError, OSError) as error:
        return RunState(name, "failed", reason=f"broken record: {error}")
    last = history[-1] if history else {}
    return RunState(
        name,
        state,
        int(last["epoch"]) if "epoch" in last else None,
        epochs if isinstance(epochs, int) else None,
        _seconds(folder, record, state),
        tuple((key, value) for key, value in last.items() if key.startswith("val_") and not math.isnan(value)),
        reason,
        trace,
    )


def _judge(folder: Path, record: dict[str, Any], silent_after_s: float) -> tuple[str, str | None, tuple[str, ...]]:
    """State, reason and trace of a run that has a folder."""
    # A job's outcome holds whatever its action; a run that no sweep started, or that was killed, has its record alone.
    ended = _read(folder / OUTCOME_FILE) or record
    if ended.get("status") == "finished":
        return "done", None, ()
    if ended.get("status") == "failed":
        return "failed", str(ended.get("error")), tuple(ended.get("trace") or ())
    if ended.get("status") == "interrupted":
        return "stopped", str(ended.get("error")), ()
    if record.get("host") == socket.gethostname():
        alive = process_lives(record["pid"])
        return ("running", None, ()) if alive else ("stopped", f"its process {record['pid']} has ended", ())
    silent_s = time.time() - _last_sign_s(folder)
    if silent_s <= silent_after_s:
        return "running", None, ()
    return "silent", f"no sign since {silent_s / 60:,.0f} minutes on {record.get('host', 'an unknown machine')}", ()


def process_lives(pid: int) -> bool:
    """Whether a process of this machine goes on."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _last_sign_s(folder: Path) -> float:
    """Time of the last change, as seconds since 1970; a checkpoint changes its folder."""
    signs = [folder, *(folder / name for name in ("run.json", "history.csv", "checkpoints"))]
    return max(sign.stat().st_mtime for sign in signs if sign.exists())


def _seconds(folder: Path, record: dict[str, Any], state: str) -> float | None:
    if not record.get("started"):
        return None
    started_s = datetime.fromisoformat(record["started"]).timestamp()
    if record.get("finished"):
        return datetime.fromisoformat(record["finished"]).timestamp() - started_s
    return (time.time() if state == "running" else _last_sign_s(folder)) - started_s


def _over(sweep: Sweep | None, runs: tuple[RunState, ...]) -> bool:
    if sweep is None or sweep.finished is not None:
        return True
    if sweep.host == socket.gethostname():
        return not process_lives(sweep.pid)
    return not any(run.state in ("running", "waiting") for run in runs)  # what waits there may still start


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
