"""Runs sorted into groups by what varies among them apart from the seed and the held-out speaker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from speech_exp.reporting.runs import Run

RESULT_KEYS = ("dataset", "split", "features", "encoder", "objective", "model", "task", "c_approach", "kd")
DERIVED_KEYS = ("encoder", "objective")  # usually follow from the data set: named only where they tell groups apart
CONSTRAINT_KEYS = ("task", "c_approach", "kd")  # one part of a label: `C apot2 + kd`
SHOWN_BARE = {"dataset", "features", "model"}  # values that speak for themselves in a label
ORDER = {"model": ("gru", "lstm", "lmu"), "task": ("A", "B1", "B2", "C"), "kd": ("none", "teacher")}
# What repeats a setting instead of changing it: means are taken over these.
FOLD_KEYS = ("dataset.test_speaker", "dataset.validation_speaker")
# What cannot change a result, and what differs from seed to seed because it points at another run.
IGNORED_KEYS = {"seed", "action", "runs", "checkpoint", "audio", "dry_run", "resume", "launcher", "dataset.root"}
IGNORED_KEYS |= {"kd.run", "task.float_checkpoint", "sweep", "run_folder", "output_dir", "study"}
IGNORED_KEYS |= {"trainer.tensorboard", "trainer.mlflow", "trainer.wandb"}
NOT_THERE = ""  # value of a key that the run's config does not have, such as task.qat_epochs in task C
IGNORED_PREFIXES = ("hydra.", "hydra/", "paths.", "launcher.", "slurm.")

Settings = dict[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of one setting: `fields` holds the group's value of each key that varies, `runs` are sorted by seed."""

    label: str
    fields: Settings
    runs: tuple[Run, ...]

    @property
    def model(self) -> str:
        """Empty where the groups do not differ in it."""
        return self.fields.get("model", "")

    @property
    def setting(self) -> str:
        """The label without the model."""
        return _label({key: value for key, value in self.fields.items() if key != "model"})

    @property
    def seeds(self) -> list[int]:
        return sorted({seed(run) for run in self.runs})

    @property
    def speakers(self) -> list[str]:
        """Test speakers of the runs; empty where the split holds out none."""
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
    """Which part of the data the run holds out, where its config tells."""
    return tuple(_text(run.config.get(key, run.overrides.get(key))) for key in FOLD_KEYS)


def group_runs(runs: Iterable[Run], columns: Sequence[str] | None = None) -> Grouping:
    """Groups of the runs that have results; `columns` fixes the keys to group by instead of all that vary."""
    ordered = sorted(
        (run for run in runs if run.results is not None), key=lambda run: (seed(run), test_speaker(run) or "", run.name)
    )
    if not ordered:
        raise ValueError("no run with results.json came to compare: set runs to a folder that holds finished runs")
    typed = sorted({key for run in ordered for key in run.overrides if _counts(key)})
    settings = {run.name: _settings(run, typed) for run in ordered}
    if len(settings) < len(ordered):
        raise ValueError("two runs share one name, expected runs found in one search of one folder")
    table = [settings[run.name] for run in ordered]
    varying = [key for key in (*RESULT_KEYS, *typed) if len({row[key] for row in table}) > 1]
    keys, notes = _chosen_keys(table, varying, columns)
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in ordered:
        cells.setdefault(tuple(settings[run.name][key] for key in keys), []).append(run)
    groups = []
    for values in sorted(
        cells, key=lambda values: [_rank(key, value) for key, value in zip(keys, values, strict=True)]
    ):
        fields = dict(zip(keys, values, strict=True))
        label = _label(fields) or (table[0]["model"] if "model" not in varying else "all runs")
        kept, double = _without_doubles(cells[values], settings)
        groups.append(Group(label, fields, tuple(kept)))
        if double:
            notes.append(f"{label}: {_listed(double)} repeat a seed and setting already counted and are left out.")
        if columns is None:
            notes += _hidden_differences(label, kept, varying)
    same = {key: table[0][key] for key in RESULT_KEYS if key not in varying}
    return Grouping(tuple(groups), tuple(keys), same, tuple(notes))


def _counts(key: str) -> bool:
    known = key in RESULT_KEYS or key in FOLD_KEYS or key == "dataset.split"
    return not known and not _beside(key)


