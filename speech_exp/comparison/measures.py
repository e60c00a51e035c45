"""The measures of a comparison, one row each; a new measure is a new entry in MEASURES."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from speech_exp.comparison.estimates import Estimate, by_seed, by_speaker, student_interval
from speech_exp.comparison.float_reference import float_references
from speech_exp.comparison.grouping import Group
from speech_exp.comparison.score import ACCURACY, WER, score_of
from speech_exp.runs.reading import Run, result_at
from speech_exp.runs.schema import ENGINES

EMULATED = "emulated in PyTorch, not measured on a device"
CLASS_MEASURES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Measure:
    """One number per run. `scale` and `decimals` are for the Markdown table; `of` returns None if a run lacks the number."""

    key: str
    title: str
    unit: str
    of: Callable[[Run], float | None]
    scale: float = 1.0
    decimals: int = 0
    interval: bool = False  # False for what depends on neither seed nor recording, such as bytes
    bounds: tuple[float, float] = (0.0, 1.0)  # possible values, if it has an interval
    brief: bool = False  # one of the few measures that a table of many groups has room for
    usual: Callable[[Run], float | None] | None = None  # the measure is left out if every run has this value


@dataclass(frozen=True)
class Row:
    """The estimates of a measure, one per group; None for a group that lacks it."""

    measure: Measure
    estimates: tuple[Estimate | None, ...]


def _at(*keys: str) -> Callable[[Run], float | None]:
    return lambda run: result_at(run, *keys)


def _layers_of(key: str) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        layers = (run.results or {})["size"].get(key)
        return None if layers is None else float(sum(layers))

    return value


accuracy = ACCURACY.of
model_bytes = _at("size", "model_bytes")
latency = _at("latency_ms", "mean")
train_seconds = _at("seconds", "train")


def stored_bytes(run: Run) -> float | None:
    """Return the bytes of the stored model: the size of its packed file, or `model_bytes` for older runs without one."""
    packed = result_at(run, "size", "packed_bytes")
    return model_bytes(run) if packed is None else packed


def directions(run: Run) -> float | None:
    """Return in how many directions the recurrent layers read an utterance; None if the run's config does not say."""
    both = run.config.get("model.bidirectional")
    return None if both is None else 2.0 if both is True else 1.0


def emulated(run: Run) -> bool:
    """Return whether the run's latency is of integer arithmetic emulated in PyTorch, which says nothing about a device."""
    return run.results is not None and run.results["task"] == "B2"


def qat_epochs(run: Run) -> int:
    """Return for how many more epochs the integer model was trained than the float model next to it."""
    return int(run.config.get("task.qat_epochs") or 0)


def _percent(key: str, title: str, of: Callable[[Run], float | None], brief: bool = False, most: float = 1) -> Measure:
    bounds = (0.0, most)
    return Measure(key, f"{title} (%)", "fraction", of, 100.0, 2, interval=True, bounds=bounds, brief=brief)


MEASURES = (
    _percent("accuracy", "accuracy", accuracy, brief=True),
    _percent("f1_macro", "F1, mean of classes", _at("metrics", "test", "f1_macro")),
    _percent("wer", "word error rate", WER.of, brief=True, most=math.inf),
    _percent("cer", "character error rate", _at("metrics", "test", "cer"), brief=True, most=math.inf),
    _percent("val_accuracy", "validation accuracy", _at("metrics", "val", "accuracy")),
    Measure("directions", "directions", "count", directions, brief=True, usual=lambda _: 1.0),
    Measure("parameters", "parameters", "count", _at("size", "parameters")),
    Measure("bits_per_weight", "bits per weight", "bits", _at("size", "bits_per_weight"), decimals=2, brief=True, usual=lambda _: 32.0),
    Measure("recurrent_layer_bytes", "recurrent layers (bytes)", "bytes", _layers_of("recurrent_layer_bytes"), brief=True),
    Measure("packed_layer_bytes", "recurrent layers, packed (bytes)", "bytes", _layers_of("packed_layer_bytes"), brief=True, usual=_layers_of("recurrent_layer_bytes")),
    Measure("recurrent_state_bytes", "state of recurrent layers (bytes)", "bytes", _layers_of("recurrent_state_bytes")),
    Measure("model_bytes", "model (bytes)", "bytes", model_bytes, brief=True),
    Measure("packed_bytes", "model, packed file (bytes)", "bytes", _at("size", "packed_bytes"), brief=True),
    Measure("latency_ms_mean", "latency, mean (ms)", "ms", latency, decimals=2, brief=True),
    Measure("latency_ms_p95", "latency, 95th percentile (ms)", "ms", _at("latency_ms", "p95"), decimals=2),
    Measure("train_seconds", "training (s)", "s", train_seconds, decimals=1, brief=True),
)  # fmt: skip


