"""Files of one run folder that say what ran and what it found: run.json, history.csv, results.json, predictions.csv."""

from __future__ import annotations

import contextlib
import csv
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from speech_exp import ranks
from speech_exp.reporting import environment, files
from speech_exp.reporting.results_schema import validate_results

PREDICTION_COLUMNS = ("id", "reference", "prediction", "score")
Predictions = dict[str, tuple[str, str]]  # utterance id: reference, prediction
STATUSES = ("running", "finished", "interrupted", "failed")
TRACE_LINES = 20


class RunRecord:
    """Writes the record of the run in `folder`.

    The way to use it is `with record.running(...)`: whatever ends the block, run.json tells it. Only a killed process
    leaves `running` behind.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writes = ranks.number() == 0  # one of several processes that train together
        self._run: dict[str, Any] = {}

    @contextlib.contextmanager
    def running(
        self,
        *,
        seed: int,
        config_hash: str,
        device: str,
        command: Sequence[str] | None = None,
        goes_on: bool = False,
    ) -> Iterator[RunRecord]:
        """Start the record, and finish it as `finished`, `interrupted` (Ctrl-C, a signal) or `failed`; exceptions go on."""
        self.start(seed=seed, config_hash=config_hash, device=device, command=command, goes_on=goes_on)
        try:
            yield self
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
                if stopped := _stopped_by(error):
                    self.finish("interrupted", error=stopped)
                else:
                    self.finish("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            raise
        self.finish("finished")

    def start(
        self,
        *,
        seed: int,
        config_hash: str,
        device: str,
        command: Sequence[str] | None = None,
        goes_on: bool = False,
    ) -> None:
        """Write run.json with status `running`; what an earlier run left in this folder is removed, unless this one goes on.

        `device` is such as `cpu` or `cuda:0`; `command` defaults to the command line of this process.
        """
        if not self._writes:
            return
        old = [self.folder / name for name in ("results.json", "predictions.csv", "history.csv")]
        for path in [] if goes_on else [*old, *(self.folder / "checkpoints").glob("checkpoint_epoch_*.pt")]:
            path.unlink(missing_ok=True)
        self._run = {
            "command": shlex.join([Path(sys.executable).name, *sys.argv] if command is None else command),
            "git": environment.git_state(),
            "versions": environment.versions(),
            **environment.machine(device),
            "processes": ranks.count(),
            "pid": os.getpid(),
            "seed": seed,
            "config_hash": config_hash,
            "data_fingerprint": None,
            "dropped": [],
            "started": now(),
            "goes_on": goes_on,  # with what an earlier process had begun
            "finished": None,
            "status": "running",
            "error": None,
            "trace": None,
        }
        self._write_run()

    def ended_elsewhere(self, error: str, failed: bool) -> None:
        """Another process that trains with this one ended, by an error or by a signal."""
        self.finish("failed" if failed else "interrupted", error=error)

    def data_read(self, fingerprint: str, dropped: Iterable[Mapping[str, str]] = ()) -> None:
        """Record which data the run reads; `dropped` items have `id` and `reason`."""
        items = [dict(item) for item in dropped]
        for item in items:
            if set(item) != {"id", "reason"}:
                raise ValueError(f"a dropped utterance has the keys {sorted(item)}, expected id and reason")
        self._run["data_fingerprint"] = fingerprint
        self._run["dropped"] = items
        self._write_run()

    def finish(self, status: str, error: str | None = None, trace: str | None = None) -> None:
        """Set the final status; of `trace`, the text of a traceback, the last lines are kept."""
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}, expected one of {', '.join(STATUSES)}")
        last_lines = trace.rstrip().splitlines()[-TRACE_LINES:] if trace else None
        self._run.update(status=status, error=error, trace=last_lines, finished=now())
        self._write_run()

    def write_history(self, rows: Sequence[Mapping[str, float | int | str | None]]) -> Path:
        """history.csv of all epochs so far; their columns are those of the first.

        None gives an empty cell. Unlike JSON, CSV may hold NaN, and a diverging loss is worth seeing in it.
        """
        columns = list(rows[0]) if rows else []
        for row in rows:
            if set(row) != set(columns):
                unknown, missing = sorted(set(row) - set(columns)), sorted(set(columns) - set(row))
                raise ValueError(
                    f"an epoch's row has unknown columns {unknown} and lacks {missing}, expected those of the first row: "
                    f"{', '.join(columns)}; write None for what an epoch does not measure"
                )
        return files.write_text(self.folder / "history.csv", files.csv_text(columns, rows))

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """results.json, checked against its schema first; nothing is written when a key or value is wrong."""
        plain_results = files.plain(results, "results.json")
        validate_results(plain_results)
        return files.write_json(self.folder / "results.json", plain_results)

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """predictions.csv: one row a test utterance with `id`, `reference`, `prediction`, `score` (probability)."""
        rows = list(rows)
        for row in rows:
            if set(row) != set(PREDICTION_COLUMNS):
                raise ValueError(
                    f"a prediction has the columns {sorted(row)}, expected {', '.join(PREDICTION_COLUMNS)}"
                )
        return files.write_text(self.folder / "predictions.csv", files.csv_text(PREDICTION_COLUMNS, rows))

    def _write_run(self) -> None:
        if self._writes:
            files.write_json(self.folder / "run.json", self._run)


def _stopped_by(error: BaseException) -> str | None:
    """Who asked the run to end; None where it failed. A signal's exit status is 128 and its number."""
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: stopped by the user"
    if isinstance(error, SystemExit):
        return next((f"{one.name}: stopped by a signal" for one in signal.Signals if error.code == 128 + one), None)
    return None


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a history.csv in order, columns of text left out; empty cells are NaN.

    A broken row raises a ValueError that names it.
    """
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines:
        raise ValueError(f"{path.name} is empty, expected a header and one row an epoch")
    header, rows = lines[0], lines[1:]
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(header):
            raise ValueError(f"{path.name} line {number} has {len(cells)} cells, expected {len(header)}")
    columns = {key: _numbers([cells[at] for cells in rows]) for at, key in enumerate(header)}
    numeric = {key: values for key, values in columns.items() if values is not None}
    return [{key: values[at] for key, values in numeric.items()} for at in range(len(rows))]


def read_predictions(path: Path) -> Predictions:
    """What a predictions.csv holds, by utterance; a missing file or another header raises a ValueError."""
    if not path.is_file():
        raise ValueError(f"{path.parent.name} has no {path.name}")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != PREDICTION_COLUMNS:
            raise ValueError(f"{path.parent.name}/{path.name} lacks the columns {', '.join(PREDICTION_COLUMNS)}")
        return {row["id"]: (row["reference"], row["prediction"]) for row in reader}


def _numbers(cells: Sequence[str]) -> list[float] | None:
    """A column's values; None where a cell holds words, such as the name of a phase."""
    try:
        return [float(cell) if cell else float("nan") for cell in cells]
    except ValueError:
        return None


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
