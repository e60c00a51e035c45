"""Files that record a run in its folder: run.json, run.log, history.csv, results.json, predictions.csv."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from speech_exp import files, ranks
from speech_exp.runs import environment
from speech_exp.runs.bounded_files import read_csv
from speech_exp.runs.schema import validate_results
from speech_exp.safe_text import without_credentials

PREDICTION_COLUMNS = ("id", "reference", "prediction", "score")
# Written if known; `recordings` are the ids, in order, of the recordings that were joined to a string.
ORIGIN_COLUMNS = ("speaker", "recordings")
STATUSES = ("running", "finished", "interrupted", "failed")
TRACE_LINES = 20


class Prediction(NamedTuple):
    reference: str
    prediction: str
    speaker: str = ""  # empty if unknown
    recordings: tuple[str, ...] = ()  # joined to make the utterance; empty if it was recorded as a whole


Predictions = dict[str, Prediction]  # by utterance id


class RunRecord:
    """Writes the record of the run in `folder`.

    Use it as `with record.start(...)`: run.json then says how the block ended. Only a killed process leaves the status
    `running`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writes = ranks.rank() == 0  # of several ranks, only the first writes
        self._run: dict[str, Any] = {}

    def start(
        self,
        *,
        seed: int,
        config_hash: str,
        device: str,
        setup: Mapping[str, Any],
        sessions: Sequence[Mapping[str, Any]],
        resumes: bool = False,
    ) -> AbstractContextManager[None]:
        """Write run.json with status `running`; return a context that ends it as `finished`, `interrupted` or `failed`.

        Unless the run `resumes` an earlier one, what that one left in the folder is removed. `device` is a name such as
        `cpu` or `cuda:0`; `setup` contains the config, the group choices and the typed overrides; `sessions` describe all
        processes that worked on the run (`environment.session`), this one last.
        """
        if self._writes:
            self._start(seed, config_hash, device, setup, sessions, resumes)
        return self._ending()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Record how the block ends; exceptions propagate."""
        try:
            yield
        except BaseException as error:
            # Neither a full disk nor the end of another rank may hide why the run ended.
            with contextlib.suppress(OSError), ranks.deferring_sigterm():
                if elsewhere := ranks.peer_failure():
                    text, failed = elsewhere
                    self.finish("failed" if failed else "interrupted", error=text)
                elif stopped := _stopped_by(error):
                    self.finish("interrupted", error=stopped)
                else:
                    self.finish("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            raise
        self.finish("finished")

    def _start(
        self,
        seed: int,
        config_hash: str,
        device: str,
        setup: Mapping[str, Any],
        sessions: Sequence[Mapping[str, Any]],
        resumes: bool,
    ) -> None:
        session = sessions[-1]
        old = [self.folder / name for name in ("results.json", "predictions.csv", "history.csv")]
        for path in [] if resumes else [*old, *(self.folder / "checkpoints").glob("checkpoint_epoch_*")]:
            path.unlink(missing_ok=True)
        self._run = {
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "git": {key: session[key] for key in ("commit", "dirty")},
            "versions": environment.versions(),
            **environment.machine(device),
            **environment.process(),
            "processes": session["processes"],
            "sessions": list(sessions),
            "seed": seed,
            "config_hash": config_hash,
            **setup,
            "data_fingerprint": None,
            "dropped": [],
            "started": session["started"],
            "resumes": resumes,  # whether it continues what an earlier process began
            "finished": None,
            "status": "running",
            "error": None,
            "trace": None,
        }
        self._write_run()

    def log(self, lines: Iterable[str]) -> None:
        """Append lines to run.log, each with the time."""
        if self._writes:
            with open(self.folder / "run.log", "a", encoding="utf-8") as file:
                file.writelines(f"{environment.now()}  {line}\n" for line in lines)

    def data_read(self, fingerprint: str, dropped: Iterable[Mapping[str, str]] = ()) -> None:
        """Record which data the run reads; the items of `dropped` have `id` and `reason`."""
        items = [dict(item) for item in dropped]
        for item in items:
            if set(item) != {"id", "reason"}:
                raise ValueError(f"a dropped utterance has the keys {sorted(item)}, expected id and reason")
        self._run["data_fingerprint"] = fingerprint
        self._run["dropped"] = items
        self._write_run()

    def finish(self, status: str, error: str | None = None, trace: str | None = None) -> None:
        """Set the final status; only the last lines of `trace`, the text of a traceback, are kept."""
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}, expected one of {', '.join(STATUSES)}")
        error, trace = (text and without_credentials(text) for text in (error, trace))
        last_lines = trace.rstrip().splitlines()[-TRACE_LINES:] if trace else None
        self._run.update(status=status, error=error, trace=last_lines, finished=environment.now())
        self._write_run()

    def write_history(self, rows: Sequence[Mapping[str, float | int | str | None]]) -> Path:
        """Write history.csv with all epochs so far; the first row determines the columns.

        None gives an empty cell. Unlike JSON, CSV may contain NaN, and a diverging loss is worth seeing.
        """
        columns = list(rows[0]) if rows else []
        for row in rows:
            if set(row) != set(columns):
                unknown, missing = sorted(set(row) - set(columns)), sorted(set(columns) - set(row))
                raise ValueError(
                    f"an epoch's row has unknown columns {unknown} and lacks {missing}, expected those of the first row: "
                    f"{', '.join(columns)}; write None for a value that an epoch does not measure"
                )
        return files.write_text(self.folder / "history.csv", files.csv_text(columns, rows))

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Check the results against their schema and write results.json; write nothing if a key or value is wrong."""
        plain_results = files.plain(results, "results.json")
        validate_results(plain_results)
        return files.write_json(self.folder / "results.json", plain_results)

    def write_predictions(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        return write_predictions(self.folder / "predictions.csv", rows)

    def _write_run(self) -> None:
        if self._writes:
            files.write_json(self.folder / "run.json", self._run)


def _stopped_by(error: BaseException) -> str | None:
    """Return who asked the run to end; None if it failed. A signal's exit status is 128 plus its number."""
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: stopped by the user"
    if isinstance(error, SystemExit):
        return next((f"{one.name}: stopped by a signal" for one in signal.Signals if error.code == 128 + one), None)
    return None


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of a history.csv in order, without its text columns; empty cells are NaN.

    A broken row raises a ValueError that names it.
    """
    lines = read_csv(path)
    if not lines:
        raise ValueError(f"{path.name} is empty, expected a header and one row per epoch")
    header, rows = lines[0], lines[1:]
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(header):
            raise ValueError(f"{path.name} line {number} has {len(cells)} cells, expected {len(header)}")
    columns = {key: _numbers([cells[at] for cells in rows]) for at, key in enumerate(header)}
    numeric = {key: values for key, values in columns.items() if values is not None}
    return [{key: values[at] for key, values in numeric.items()} for at in range(len(rows))]


def write_predictions(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one row per utterance with `id`, `reference`, `prediction`, `score` (probability).

    The columns `speaker` and `recordings` (ids separated by spaces) are written if at least one row has them.
    """
    rows = list(rows)
    for row in rows:
        if set(row) - set(ORIGIN_COLUMNS) != set(PREDICTION_COLUMNS):
            raise ValueError(
                f"a prediction has the columns {sorted(row)}, expected {', '.join(PREDICTION_COLUMNS)} "
                f"and, where known, {', '.join(ORIGIN_COLUMNS)}"
            )
    known = [column for column in ORIGIN_COLUMNS if any(row.get(column) for row in rows)]
    columns = [PREDICTION_COLUMNS[0], *known, *PREDICTION_COLUMNS[1:]]
    return files.write_text(path, files.csv_text(columns, rows))


def read_predictions(path: Path) -> Predictions:
    """Return the content of a predictions.csv by utterance; raise ValueError if it is missing or malformed."""
    if not path.is_file():
        raise ValueError(f"{path.parent.name} has no {path.name}")
    header, *lines = read_csv(path) or [[]]
    if not set(PREDICTION_COLUMNS).issubset(header):
        raise ValueError(
            f"{path.parent.name}/{path.name} does not have all of the columns {', '.join(PREDICTION_COLUMNS)}"
        )
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise ValueError(
                f"{path.parent.name}/{path.name} line {number} has {len(cells)} cells, expected {len(header)}"
            )
    rows = [dict(zip(header, cells, strict=True)) for cells in lines]
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(f"{path.parent.name}/{path.name} contains an utterance twice")
    return {row["id"]: _prediction(row) for row in rows}


def _prediction(row: Mapping[str, str]) -> Prediction:
    recordings = (row.get("recordings") or "").split()
    return Prediction(row["reference"], row["prediction"], row.get("speaker") or "", tuple(recordings))


def _numbers(cells: Sequence[str]) -> list[float] | None:
    """Return a column's values; None if a cell contains text, such as the name of a phase."""
    try:
        return [float(cell) if cell else float("nan") for cell in cells]
    except ValueError:
        return None
