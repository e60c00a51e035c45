"""A comparison as Markdown, to be read, and as tidy CSV, to be computed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speech_exp.reporting import measures
from speech_exp.reporting.estimates import Estimate, mean
from speech_exp.reporting.files import csv_text
from speech_exp.reporting.grouping import Group, Grouping, seed, test_speaker
from speech_exp.reporting.runs import Run

MOST_COLUMNS = 8  # beyond it groups become rows: wider tables cannot be read
NONE = "–"
LAYER_KEYS = ("recurrent_layer_bytes", "packed_layer_bytes")
CLASS_TITLES = {"precision": "Precision", "recall": "Recall", "f1": "F1"}


def markdown_report(
    grouping: Grouping, notes: Sequence[str], not_counted: Sequence[Run], figures: Sequence[str]
) -> str:
    """The whole report; it names no absolute path and no time, so that the same runs give the same text anywhere."""
    groups = grouping.groups
    counted = sum(len(group.runs) for group in groups)
    parts = ["# Comparison of runs", _introduction(grouping, counted, len(not_counted))]
    parts.append(_table("", [group.label for group in groups], _main_rows(groups)))
    if notes:
        parts.append("\n".join(f"- {_cell(note)}" for note in notes))
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures]
    parts += _engine_section(groups)
    parts += _speaker_section(groups)
    parts += _class_section(groups)
    parts += ["## Runs", _runs_table(groups)]
    if not_counted:
        lines = [[_cell(run.name), _cell(run.status), _cell(run.problem or "")] for run in not_counted]
        parts += ["## Not counted", _markdown(["folder", "status", "why"], lines, words=(1, 2))]
    return "\n\n".join(parts) + "\n"


def _introduction(grouping: Grouping, counted: int, left_out: int) -> str:
    same = ", ".join(f"{key} {value}" for key, value in grouping.same.items() if value != "none")
    keys = ", ".join(grouping.keys)
    text = f"{_number(counted, 'run')} in {_number(len(grouping.groups), 'group')}"
    text += f", which differ in: {keys}." if keys else "."
    text += f" The same in all: {same}." if same else ""
    text += f" {_number(left_out, 'folder')} not counted (see the end)." if left_out else ""
    return text + " Test metrics of the deployable form; mean ± half the 95 % interval over seeds (Student's t)."


def _main_rows(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Title and one text a group for each measure; of many groups, only the measures that matter most."""
    table = [("runs (seeds)", [f"{len(group.runs)} ({len(group.seeds)})" for group in groups])]
    brief = len(groups) > MOST_COLUMNS
    for row in measures.rows(tuple(groups)):
        if brief and not row.measure.brief:
            continue
        texts = [_estimate(estimate, row.measure) for estimate in row.estimates]
        if row.measure.key in LAYER_KEYS:
            texts = [_layers(group, row.measure.key) for group in groups]
        table.append((row.measure.title, texts))
        if row.measure.key == "accuracy" and any(len(group.speakers) > 1 for group in groups):
            table.append(("worst speaker (%)", [_worst(group) for group in groups]))
    devices = [", ".join(measures.latency_devices(group)) for group in groups]
    if brief and len(set(devices)) == 1:  # no column for one and the same word
        return [(title.replace("(ms)", f"(ms, {devices[0]})"), texts) for title, texts in table]
    return [*table, ("latency measured on", devices)]


def _estimate(estimate: Estimate | None, measure: measures.Measure) -> str:
    if estimate is None:
        return NONE
    text = f"{round(measure.scale * estimate.mean, measure.decimals) + 0.0:,.{measure.decimals}f}"  # no -0.00
    if not measure.interval or estimate.half_width is None:
        return text
    return f"{text} ± {measure.scale * estimate.half_width:.{measure.decimals}f}"


def _layers(group: Group, key: str) -> str:
    """Bytes of each layer, such as `26,640 + 26,640`; several where the group's runs differ."""
    return " or ".join(
        " + ".join(f"{layer:,}" for layer in layers) or NONE for layers in measures.layer_bytes(group, key)
    )


def _worst(group: Group) -> str:
    speakers = measures.per_speaker(group)
    if not speakers:
        return NONE
    name = min(speakers, key=lambda one: (speakers[one], one))
    return f"{100 * speakers[name]:.2f} ({name})"


def _engine_section(groups: Sequence[Group]) -> list[str]:
    own = tuple(group for group in groups if all("engines" in (run.results or {}) for run in group.runs))
    found = measures.engine_rows(own)
    measured = {row.measure.title for rows in found.values() for row in rows}
    titles = [measure.title for measure in measures.engine_measures("float") if measure.title in measured]
    lines = []
    for at, group in enumerate(own):
        for engine, rows in found.items():
            texts = {row.measure.title: _estimate(row.estimates[at], row.measure) for row in rows}
            lines.append([_cell(group.label), engine, *(texts.get(title, NONE) for title in titles)])
    return ["## Engines side by side", _markdown(["group", "engine", *titles], lines, words=(1,))] if lines else []


