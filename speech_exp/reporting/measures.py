"""What a comparison measures: one entry a row, so that a further measure is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speech_exp.reporting.estimates import Estimate, by_seed, by_speaker, student_interval
from speech_exp.reporting.float_reference import float_references
from speech_exp.reporting.grouping import Group
from speech_exp.reporting.results_schema import ENGINES
from speech_exp.reporting.runs import Run, result_at
from speech_exp.reporting.score import ACCURACY, WER, score_of

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
    brief: bool = False  # among the few that a table of many groups has room for
    usual: Callable[[Run], float | None] | None = None  # the measure is left out where every run has this value


@dataclass(frozen=True)
class Row:
    """A measure's estimates: one a group, None where the group lacks it."""

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
    """Bytes of the model as a device would keep it: packed where the run says how densely that goes."""
    packed = result_at(run, "size", "packed_bytes")
    return model_bytes(run) if packed is None else packed


def _percent(key: str, title: str, of: Callable[[Run], float | None], brief: bool = False) -> Measure:
    return Measure(key, f"{title} (%)", "fraction", of, scale=100.0, decimals=2, interval=True, brief=brief)


MEASURES = (
    _percent("accuracy", "accuracy", accuracy, brief=True),
    _percent("f1_macro", "F1, mean of classes", _at("metrics", "test", "f1_macro")),
    _percent("wer", "word error rate", WER.of, brief=True),
    _percent("cer", "character error rate", _at("metrics", "test", "cer"), brief=True),
    _percent("val_accuracy", "validation accuracy", _at("metrics", "val", "accuracy")),
    Measure("parameters", "parameters", "count", _at("size", "parameters")),
    Measure("bits_per_weight", "bits a weight", "bits", _at("size", "bits_per_weight"), decimals=2, brief=True, usual=lambda _: 32.0),
    Measure("recurrent_layer_bytes", "recurrent layers (bytes)", "bytes", _layers_of("recurrent_layer_bytes"), brief=True),
    Measure("packed_layer_bytes", "recurrent layers, packed (bytes)", "bytes", _layers_of("packed_layer_bytes"), brief=True, usual=_layers_of("recurrent_layer_bytes")),
    Measure("model_bytes", "model (bytes)", "bytes", model_bytes, brief=True),
    Measure("packed_bytes", "model, packed (bytes)", "bytes", stored_bytes, brief=True, usual=model_bytes),
    Measure("latency_ms_mean", "latency, mean (ms)", "ms", latency, decimals=2, brief=True),
    Measure("latency_ms_p95", "latency, 95th percentile (ms)", "ms", _at("latency_ms", "p95"), decimals=2),
    Measure("train_seconds", "training (s)", "s", train_seconds, decimals=1, brief=True),
)  # fmt: skip


def rows(groups: tuple[Group, ...]) -> list[Row]:
    """The measures that tell something of at least one group, in the order of MEASURES; the loss comes after accuracy."""
    measures = [MEASURES[0], _lost_against_float(groups), *MEASURES[1:]]
    return [row for measure in measures if (row := _row(groups, measure))]


def _lost_against_float(groups: tuple[Group, ...]) -> Measure:
    references = float_references(groups)

    def lost(run: Run) -> float | None:
        score, reference = score_of(run), references.get(run.name)
        deployed = None if score is None else score.of(run)
        return None if score is None or deployed is None or reference is None else score.loss(deployed, reference.value)

    return Measure(
        "lost_against_float", "lost against float (points)", "fraction", lost,
        scale=100.0, decimals=2, interval=True, brief=True,
    )  # fmt: skip


def engine_rows(groups: tuple[Group, ...]) -> dict[str, list[Row]]:
    """{engine: rows of its measures} over groups that all report engines side by side; an engine's rows may differ."""
    return {
        engine: [row for measure in engine_measures(engine) if (row := _row(groups, measure))] for engine in ENGINES
    }


def engine_measures(engine: str) -> tuple[Measure, ...]:
    return (
        _percent("engine_accuracy", "accuracy", _at("engines", engine, "metrics", "accuracy")),
        _percent("engine_wer", "word error rate", _at("engines", engine, "metrics", "wer")),
        _percent("engine_agreement", "same prediction as float", _at("engines", engine, "agreement")),
        Measure("engine_model_bytes", "model (bytes)", "bytes", _at("engines", engine, "model_bytes")),
        Measure("engine_latency_ms", "latency (ms)", "ms", _at("engines", engine, "latency_ms"), decimals=2),
    )


def _row(groups: tuple[Group, ...], measure: Measure) -> Row | None:
    usual = measure.usual
    if usual is not None and all(measure.of(run) == usual(run) for group in groups for run in group.runs):
        return None
    estimates = tuple(_estimate(group, measure) for group in groups)
    return Row(measure, estimates) if any(estimate is not None for estimate in estimates) else None


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


def layer_bytes(group: Group, key: str = "recurrent_layer_bytes") -> list[tuple[int, ...]]:
    """Bytes of each recurrent layer as the group's runs have them; one tuple where all runs agree."""
    return sorted({tuple(run.results["size"].get(key) or ()) for run in group.runs if run.results})


def latency_devices(group: Group) -> list[str]:
    return sorted({run.results["latency_ms"]["device"] for run in group.runs if run.results})


def training_devices(group: Group) -> list[str]:
    return sorted({str(run.run_info.get("device_name") or "unknown") for run in group.runs})
