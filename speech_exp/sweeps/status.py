"""Read the progress of the runs of a sweep from their folders, at any time."""

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

from speech_exp.folder_names import best_checkpoints
from speech_exp.runs.bounded_files import read_json
from speech_exp.runs.environment import process_lives
from speech_exp.runs.reading import RECORD_FILES, config_of
from speech_exp.runs.record import read_history
from speech_exp.runs.schema import validate_run
from speech_exp.safe_text import printable, visible
from speech_exp.sweeps.record import OUTCOME_FILE, SWEEP_FILE, Sweep, read_sweep

# silent: runs on another machine, but has written nothing for long; stopped: interrupted, or ended without an outcome
STATES = ("done", "running", "waiting", "silent", "stopped", "failed")
SILENT_AFTER_S = 600.0
_TRACE_LINES = 6  # shown here; run.json has more


@dataclass(frozen=True)
class RunState:
    name: str  # path of its folder below the sweep folder
    state: str  # one of STATES
    epoch: int | None = None  # the last finished epoch
    epochs: int | None = None  # number of epochs in the config
    seconds: float | None = None  # since its start
    metrics: tuple[tuple[str, float], ...] = ()  # of the last epoch
    reason: str | None = None  # why it is not done, or what it lacks
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepStatus:
    folder: Path
    runs: tuple[RunState, ...]
    sweep: Sweep | None  # None if no recorded sweep started the runs
    over: bool  # no process will start further jobs
    problem: str | None = None  # why `sweep` is None although sweep.json exists

    @property
    def missing(self) -> list[RunState]:
        return [run for run in self.runs if run.state != "done"]


def sweep_status(folder: Path, silent_after_s: float = SILENT_AFTER_S) -> SweepStatus:
    """Return the state of the jobs listed in sweep.json or, if it lists none, of all run folders below `folder`.

    Raises a ValueError if there is neither.
    """
    sweep = problem = None
    try:
        sweep = read_sweep(folder) if os.path.lexists(folder / SWEEP_FILE) else None
    except ValueError as error:
        problem = f"broken record: {printable(error, 500)}"
    names = [job.folder for job in sweep.jobs] if sweep is not None else []
    if not names:
        names = sorted(path.relative_to(folder).as_posix() for path in _run_folders(folder))
    if not names and sweep is None:
        if problem is not None:
            raise ValueError(problem)
        raise ValueError(
            f"runs={folder} contains neither {SWEEP_FILE} nor run folders: set runs to the folder of a sweep"
        )
    runs = tuple(_run_state(folder / name, name, silent_after_s) for name in names)
    return SweepStatus(folder, runs, sweep, _over(sweep, runs), problem)


def status_text(status: SweepStatus) -> str:
    """Return one line per run in the order of the jobs, then what failed and how to continue."""
    counts = Counter(run.state for run in status.runs)
    counted = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none started"
    cells = [(run.state, run.name, *_progress(run)) for run in status.runs]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    total = f"{len(status.runs)} run{'s' * (len(status.runs) != 1)}"
    return visible("\n".join([f"{status.folder}: {total}, {counted}", *rows, *_missing_lines(status)]))


def missing_text(status: SweepStatus) -> str:
    """Return what is not done, why, and the command that runs it; empty if everything is done."""
    if not status.missing:
        return ""
    unexplained = [f"{run.state} {run.name}" for run in status.missing if run.reason is None]
    headline = f"{len(status.missing)} of {len(status.runs)} runs are not done:"
    return visible("\n".join([headline, *unexplained, *_missing_lines(status)]))


def _missing_lines(status: SweepStatus) -> list[str]:
    lines = [] if status.problem is None else ["", status.problem]
    for run in status.runs:
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
    """Yield the folders of runs; a run inside another one, such as a teacher, is part of it."""
    for place, folders, file_names in os.walk(folder):
        if any(name in file_names for name in (*RECORD_FILES, OUTCOME_FILE)):
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
        epochs = config_of(record).get("trainer.epochs") if record else None
    except (ValueError, OSError) as error:
        return RunState(name, "failed", reason=f"broken record: {printable(error, 500)}")
    last = history[-1] if history else {}
    return RunState(
        name,
        state,
        int(last["epoch"]) if math.isfinite(last.get("epoch", math.nan)) else None,
        epochs if isinstance(epochs, int) else None,
        _seconds(folder, record, state),
        tuple((key, value) for key, value in last.items() if key.startswith("val_") and not math.isnan(value)),
        reason,
        trace,
    )


def _judge(folder: Path, record: dict[str, Any], silent_after_s: float) -> tuple[str, str | None, tuple[str, ...]]:
    """Return state, reason and traceback of a run that has a folder."""
    # Jobs of a sweep write an outcome, whatever their action; a run outside a sweep, or a killed one, has only its run.json.
    ended = _read(folder / OUTCOME_FILE) or record
    if ended.get("status") == "finished":
        return "done", _missing_checkpoint(folder, record), ()
    if ended.get("status") == "failed":
        return "failed", str(ended.get("error")), tuple(ended.get("trace") or ())
    if ended.get("status") == "interrupted":
        return "stopped", str(ended.get("error")), ()
    if record.get("host") == socket.gethostname():
        alive = process_lives(record.get("pid"), record.get("process_started_s"))
        return ("running", None, ()) if alive else ("stopped", f"its process {record.get('pid')} has ended", ())
    silent_s = time.time() - _last_sign_s(folder)
    if silent_s <= silent_after_s:
        return "running", None, ()
    return (
        "silent",
        f"nothing written for {silent_s / 60:,.0f} minutes on {record.get('host', 'an unknown machine')}",
        (),
    )


def _missing_checkpoint(folder: Path, record: dict[str, Any]) -> str | None:
    """Report a finished training without its best checkpoint: it can be compared, but neither evaluated nor used."""
    trained = record.get("status") == "finished"
    return "its best checkpoint is missing" if trained and not best_checkpoints(folder) else None


def _last_sign_s(folder: Path) -> float:
    """Return the time of the last change in seconds since 1970; writing a checkpoint changes its folder."""
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
        return not process_lives(sweep.pid, sweep.process_started_s)
    return not any(run.state in ("running", "waiting") for run in runs)  # waiting runs may still start there


def _read(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    record = read_json(path)
    validate_run(record, path.name)
    return record
