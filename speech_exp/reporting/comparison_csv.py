"""A comparison as tidy CSV, to be computed with."""

from __future__ import annotations

from typing import Any

from speech_exp.reporting import measures
from speech_exp.reporting.estimates import mean
from speech_exp.reporting.files import csv_text
from speech_exp.reporting.findings import Findings
from speech_exp.reporting.grouping import test_speaker
from speech_exp.reporting.paired_tests import PairedTest


def csv_table(findings: Findings) -> str:
    """One row a group, metric and item: the item is a class, a test speaker, an engine or a layer's index, else empty.

    Values are in `unit`, unrounded; `low` and `high` are the 95 % interval over seeds, empty where there is none; `n`
    is the number of values that the mean is of (seeds; for classes and speakers, runs). Of a paired test the item is the
    baseline, `mean` the difference to it and n, low and high those of its utterances; p values have the test as item.
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
    return csv_text(columns, lines)


def _test_cells(test: PairedTest) -> list[dict[str, Any]]:
    numbers = {"n": test.utterances, "mean": test.difference, "low": test.low, "high": test.high}
    return [
        {"metric": f"{test.metric}_over_baseline", "item": test.baseline, "unit": "fraction", **numbers},
        {"metric": f"{test.metric}_p", "item": test.test, "unit": "probability", "n": test.utterances, "mean": test.p},
        {"metric": f"{test.metric}_p_holm", "item": test.test, "unit": "probability", "n": test.utterances, "mean": test.p_holm},
    ]  # fmt: skip


def _csv_cells(row: measures.Row, at: int) -> list[dict[str, Any]]:
    """The group's line of a measure; none where it lacks it."""
    estimate = row.estimates[at]
    if estimate is None:
        return []
    whole = row.measure.unit in ("count", "bytes") and estimate.mean.is_integer()
    value = int(estimate.mean) if whole else estimate.mean
    numbers = {"n": estimate.n, "mean": value, "low": estimate.low, "high": estimate.high}
    return [{"metric": row.measure.key, "unit": row.measure.unit, **numbers}]
