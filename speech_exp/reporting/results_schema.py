"""What results.json must hold (DESIGN section 2, schema version 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """One type of value: `text` says in an error what was expected."""

    text: str
    accepts: Callable[[Any], bool]

    def or_none(self) -> Kind:
        return Kind(f"{self.text} or null", lambda value: value is None or self.accepts(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
COUNT = Kind("a whole number of at least 0", lambda value: _is_int(value) and value >= 0)
COUNTS = Kind(
    "a list of whole numbers of at least 0", lambda value: isinstance(value, list) and all(map(COUNT.accepts, value))
)
NUMBER = Kind("a finite number", _is_number)
AMOUNT = Kind("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)
FRACTION = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
TABLE = Kind("a dict", lambda value: isinstance(value, dict))
TRUE = Kind("true, as a failed check ends the run", lambda value: value is True)
VERSION = Kind(
    f"{SCHEMA_VERSION}, the version this code reads", lambda value: _is_int(value) and value == SCHEMA_VERSION
)

Schema = Mapping[str, "Kind | Maybe | Schema"]


@dataclass(frozen=True)
class Maybe:
    """What a key holds where it is present."""

    expected: Kind | Schema


METRICS: dict[str, Schema] = {
    "classification": {"accuracy": FRACTION, "f1_macro": FRACTION, "loss": NUMBER},
    "ctc": {"wer": AMOUNT, "cer": AMOUNT, "loss": NUMBER},
}
PER_CLASS: Schema = {"precision": FRACTION, "recall": FRACTION, "f1": FRACTION, "support": COUNT}
ENGINES = ("float", "dynamic", "integer")
CERTIFICATE: Schema = {"kind": TEXT, "passed": TRUE, "checked": COUNT, "details": TABLE}
OBJECTIVE = Kind(" or ".join(METRICS), lambda value: value in METRICS)

COMMON: Schema = {
    "schema_version": VERSION,
    "dataset": TEXT,
    "split": TEXT,
    "test_speaker": TEXT.or_none(),
    "features": TEXT,
    "encoder": TEXT,
    "objective": OBJECTIVE,
    "model": TEXT,
    "task": TEXT,
    "c_approach": TEXT.or_none(),
    "kd": TEXT.or_none(),
    "seed": COUNT,
    "epochs": COUNT,
    "best_epoch": COUNT,
    "size": {
        "hidden_size": COUNT,
        "parameters": COUNT,
        "recurrent_layer_bytes": COUNTS,
        "budget_bytes": COUNT.or_none(),
        "model_bytes": COUNT,
        "bits_per_weight": AMOUNT.or_none(),
        "packed_bytes": COUNT.or_none(),
        "packed_layer_bytes": Maybe(COUNTS.or_none()),
    },
    "latency_ms": {"mean": AMOUNT, "p95": AMOUNT, "device": TEXT},
    "seconds": {"features": AMOUNT, "train": AMOUNT, "total": AMOUNT},
    "throughput": {"utterances_per_s": AMOUNT, "audio_s_per_s": AMOUNT},
}


def validate_results(results: Any, allow_unknown: bool = False) -> None:
    """Raise a ValueError that names every key that is missing, of a wrong type, or unknown.

    Writers leave `allow_unknown` false; readers set it, so that results of later versions, and of the earliest ones,
    which have no certificate, can still be compared.
    """
    if not isinstance(results, Mapping):
        raise ValueError(
            f"results.json holds a {type(results).__name__}, expected a dict with the keys of DESIGN section 2"
        )
    problems = _problems(results, _schema(results, allow_unknown), "", allow_unknown)
    epochs, best = results.get("epochs"), results.get("best_epoch")
    if isinstance(epochs, int) and isinstance(best, int) and best > epochs:
        problems.append(f"best_epoch is {best}, expected at most epochs, which is {epochs}")
    if problems:
        raise ValueError("results.json: " + "; ".join(problems))


def _schema(results: Mapping[str, Any], allow_unknown: bool) -> Schema:
    """The whole schema: metrics depend on the objective and the classes."""
    objective = results.get("objective")
    # A list, a dict or an unknown name is reported at its own key; metrics are then read as those of a classification.
    known = objective if isinstance(objective, str) and objective in METRICS else "classification"
    own = METRICS[known]
    metrics: dict[str, Kind | Maybe | Schema] = {"val": own, "test": own, "test_float": Maybe(own)}
    if known == "classification":
        found = results.get("metrics")
        classes = found.get("test_per_class") if isinstance(found, Mapping) else None
        names = list(classes) if isinstance(classes, Mapping) and classes else ["<class>"]
        metrics["test_per_class"] = dict.fromkeys(names, PER_CLASS)
    else:
        metrics["test_edits"] = Maybe(dict.fromkeys(("substitutions", "deletions", "insertions", "words"), COUNT))
    # `agreement` is the share of test predictions that are the same as the float engine's.
    engine: Schema = {"metrics": own, "model_bytes": COUNT, "latency_ms": AMOUNT, "agreement": Maybe(FRACTION)}
    return {
        **COMMON,
        "metrics": metrics,
        "certificate": Maybe(CERTIFICATE) if allow_unknown else CERTIFICATE,
        "engines": Maybe(dict.fromkeys(ENGINES, engine)),
    }


def _problems(value: Mapping[str, Any], schema: Schema, prefix: str, allow_unknown: bool) -> list[str]:
    problems = []
    for key, declared in schema.items():
        name = f"{prefix}{key}"
        expected = declared.expected if isinstance(declared, Maybe) else declared
        if key not in value:
            if not isinstance(declared, Maybe):
                problems.append(
                    f"{name} is missing, expected {expected.text if isinstance(expected, Kind) else 'a dict'}"
                )
        elif isinstance(expected, Kind):
            if not expected.accepts(value[key]):
                problems.append(f"{name} is {value[key]!r}, expected {expected.text}")
        elif not isinstance(value[key], Mapping):
            problems.append(f"{name} is {value[key]!r}, expected a dict")
        else:
            problems += _problems(value[key], expected, f"{name}.", allow_unknown)
    if not allow_unknown:
        unknown = [key for key in value if key not in schema]
        problems += [f"{prefix}{key} is unknown, expected one of {', '.join(schema)}" for key in unknown]
    return problems