def _speaker_section(groups: Sequence[Group]) -> list[str]:
    found = [measures.per_speaker(group) for group in groups]
    names = sorted({name for speakers in found for name in speakers})
    if not names:
        return []
    rows = [(name, [_percent(speakers.get(name), 2) for speakers in found]) for name in names]
    return [
        "## Accuracy of each test speaker (%, mean over seeds)",
        _table("speaker", [group.label for group in groups], rows),
    ]


def _class_section(groups: Sequence[Group]) -> list[str]:
    found = [measures.per_class(group) for group in groups]
    names = list(dict.fromkeys(name for classes in found for name in classes))
    parts = []
    for key, title in CLASS_TITLES.items():
        rows = [
            (name, [_percent(mean(classes[name][key]) if name in classes else None, 1) for classes in found])
            for name in names
        ]
        if rows:
            parts += [
                f"## {title} of each class (%, mean over runs)",
                _table("class", [group.label for group in groups], rows),
            ]
    return parts


def _runs_table(groups: Sequence[Group]) -> str:
    speakers = any(group.speakers for group in groups)
    lines = []
    for group in groups:
        for run in group.runs:
            assert run.results is not None
            line = [_cell(group.label), str(seed(run)), *([test_speaker(run) or NONE] if speakers else [])]
            value = measures.accuracy(run)
            commit = (run.run_info.get("git") or {}).get("commit")
            dirty = "+changes" if (run.run_info.get("git") or {}).get("dirty") else ""
            line += [_percent(value, 2), str(run.results["best_epoch"]), f"{commit[:10]}{dirty}" if commit else NONE]
            lines.append([*line, _cell(run.name)])
    head = ["group", "seed", *(["test speaker"] if speakers else []), "accuracy (%)", "best epoch", "commit", "folder"]
    words = (1 + head.index("seed"), len(head) - 2, len(head) - 1) if speakers else (len(head) - 2, len(head) - 1)
    return _markdown(head, lines, words)


def _table(corner: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Groups as columns, or, where they are many, as rows."""
    if len(labels) <= MOST_COLUMNS:
        return _markdown([corner, *map(_cell, labels)], [[_cell(name), *texts] for name, texts in rows])
    lines = [[_cell(label), *(texts[at] for _, texts in rows)] for at, label in enumerate(labels)]
    return _markdown(["group", *(_cell(name) for name, _ in rows)], lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """The first column and those in `words` are aligned left, numbers right."""
    rule = ["---" if at == 0 or at in words else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _percent(value: float | None, decimals: int) -> str:
    return NONE if value is None else f"{100 * value:.{decimals}f}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def csv_table(grouping: Grouping) -> str:
    """One row a group, metric and item: the item is a class, a test speaker, an engine or a layer's index, else empty.

    Values are in `unit`, unrounded; `low` and `high` are the 95 % interval over seeds, empty where there is none; `n`
    is the number of values that the mean is of (seeds; for classes and speakers, runs).
    """
    columns = ["group", *grouping.keys, "metric", "item", "unit", "n", "mean", "low", "high"]
    lines: list[dict[str, Any]] = []
    all_rows, engines = measures.rows(grouping.groups), measures.engine_rows(grouping.groups)
    for at, group in enumerate(grouping.groups):
        head = {"group": group.label, **group.fields}
        lines.append({**head, "metric": "runs", "unit": "count", "mean": len(group.runs)})
        lines += [{**head, **cells} for row in all_rows for cells in _csv_cells(row, at)]
        for engine, rows in engines.items():
            lines += [{**head, **cells, "item": engine} for row in rows for cells in _csv_cells(row, at)]
        for layers in measures.layer_bytes(group):
            for index, size in enumerate(layers):
                lines.append({**head, "metric": "layer_bytes", "item": index, "unit": "bytes", "mean": size})
        for name, classes in measures.per_class(group).items():
            for key, values in classes.items():
                numbers = {"n": len(values), "mean": mean(values)}
                lines.append({**head, "metric": f"class_{key}", "item": name, "unit": "fraction", **numbers})
        for name, value in measures.per_speaker(group).items():
            count = sum(test_speaker(run) == name for run in group.runs)
            lines.append(
                {**head, "metric": "speaker_accuracy", "item": name, "unit": "fraction", "n": count, "mean": value}
            )
    return csv_text(columns, lines)


def _csv_cells(row: measures.Row, at: int) -> list[dict[str, Any]]:
    """The group's line of a measure; none where it lacks it."""
    estimate = row.estimates[at]
    if estimate is None:
        return []
    whole = row.measure.unit in ("count", "bytes") and estimate.mean.is_integer()
    value = int(estimate.mean) if whole else estimate.mean
    numbers = {"n": estimate.n, "mean": value, "low": estimate.low, "high": estimate.high}
    return [{"metric": row.measure.key, "unit": row.measure.unit, **numbers}]
