"""Sort runs into groups by what varies among them, apart from the seed and the held-out speaker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speech_exp.config_roles import Role, changes_results, keys_of, sets_apart
from speech_exp.runs.reading import Run

RESULT_KEYS = ("dataset", "split", "features", "encoder", "objective", "model", "task", "c_approach", "kd")
DERIVED_KEYS = ("encoder", "objective")  # usually follow from the data set; named only if they distinguish groups
CONSTRAINT_KEYS = ("task", "c_approach", "kd")  # one part of a label: `C apot2 + kd`
SHOWN_BARE = {"dataset", "features", "model"}  # a label shows their values without the key
ORDER = {"model": ("gru", "lstm", "lmu"), "task": ("A", "B1", "B2", "C"), "kd": ("none", "teacher")}
SHOWN_AS = {("task.fine_tune", "True"): "fine-tuned", ("task.fine_tune", "False"): "rounded"}
ABSENT = ""  # value of a key that the run's config does not have, such as task.qat_epochs in task C

Settings = dict[str, str]


@dataclass(frozen=True)
class Interval:
    """95 % interval of a metric; `over` describes what was resampled for it."""

    low: float
    high: float
    over: str


@dataclass(frozen=True)
class Group:
    """Runs of one setting, sorted by seed; `fields` contains the group's value of each key that varies."""

    label: str
    fields: Settings
    runs: tuple[Run, ...]
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # of test metrics, from the runs' predictions

    @property
    def model(self) -> str:
        """Name of the model, whether or not the groups differ in it."""
        results = self.runs[0].results
        assert results is not None
        return str(results["model"])

    @property
    def setting(self) -> str:
        """The label without the model."""
        return _label({key: value for key, value in self.fields.items() if key != "model"})

    @property
    def seeds(self) -> list[int]:
        return sorted({seed(run) for run in self.runs})

    @property
    def speakers(self) -> list[str]:
        """Test speakers of the runs; empty if the split holds out none."""
        return sorted({speaker for run in self.runs if (speaker := test_speaker(run)) is not None})


@dataclass(frozen=True)
class Grouping:
    groups: tuple[Group, ...]
    keys: tuple[str, ...]  # what the groups differ in
    same: Settings  # settings that all runs share
    notes: tuple[str, ...]


def seed(run: Run) -> int:
    assert run.results is not None
    return int(run.results["seed"])


def test_speaker(run: Run) -> str | None:
    assert run.results is not None
    return run.results["test_speaker"] if run.results["split"] == "speaker" else None


def folds(run: Run) -> tuple[str, ...]:
    """Return which part of the data the run holds out, as far as its config says."""
    return tuple(_text(run.config.get(key, run.overrides.get(key))) for key in keys_of(Role.FOLD))


def group_runs(runs: Iterable[Run]) -> Grouping:
    """Group the runs that have results by all keys that vary among them."""
    ordered = sorted(
        (run for run in runs if run.results is not None), key=lambda run: (seed(run), test_speaker(run) or "", run.name)
    )
    if not ordered:
        raise ValueError(
            "no run has a results.json, expected at least one to compare: set runs to a folder with finished runs"
        )
    typed = sorted({key for run in ordered for key in run.overrides if _counts(key)})
    settings = {run.name: _settings(run, typed) for run in ordered}
    if len(settings) < len(ordered):
        raise ValueError("two runs have the same name, expected runs that were found in one search of one folder")
    table = [settings[run.name] for run in ordered]
    varying = [key for key in (*RESULT_KEYS, *typed) if len({row[key] for row in table}) > 1]
    keys, notes = _chosen_keys(table, varying)
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in ordered:
        cells.setdefault(tuple(settings[run.name][key] for key in keys), []).append(run)
    groups = []
    for values in sorted(
        cells, key=lambda values: [_rank(key, value) for key, value in zip(keys, values, strict=True)]
    ):
        fields = dict(zip(keys, values, strict=True))
        label = _label(fields) or (table[0]["model"] if "model" not in varying else "all runs")
        kept, repeated = _without_duplicates(cells[values], settings)
        groups.append(Group(label, fields, tuple(kept)))
        if repeated:
            notes.append(f"{label}: left out because they repeat a seed and setting: {_listed(repeated)}.")
        notes += _hidden_differences(label, kept, varying)
    same = {key: table[0][key] for key in RESULT_KEYS if key not in varying}
    return Grouping(tuple(groups), tuple(keys), same, tuple(notes))