def measure(key: str) -> Measure:
    return next(one for one in MEASURES if one.key == key)


def rows(groups: tuple[Group, ...]) -> list[Row]:
    """Return the measures that at least one group has, in the order of MEASURES; the loss against float follows accuracy."""
    measures = [MEASURES[0], _lost_against_float(groups), *MEASURES[1:]]
    return [row for measure in measures if (row := _row(groups, measure))]


def _lost_against_float(groups: tuple[Group, ...]) -> Measure:
    references = float_references(groups)
    classes = all(score_of(run) is ACCURACY for group in groups for run in group.runs)
    bounds = (-1.0, 1.0) if classes else (-math.inf, math.inf)  # an error rate may exceed 1

    def lost(run: Run) -> float | None:
        score, reference = score_of(run), references.get(run.name)
        deployed = None if score is None else score.of(run)
        return None if score is None or deployed is None or reference is None else score.loss(deployed, reference.value)

    return Measure(
        "lost_against_float", "lost against float (points)", "fraction", lost,
        scale=100.0, decimals=2, interval=True, bounds=bounds, brief=True,
    )  # fmt: skip


def engine_rows(groups: tuple[Group, ...]) -> dict[str, list[Row]]:
    """Return {engine: rows of its measures} for groups that all report engines; engines may have different rows."""
    return {
        engine: [row for measure in engine_measures(engine) if (row := _row(groups, measure))] for engine in ENGINES
    }


def engine_measures(engine: str) -> tuple[Measure, ...]:
    return (
        _percent("engine_accuracy", "accuracy", _at("engines", engine, "metrics", "accuracy")),
        _percent("engine_wer", "word error rate", _at("engines", engine, "metrics", "wer"), most=math.inf),
        _percent("engine_agreement", "same prediction as float", _at("engines", engine, "agreement")),
        Measure("engine_model_bytes", "model (bytes)", "bytes", _at("engines", engine, "model_bytes")),
        Measure("engine_latency_ms", "latency (ms)", "ms", _at("engines", engine, "latency_ms"), decimals=2),
    )


def _row(groups: tuple[Group, ...], measure: Measure) -> Row | None:
    usual = measure.usual
    if usual is not None and all(measure.of(run) == usual(run) for group in groups for run in group.runs):
        return None
    estimates = tuple(estimate(group, measure) for group in groups)
    return Row(measure, estimates) if any(estimate is not None for estimate in estimates) else None


def estimate(group: Group, measure: Measure) -> Estimate | None:
    values = {run.name: measure.of(run) for run in group.runs}
    if any(value is None for value in values.values()):
        return None
    per_seed = by_seed(group, lambda run: float(values[run.name] or 0.0))
    found = student_interval(list(per_seed.values()), *measure.bounds)
    if not measure.interval:
        return Estimate(found.n, found.mean)
    if interval := group.intervals.get(measure.key):
        return Estimate(found.n, found.mean, interval.low, interval.high)
    return found


def per_class(group: Group) -> dict[str, dict[str, list[float]]]:
    """Return {class: {precision, recall, f1: one value per run}}, with classes in the order of the runs' tables."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in group.runs:
        assert run.results is not None
        for name, scores in run.results["metrics"].get("test_per_class", {}).items():
            values = found.setdefault(name, {key: [] for key in CLASS_MEASURES})
            for key in CLASS_MEASURES:
                values[key].append(scores[key])
    return found


def per_speaker(group: Group) -> dict[str, float]:
    """Return the accuracy of each test speaker, mean over seeds; empty unless a classification group has several."""
    if len(group.speakers) < 2 or any(accuracy(run) is None for run in group.runs):
        return {}
    return by_speaker(group, lambda run: float(accuracy(run) or 0.0))


def layer_bytes(group: Group, key: str = "recurrent_layer_bytes") -> list[tuple[int, ...]]:
    """Return the bytes of each recurrent layer: one tuple if all runs of the group agree, otherwise several."""
    return sorted({tuple(run.results["size"].get(key) or ()) for run in group.runs if run.results})


def latency_devices(group: Group) -> list[str]:
    return sorted(
        {
            run.results["latency_ms"]["device"] + (f", {EMULATED}" if emulated(run) else "")
            for run in group.runs
            if run.results
        }
    )


def training_devices(group: Group) -> list[str]:
    return sorted({str(run.run_info.get("device_name") or "unknown") for run in group.runs})
