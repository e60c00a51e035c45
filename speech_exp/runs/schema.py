"""Schema of results.json (version 1), and of what reports read from run.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from speech_exp.safe_text import printable

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """One type of value; `text` describes it in error messages."""

    text: str
    accepts: Callable[[Any], bool]

    def or_none(self) -> Kind:
        return Kind(f"{self.text} or null", lambda value: value is None or self.accepts(value))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


TEXT = Kind("text", lambda value: isinstance(value, str) and value != "")
COUNT = Kind("an integer of at least 0", lambda value: _is_int(value) and value >= 0)
COUNTS = Kind(
    "a list of integers of at least 0", lambda value: isinstance(value, list) and all(map(COUNT.accepts, value))
)
NUMBER = Kind("a finite number", _is_number)
AMOUNT = Kind("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)
FRACTION = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
TABLE = Kind("a dict", lambda value: isinstance(value, dict))
TRUE = Kind("true (a failed check ends the run)", lambda value: value is True)
VERSION = Kind(
    f"{SCHEMA_VERSION}, the version that this code reads", lambda value: _is_int(value) and value == SCHEMA_VERSION
)

Schema = Mapping[str, "Kind | Maybe | Schema"]


@dataclass(frozen=True)
class Maybe:
    """An optional key, and what it must contain if present."""

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
        "memory_channels": Maybe(COUNT),  # of an LMU
        "order": Maybe(COUNT),
        "parameters": COUNT,
        "recurrent_layer_bytes": COUNTS,
        "recurrent_state_bytes": Maybe(COUNTS),
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


_OPEN_TEXT = Kind("text", lambda value: isinstance(value, str)).or_none()
_LINES = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
_MOMENT = Kind("a time in ISO 8601", lambda value: isinstance(value, str) and is_time(value)).or_none()
_RUN: Schema = {
    **dict.fromkeys(("command", "host", "device_name", "config_hash", "data_fingerprint", "error"), Maybe(_OPEN_TEXT)),
    "status": Maybe(TEXT),
    "pid": Maybe(COUNT.or_none()),
    "process_started_s": Maybe(AMOUNT.or_none()),
    "started": Maybe(_MOMENT),
    "finished": Maybe(_MOMENT),
    "trace": Maybe(_LINES.or_none()),
    "git": Maybe(
        Kind("a dict", lambda value: isinstance(value, dict) and _OPEN_TEXT.accepts(value.get("commit"))).or_none()
    ),
}


def is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return False
    return True


def validate_run(record: Mapping[str, Any], name: str = "run.json") -> None:
    """Raise a ValueError if a value that reports read from run.json or outcome.json has the wrong type."""
    if problems := _problems(record, _RUN, "", allow_unknown=True):
        raise ValueError(f"{name}: " + "; ".join(problems))


def validate_results(results: Any, allow_unknown: bool = False) -> None:
    """Raise a ValueError that names every key that is missing, has the wrong type or is unknown.

    Writers leave `allow_unknown` false. Readers set it, to accept results of later versions and of the earliest ones,
    which have no certificate.
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"results.json contains a {type(results).__name__}, expected a dict")
    problems = _problems(results, _schema(results, allow_unknown), "", allow_unknown)
    epochs, best = results.get("epochs"), results.get("best_epoch")
    if isinstance(epochs, int) and isinstance(best, int) and best > epochs:
        problems.append(f"best_epoch is {best}, expected at most epochs, which is {epochs}")
    if problems:
        raise ValueError("results.json: " + "; ".join(problems))


def _schema(results: Mapping[str, Any], allow_unknown: bool) -> Schema:
    """Return the whole schema; the metrics depend on the objective and the classes."""
    objective = results.get("objective")
    # An invalid objective is reported under its own key; metrics are then checked as those of a classification.
    known = objective if isinstance(objective, str) and objective in METRICS else "classification"
    scores = METRICS[known]
    metrics: dict[str, Kind | Maybe | Schema] = {"val": scores, "test": scores, "test_float": Maybe(scores)}
    if known == "classification":
        found = results.get("metrics")
        classes = found.get("test_per_class") if isinstance(found, Mapping) else None
        names = list(classes) if isinstance(classes, Mapping) and classes else ["<class>"]
        metrics["test_per_class"] = dict.fromkeys(names, PER_CLASS)
    else:
        metrics["test_edits"] = Maybe(dict.fromkeys(("substitutions", "deletions", "insertions", "words"), COUNT))
    # `agreement` is the share of test predictions that are the same as the float engine's.
    engine: Schema = {"metrics": scores, "model_bytes": COUNT, "latency_ms": AMOUNT, "agreement": Maybe(FRACTION)}
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
                problems.append(f"{name} is {printable(repr(value[key]), 80)}, expected {expected.text}")
        elif not isinstance(value[key], Mapping):
            problems.append(f"{name} is {printable(repr(value[key]), 80)}, expected a dict")
        else:
            problems += _problems(value[key], expected, f"{name}.", allow_unknown)
    if not allow_unknown:
        unknown = [key for key in value if key not in schema]
        problems += [f"{prefix}{key} is unknown, expected one of {', '.join(schema)}" for key in unknown]
    return problems