def _settings(run: Run, typed: Sequence[str]) -> Settings:
    """Value of each key as text. A typed key is read from the composed config, so a typed default changes nothing."""
    assert run.results is not None
    values = {key: _text(run.results[key]) for key in RESULT_KEYS}
    for key in typed:
        if key in run.config:
            values[key] = _text(run.config[key])
        else:  # a run of another task has no such key; without any config it is not known
            values[key] = NOT_THERE if run.config else run.overrides.get(key, "default")
    return values


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chosen_keys(
    table: Sequence[Settings], varying: Sequence[str], columns: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Keys that tell the groups apart, and notes on other settings that vary together with them or are pooled."""

    def cells(keys: Sequence[str]) -> int:
        return len({tuple(row[key] for key in keys) for row in table})

    if columns is not None:
        unknown = [key for key in columns if key not in table[0]]
        if unknown:
            raise ValueError(
                f"columns has {_listed(unknown)}, which no run sets, expected some of {_listed(list(table[0]))}: "
                "change columns"
            )
        pooled = [key for key in varying if key not in columns and cells([*columns, key]) > cells(columns)]
        return list(columns), [f"Each group pools runs that differ in {_listed(pooled)}."] if pooled else []
    keys = [key for key in varying if key in RESULT_KEYS and key not in DERIVED_KEYS]
    notes = []
    for key in varying:
        if key in keys:
            continue
        if cells([*keys, key]) > cells(keys):
            keys.append(key)
        elif key not in DERIVED_KEYS:
            notes.append(f"{key} varies together with {_listed(keys)}: the groups differ in it too.")
    return keys, notes


def _label(fields: Settings) -> str:
    bare = [value for key, value in fields.items() if key in SHOWN_BARE and value != "none"]
    other = [
        f"{key}={value}"
        for key, value in fields.items()
        if key not in (*SHOWN_BARE, *CONSTRAINT_KEYS) and value != NOT_THERE
    ]
    return " · ".join(part for part in (*bare, _constraint_label(fields), *other) if part)


def _constraint_label(fields: Settings) -> str:
    words = [fields[key] for key in ("task", "c_approach") if fields.get(key, "none") != "none"]
    if "kd" in fields:
        with_kd = fields["kd"] != "none"
        words += (["+ kd"] if words else ["kd"]) if with_kd else ([] if words else ["no kd"])
    return " ".join(words)


def _rank(key: str, value: str) -> tuple[int, float, str]:
    """Sort key of a value: known names in their usual order, numbers by size, other text by alphabet."""
    known = ORDER.get(key, ())
    if value in known:
        return 0, known.index(value), value
    try:
        return 1, float(value), value
    except ValueError:
        return 2, 0.0, value


def _without_doubles(runs: Sequence[Run], settings: dict[str, Settings]) -> tuple[list[Run], list[str]]:
    """The last run by name of each seed, speaker and setting; a rerun counted twice would narrow the interval."""
    last: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        last[(seed(run), test_speaker(run), folds(run), tuple(settings[run.name].values()))] = run
    kept = [run for run in runs if any(run is other for other in last.values())]
    return kept, [run.name for run in runs if all(run is not other for other in kept)]


def _hidden_differences(label: str, runs: Sequence[Run], known: Sequence[str]) -> list[str]:
    """Config keys that differ within a group although no override tells, as after an edit of conf/ between two runs."""
    configs = [run.config for run in runs if run.config]
    keys = sorted({key for config in configs for key in config})
    hidden = [
        key
        for key in keys
        if _counts(key) and key not in known and len({_text(config.get(key, "absent")) for config in configs}) > 1
    ]
    return [f"{label}: its runs differ in {_listed(hidden)} of the config."] if hidden else []


def config_differences(run: Run, other: Run) -> list[tuple[str, str, str]]:
    """(key, value of `run`, value of `other`) for the keys of their configs that differ and can change a result."""
    keys = sorted({*run.config, *other.config})
    values = [(key, _text(run.config.get(key, NOT_THERE)), _text(other.config.get(key, NOT_THERE))) for key in keys]
    return [(key, own, others) for key, own, others in values if own != others and not _beside(key)]


def _beside(key: str) -> bool:
    return key in IGNORED_KEYS or key.startswith(IGNORED_PREFIXES)


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)
