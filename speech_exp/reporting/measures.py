"""What a comparison measures: one entry a row, so that a further measure is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speech_exp.reporting.estimates import Estimate, by_seed, by_speaker, student_interval
from speech_exp.reporting.grouping import Group
from speech_exp.reporting.runs import Run

CLASS_MEASURES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Measure:
    """One number a run. `scale` and `decimals` are for the Markdown table; `of` gives None where a run lacks it."""

    key: str
    title: str
    unit: str
    of: Callable[[Run], float | None]
    scale: float = 1.0
    decimals: int = 0
    interval: bool = False  # over seeds; what the seed does not change, such as bytes, has none


@dataclass(frozen=True)
class Row:
    """A measure's estimates: one a group, None where the group lacks it."""

    measure: Measure
    estimates: tuple[Estimate | None, ...]


def _at(*keys: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        found: Any = run.results
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else float(found)

    return value


def _layer_bytes(run: Run) -> float:
    assert run.results is not None
    return float(sum(run.results["size"]["recurrent_layer_bytes"]))


accuracy = _at("metrics", "test", "accuracy")


def _percent(key: str, title: str, of: Callable[[Run], float | None]) -> Measure:
    return Measure(key, f"{title} (%)", "fraction", of, scale=100.0, decimals=2, interval=True)


MEASURES = (
    _percent("accuracy", "accuracy", accuracy),
    _percent("f1_macro", "F1, mean of classes", _at("metrics", "test", "f1_macro")),
    _percent("wer", "word error rate", _at("metrics", "test", "wer")),
    _percent("cer", "character error rate", _at("metrics", "test", "cer")),
    _percent("val_accuracy", "validation accuracy", _at("metrics", "val", "accuracy")),
    Measure("parameters", "parameters", "count", _at("size", "parameters")),
    Measure("recurrent_layer_bytes", "recurrent layers (bytes)", "bytes", _layer_bytes),
    Measure("model_bytes", "model (bytes)", "bytes", _at("size", "model_bytes")),
    Measure("latency_ms_mean", "latency, mean (ms)", "ms", _at("latency_ms", "mean"), decimals=2),
    Measure("latency_ms_p95", "latency, 95th percentile (ms)", "ms", _at("latency_ms", "p95"), decimals=2),
    Measure("train_seconds", "training (s)", "s", _at("seconds", "train"), decimals=1),
)


def rows(groups: tuple[Group, ...]) -> list[Row]:
    """The measures that at least one group has, in the order of MEASURES."""
    found = [Row(measure, tuple(_estimate(group, measure) for group in groups)) for measure in MEASURES]
    return [row for row in found if any(estimate is not None for estimate in row.estimates)]


def _estimate(group: Group, measure: Measure) -> Estimate | None:
    values = {run.name: measure.of(run) for run in group.runs}
    if any(value is None for value in values.values()):
        return None
    per_seed = by_seed(group, lambda run: float(values[run.name] or 0.0))
    estimate = student_interval(list(per_seed.values()))
    return estimate if measure.interval else Estimate(estimate.n, estimate.mean, None)


def per_class(group: Group) -> dict[str, dict[str, list[float]]]:
    """{class: {precision, recall, f1: one value a run}}; classes in the order of the runs' own tables."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in group.runs:
        assert run.results is not None
        for name, scores in run.results["metrics"].get("test_per_class", {}).items():
            values = found.setdefault(name, {key: [] for key in CLASS_MEASURES})
            for key in CLASS_MEASURES:
                values[key].append(scores[key])
    return found


def per_speaker(group: Group) -> dict[str, float]:
    """Accuracy of each test speaker, mean over seeds, where the group has several and is a classification."""
    if len(group.speakers) < 2 or any(accuracy(run) is None for run in group.runs):
        return {}
    return by_speaker(group, lambda run: float(accuracy(run) or 0.0))


def layer_bytes(group: Group) -> list[tuple[int, ...]]:
    """Bytes of each recurrent layer as the group's runs have them; one tuple where all runs agree."""
    return sorted({tuple(run.results["size"]["recurrent_layer_bytes"]) for run in group.runs if run.results})


def latency_devices(group: Group) -> list[str]:
    return sorted({run.results["latency_ms"]["device"] for run in group.runs if run.results})