def _counts(key: str) -> bool:
    return key not in RESULT_KEYS and key != "dataset.split" and sets_apart(key)


def _settings(run: Run, typed: Sequence[str]) -> Settings:
    """Return the value of each key as text. Typed keys are read from the composed config: a typed default changes nothing."""
    assert run.results is not None
    values = {key: _text(run.results[key]) for key in RESULT_KEYS}
    for key in typed:
        if key in run.config:
            values[key] = _text(run.config[key])
        else:  # a run of a different task has no such key; without a config the value is unknown
            values[key] = ABSENT if run.config else run.overrides.get(key, "default")
    return values


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chosen_keys(table: Sequence[Settings], varying: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys that distinguish the groups, and notes on other settings that vary with them."""

    def cells(keys: Sequence[str]) -> int:
        return len({tuple(row[key] for key in keys) for row in table})

    keys = [key for key in varying if key in RESULT_KEYS and key not in DERIVED_KEYS]
    notes = []
    for key in varying:
        if key in keys:
            continue
        if cells([*keys, key]) > cells(keys):
            keys.append(key)
        elif key not in DERIVED_KEYS:
            notes.append(f"{key} varies together with {_listed(keys)}, so the groups differ in it too.")
    return keys, notes


def _label(fields: Settings) -> str:
    bare = [value for key, value in fields.items() if key in SHOWN_BARE and value != "none"]
    other = [
        SHOWN_AS.get((key, value), f"{key}={value}")
        for key, value in fields.items()
        if key not in (*SHOWN_BARE, *CONSTRAINT_KEYS) and value != ABSENT
    ]
    return " · ".join(part for part in (*bare, _constraint_label(fields), *other) if part)


def _constraint_label(fields: Settings) -> str:
    words = [fields[key] for key in ("task", "c_approach") if fields.get(key, "none") != "none"]
    if "kd" in fields:
        with_kd = fields["kd"] != "none"
        words += (["+ kd"] if words else ["kd"]) if with_kd else ([] if words else ["no kd"])
    return " ".join(words)


def _rank(key: str, value: str) -> tuple[int, float, str]:
    """Return the sort key of a value: known names in their usual order, numbers by size, other text alphabetically."""
    known = ORDER.get(key, ())
    if value in known:
        return 0, known.index(value), value
    try:
        return 1, float(value), value
    except ValueError:
        return 2, 0.0, value


def _without_duplicates(runs: Sequence[Run], settings: dict[str, Settings]) -> tuple[list[Run], list[str]]:
    """Return the last run (by name) of each seed, speaker and setting, and the names of the other runs.

    Counting a repeated run twice would make the interval too narrow.
    """
    last: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        last[(seed(run), test_speaker(run), folds(run), tuple(settings[run.name].values()))] = run
    kept = [run for run in runs if any(run is other for other in last.values())]
    return kept, [run.name for run in runs if all(run is not other for other in kept)]


def _hidden_differences(label: str, runs: Sequence[Run], known: Sequence[str]) -> list[str]:
    """Return a note if config keys differ within a group without an override, as after an edit of conf/ between runs."""
    configs = [run.config for run in runs if run.config]
    keys = sorted({key for config in configs for key in config})
    hidden = [
        key
        for key in keys
        if _counts(key) and key not in known and len({_text(config.get(key, ABSENT)) for config in configs}) > 1
    ]
    return [f"{label}: the configs of its runs differ in {_listed(hidden)}."] if hidden else []


def config_differences(run: Run, other: Run) -> list[tuple[str, str, str]]:
    """Return (key, value of `run`, value of `other`) for the config keys that differ and can change a result."""
    keys = sorted({*run.config, *other.config})
    values = [(key, _text(run.config.get(key, ABSENT)), _text(other.config.get(key, ABSENT))) for key in keys]
    return [(key, own, others) for key, own, others in values if own != others and changes_results(key)]


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)
