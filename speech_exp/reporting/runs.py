"""Run folders, found and read: what each run found, under which settings, or why it cannot be counted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_exp.reporting.results_schema import validate_results
from speech_exp.reporting.run_record import read_history

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
# A run's own parts; nothing below them is a run to be compared: a run below another (a teacher) is part of it.
RECORD_FILES = ("run.json", "results.json")


@dataclass(frozen=True)
class Run:
    """One run folder; `results` is None where it is unfinished or its record is broken, and `problem` says why."""

    name: str  # path below the searched folder, with "/" on every system
    folder: Path
    status: str  # of run.json; "unknown" without one
    results: dict[str, Any] | None
    problem: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)  # what the user typed
    config: dict[str, Any] = field(default_factory=dict)  # composed config, flat: {"trainer.lr": 0.001}
    history: list[dict[str, float]] = field(default_factory=list)
    run_info: dict[str, Any] = field(default_factory=dict)  # run.json


def result_at(run: Run, *keys: str) -> float | None:
    """The number under these keys of results.json, None where the run has none."""
    found: Any = run.results
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


def find_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """All run folders at or below `folder`, sorted by name: those with a run.json or a results.json.

    A folder that cannot be read as a finished run is returned with its `problem`, never raised for.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ValueError(
            f"runs={folder} is no folder, expected one that holds run folders: set runs to an existing folder"
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
        if (folder / "run.json").is_file():
            run_info = read_json(folder / "run.json")
            status = str(run_info.get("status", "unknown"))
        overrides = _overrides(folder / ".hydra" / "overrides.yaml")
        config = read_config(folder / ".hydra" / "config.yaml")
        if not (folder / "results.json").is_file():
            why = _why_unfinished(status, run_info)
            return Run(name, folder, status, None, why, overrides, config, run_info=run_info)
        results = read_json(folder / "results.json")
        validate_results(results, allow_unknown=True)
        history = read_history(folder / "history.csv") if (folder / "history.csv").is_file() else []
    except (ValueError, OSError) as error:  # JSON and Unicode errors are ValueErrors
        return Run(name, folder, status, None, f"broken record: {error}", run_info=run_info)
    return Run(name, folder, status, results, None, overrides, config, history, run_info)


def _why_unfinished(status: str, run_info: Mapping[str, Any]) -> str:
    error = run_info.get("error")
    return f"no results.json, status {status}" + (f": {' '.join(str(error).split())}" if error else "")


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; anything else raises a ValueError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, expected a dict")
    return value


def _read_yaml(path: Path) -> Any:
    import yaml

    if not path.is_file():
        return None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None


def _overrides(path: Path) -> dict[str, str]:
    """Hydra's list of typed overrides as {key: value text}; `~key` reads as `deleted`."""
    lines = _read_yaml(path) or []
    if not isinstance(lines, list):
        raise ValueError(f"{path.name} holds a {type(lines).__name__}, expected a list of overrides")
    pairs = {}
    for line in map(str, lines):
        key, _, value = line.partition("=")
        pairs[key.lstrip("+~")] = "deleted" if key.startswith("~") else value
    return pairs


def read_config(path: Path) -> dict[str, Any]:
    """A run's composed config, flat; empty where the run has none."""
    value = _read_yaml(path) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds a {type(value).__name__}, expected a dict")
    flat = dict(_flat(value, ""))
    return {key: _owned(item, flat) for key, item in flat.items()}


def _owned(item: Any, flat: Mapping[str, Any]) -> Any:
    """The number behind an interpolation such as ${recipe.epochs}: typed out it is the same setting.

    ${seed} stays as it is: what follows the seed repeats a setting instead of changing it.
    """
    while (
        isinstance(item, str) and (found := _INTERPOLATION.fullmatch(item)) and found[1] in flat and found[1] != "seed"
    ):
        item = flat[found[1]]
    return item


def _flat(value: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, item in value.items():
        items += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) and item else [(f"{prefix}{key}", item)]
    return items
