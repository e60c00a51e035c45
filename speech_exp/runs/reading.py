"""Find and read run folders: the results and settings of each run, or why it cannot be counted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_exp.config_roles import config_hash, key_of
from speech_exp.config_types import flat
from speech_exp.runs.bounded_files import read_json
from speech_exp.runs.record import read_history
from speech_exp.runs.schema import validate_results, validate_run
from speech_exp.safe_text import printable

# A folder with one of these files is a run folder; a run inside another run (a teacher) is part of it and not compared.
RECORD_FILES = ("run.json", "results.json")


@dataclass(frozen=True)
class Run:
    """One run folder; if it is unfinished or its record is broken, `results` is None and `problem` says why."""

    name: str  # path below the searched folder, with "/" on every system
    folder: Path
    status: str  # from run.json; "unknown" without one
    results: dict[str, Any] | None
    problem: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)  # what the user typed
    config: dict[str, Any] = field(default_factory=dict)  # composed config, flat: {"trainer.lr": 0.001}
    history: list[dict[str, float]] = field(default_factory=list)
    run_info: dict[str, Any] = field(default_factory=dict)  # run.json


def result_at(run: Run, *keys: str) -> float | None:
    """Return the number under these keys of results.json; None if the run has none."""
    found: Any = run.results
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


def of_sessions(run: Run, key: str) -> set[str]:
    """Return the values of `key` in all recorded sessions of the run."""
    sessions = run.run_info.get("sessions")
    found = [one.get(key) for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []
    return {str(value) for value in found if value is not None}


def find_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Return all run folders (with a run.json or results.json) at or below `folder`, sorted by name.

    A folder that cannot be read as a finished run is returned with its `problem`, without raising an error.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ValueError(
            f"runs={folder} is not a folder, expected one that contains run folders: set runs to an existing folder"
        )
    found = []
    for place, folders, file_names in os.walk(top):
        if any(name in file_names for name in RECORD_FILES):
            found.append(Path(place))
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    names = {path: path.relative_to(top).as_posix() for path in found}
    return [
        _read_run(path, top.resolve().name if names[path] == "." else names[path])
        for path in sorted(found, key=names.__getitem__)
    ]


def _read_run(folder: Path, name: str) -> Run:
    status, run_info = "unknown", {}
    try:
        if not os.path.lexists(folder / "run.json"):  # a broken link is not a missing file
            raise ValueError("run.json is missing")
        run_info = read_json(folder / "run.json")
        validate_run(run_info)
        status = str(run_info.get("status", "unknown"))
        overrides, config = _overrides(run_info), config_of(run_info)
        if not os.path.lexists(folder / "results.json"):
            why = _why_unfinished(status, run_info)
            return Run(name, folder, status, None, why, overrides, config, run_info=run_info)
        results = read_json(folder / "results.json")
        validate_results(results, allow_unknown=True)
        history = read_history(folder / "history.csv") if (folder / "history.csv").is_file() else []
    except (ValueError, OSError) as error:
        return Run(name, folder, status, None, f"broken record: {printable(error, 500)}")
    return Run(name, folder, status, results, None, overrides, config, history, run_info)


def _why_unfinished(status: str, run_info: Mapping[str, Any]) -> str:
    error = run_info.get("error")
    return f"no results.json, status {status}" + (f": {' '.join(str(error).split())}" if error else "")


def config_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flattened config in a run.json; raise ValueError if it does not match its config_hash."""
    config = record.get("config")
    if not isinstance(config, dict):
        raise ValueError("run.json has no config, expected the one that every run of this version writes")
    if config_hash(config) != record.get("config_hash"):
        raise ValueError("run.json contains a config that does not match its config_hash")
    return flat(config)


def _overrides(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the typed overrides as {key: value text}; the value of `~key` is `deleted`."""
    typed = record.get("overrides")
    if not isinstance(typed, list):
        raise ValueError(f"run.json has overrides of type {type(typed).__name__}, expected a list")
    lines = map(str, typed)
    return {key_of(line): "deleted" if line.startswith("~") else line.partition("=")[2] for line in lines}
