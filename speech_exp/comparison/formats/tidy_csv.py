"""Write a comparison as tidy CSV for further analysis."""

from __future__ import annotations

from typing import Any

from speech_exp.comparison import measures
from speech_exp.comparison.estimates import mean
from speech_exp.comparison.findings import Findings
from speech_exp.comparison.grouping import test_speaker
from speech_exp.comparison.paired_tests import PairedTest
from speech_exp.files import csv_text
from speech_exp.safe_text import printable


def csv_table(findings: Findings) -> str:
    """Return one row per group, metric and item; the item is a class, test speaker, engine or layer index, or empty.

    Values are unrounded, in `unit`. `low` and `high` are the 95 % interval described in comparison.md, empty if there is
    none. `n` is the number of averaged values (seeds; for classes and speakers, runs). For a paired test the item is the
    baseline, `mean` the difference from it and `n` the number of utterances; for a p value the item is the test.
    """
    grouping = findings.grouping
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
        for test in findings.tests:
            if test.group == group.label:
                lines += [{**head, **cells} for cells in _test_cells(test)]
    return csv_text(
        list(map(_inert, columns)), [{_inert(key): _inert(value) for key, value in line.items()} for line in lines]
    )


def _test_cells(test: PairedTest) -> list[dict[str, Any]]:
    numbers = {"n": test.utterances, "mean": test.difference, "low": test.low, "high": test.high}
    return [
        {"metric": f"{test.metric}_over_baseline", "item": test.baseline, "unit": "fraction", **numbers},
        {"metric": f"{test.metric}_p", "item": test.test, "unit": "probability", "n": test.utterances, "mean": test.p},
        {"metric": f"{test.metric}_p_holm", "item": test.test, "unit": "probability", "n": test.utterances, "mean": test.p_holm},
    ]  # fmt: skip


def _inert(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would treat as a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _csv_cells(row: measures.Row, at: int) -> list[dict[str, Any]]:
    """Return the row of a measure for a group; empty if the group lacks the measure."""
    estimate = row.estimates[at]
    if estimate is None:
        return []
    whole = row.measure.unit in ("count", "bytes") and estimate.mean.is_integer()
    value = int(estimate.mean) if whole else estimate.mean
    numbers = {"n": estimate.n, "mean": value, "low": estimate.low, "high": estimate.high}
    return [{"metric": row.measure.key, "unit": row.measure.unit, **numbers}]
