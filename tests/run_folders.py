"""Hand-made run folders with known numbers."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from speech_exp.comparison import charts, curve_charts
from speech_exp.comparison import figures as comparison_figures
from speech_exp.config_roles import config_hash
from speech_exp.files import write_bytes

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)

RESULTS: dict[str, Any] = {
    "schema_version": 1,
    "dataset": "fsdd",
    "split": "official",
    "test_speaker": None,
    "features": "mfcc20",
    "encoder": "compact",
    "objective": "classification",
    "model": "gru",
    "task": "A",
    "c_approach": None,
    "kd": "none",
    "seed": 0,
    "epochs": 3,
    "best_epoch": 2,
    "metrics": {
        "val": {"accuracy": 0.95, "f1_macro": 0.94, "loss": 0.2},
        "test": {"accuracy": 0.9, "f1_macro": 0.89, "loss": 0.3},
        "test_per_class": {
            "yes": {"precision": 0.8, "recall": 1.0, "f1": 0.88, "support": 10},
            "no": {"precision": 1.0, "recall": 0.8, "f1": 0.9, "support": 10},
        },
    },
    "size": {
        "hidden_size": 45,
        "parameters": 9505,
        "recurrent_layer_bytes": [36180],
        "budget_bytes": None,
        "model_bytes": 38020,
        "bits_per_weight": 32.0,
        "packed_bytes": None,
    },
    "certificate": {"kind": "none", "passed": True, "checked": 0, "details": {}},
    "latency_ms": {"mean": 1.5, "p95": 2.5, "device": "cpu"},
    "seconds": {"features": 2.0, "train": 10.0, "total": 15.0},
    "throughput": {"utterances_per_s": 1000.0, "audio_s_per_s": 440.0},
}


@pytest.fixture
def results() -> dict[str, Any]:
    """Return a complete results.json of a classification."""
    return copy.deepcopy(RESULTS)


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run folder below tmp_path / "runs", without the code under test."""

    def make(
        name: str,
        accuracy: float = 0.9,
        overrides: Sequence[str] = (),
        config: str | None = None,
        history: Sequence[float] = (0.5, 0.8, 0.9),
        run_info: Mapping[str, Any] | None = None,
        test_float: float | None = None,
        size: Mapping[str, Any] | None = None,
        predictions: Sequence[tuple[str, str, str]] = (),
        **changes: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        found = copy.deepcopy(RESULTS) | changes
        found["metrics"]["test"]["accuracy"] = accuracy
        found["size"] |= size or {}
        if test_float is not None:
            found["metrics"]["test_float"] = {**found["metrics"]["test"], "accuracy": test_float}
        (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
        composed = yaml.safe_load(config or "{}")
        record = {"status": "finished", "config": composed, "config_hash": config_hash(composed)}
        record |= {"overrides": list(overrides), **(run_info or {})}
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        rows = [f"{epoch},{value}" for epoch, value in enumerate(history, start=1)]
        (folder / "history.csv").write_text("\n".join(["epoch,val_accuracy", *rows, ""]), encoding="utf-8")
        if predictions:
            write_predictions(folder, predictions)
        return folder

    return make


def write_predictions(folder: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write predictions.csv from (id, reference, prediction); the speaker is the part of the id after `@`."""
    lines = [f"{','.join(row)},0.5,{row[0].partition('@')[2]}" for row in rows]
    header = "id,reference,prediction,score,speaker"
    (folder / "predictions.csv").write_text("\n".join([header, *lines, ""]), encoding="utf-8")


@pytest.fixture
def make_recogniser(make_run: MakeRun) -> MakeRun:
    """Return a function like `make_run` for a run that is judged by its word error rate."""

    def make(name: str, wer: float, test_float: float | None = None, **changes: Any) -> Path:
        rates = {"wer": wer, "cer": wer / 2, "loss": 0.1}
        metrics: dict[str, Any] = {"val": rates, "test": rates}
        if test_float is not None:
            metrics["test_float"] = {**rates, "wer": test_float}
        folder = make_run(name, **{"objective": "ctc", "dataset": "fsdd_strings", **changes})
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        (folder / "results.json").write_text(json.dumps(results | {"metrics": metrics}), encoding="utf-8")
        (folder / "history.csv").write_text("epoch,val_wer\n1,0.9\n2,0.4\n", encoding="utf-8")
        return folder

    return make


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace figures by single pixels in tests that read only numbers and words, because drawing is slow."""

    def write(*arguments: Any) -> Path:
        (path,) = [argument for argument in arguments if isinstance(argument, Path)]
        return write_bytes(path, ONE_PIXEL)

    for name in ("comparison_scores", "comparison_per_class"):
        monkeypatch.setattr(charts, name, write)
    monkeypatch.setattr(curve_charts, "comparison_curves", write)
    monkeypatch.setattr(comparison_figures, "comparison_front", write)
