"""Every invalid results.json is refused with the key, its value and the expected one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from speech_exp.runs.schema import validate_results

Change = Callable[[dict[str, Any]], Any]


def engines(results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the engines of task B2; `changes` apply to the dynamic one."""
    engine = {"metrics": results["metrics"]["test"], "model_bytes": 9505, "latency_ms": 1.5}
    return {"float": {**engine}, "dynamic": {**engine, **changes}, "integer": {**engine}}


def test_complete_results_pass(results: dict[str, Any]) -> None:
    validate_results(results)
    results["metrics"]["test_float"] = results["metrics"]["test"]
    results["certificate"] = {"kind": "bytes", "passed": True, "checked": 1, "details": {"layers": [36180]}}
    results["size"] |= {"budget_bytes": 36864, "packed_layer_bytes": [4523]}
    results["engines"] = engines(results)
    validate_results(results)
    results["size"]["packed_layer_bytes"] = None
    results["engines"]["integer"]["agreement"] = 0.99
    validate_results(results)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.pop("model"), "model is missing, expected text"),
        (lambda r: r["size"].pop("model_bytes"), "size.model_bytes is missing, expected an integer"),
        (lambda r: r.pop("latency_ms"), "latency_ms is missing, expected a dict"),
        (lambda r: r["metrics"].pop("test_per_class"), "metrics.test_per_class is missing"),
        (lambda r: r["metrics"].update(test_per_class={}), "metrics.test_per_class.<class> is missing"),
        (lambda r: r["metrics"]["test_per_class"]["no"].pop("f1"), "metrics.test_per_class.no.f1 is missing"),
        (
            lambda r: r["metrics"]["test"].update(accuracy=99.3),
            "metrics.test.accuracy is 99.3, expected a number from 0",
        ),
        (lambda r: r["metrics"]["val"].update(loss=float("nan")), "metrics.val.loss is nan, expected a finite number"),
        (lambda r: r.update(seed=True), "seed is True, expected an integer"),
        (lambda r: r.update(seed="0"), "seed is '0', expected an integer"),
        (lambda r: r.update(objective="regression"), "objective is 'regression', expected classification or ctc"),
        (lambda r: r["size"].update(recurrent_layer_bytes=36180), "recurrent_layer_bytes is 36180, expected a list"),
        (lambda r: r.update(sead=1), "sead is unknown, expected one of schema_version"),
        (lambda r: r["seconds"].update(test=1.0), "seconds.test is unknown, expected one of features, train, total"),
        (lambda r: r.update(schema_version=2), "schema_version is 2, expected 1"),
        (lambda r: r.update(best_epoch=4), "best_epoch is 4, expected at most epochs, which is 3"),
        (lambda r: r.update(size=None), "size is None, expected a dict"),
        (lambda r: r.pop("certificate"), "certificate is missing, expected a dict"),
        (lambda r: r["certificate"].update(passed=False), "certificate.passed is False, expected true"),
        (lambda r: r["certificate"].update(passed=1), "certificate.passed is 1, expected true"),
        (lambda r: r["certificate"].update(checked=-1), "certificate.checked is -1, expected an integer"),
        (lambda r: r["certificate"].pop("details"), "certificate.details is missing, expected a dict"),
        (lambda r: r["certificate"].update(kind=None), "certificate.kind is None, expected text"),
        (lambda r: r["size"].update(packed_layer_bytes=[0.5]), "size.packed_layer_bytes is [0.5], expected a list"),
        (
            lambda r: r.update(engines={"float": engines(r)["float"], "dynamic": engines(r)["dynamic"]}),
            "engines.integer is missing",
        ),
        (lambda r: r.update(engines={**engines(r), "int4": {}}), "engines.int4 is unknown, expected one of float"),
        (
            lambda r: r.update(engines=engines(r, metrics={"accuracy": 1.0, "f1_macro": 1.0})),
            "engines.dynamic.metrics.loss is missing",
        ),
        (lambda r: r.update(engines=engines(r, latency_ms=-1)), "engines.dynamic.latency_ms is -1, expected a finite"),
        (
            lambda r: r.update(engines=engines(r, agreement=99.5)),
            "engines.dynamic.agreement is 99.5, expected a number",
        ),
    ],
)
def test_one_wrong_key_is_named(results: dict[str, Any], change: Change, text: str) -> None:
    change(results)
    with pytest.raises(ValueError, match=r"^results\.json: ") as error:
        validate_results(results)
    assert text in str(error.value)
    assert ";" not in str(error.value)  # no other key is reported


def test_all_problems_are_reported_at_once(results: dict[str, Any]) -> None:
    del results["model"], results["seconds"]
    with pytest.raises(ValueError, match=r"model is missing.*; seconds is missing"):
        validate_results(results)


def test_readers_pass_over_keys_of_later_versions(results: dict[str, Any]) -> None:
    results["energy"] = 1
    results["size"]["flash_bytes"] = 1
    validate_results(results, allow_unknown=True)


def test_readers_take_results_from_before_there_were_certificates_but_none_that_failed(results: dict[str, Any]) -> None:
    certificate = results.pop("certificate")
    validate_results(results, allow_unknown=True)
    results["certificate"] = {**certificate, "passed": False}
    with pytest.raises(ValueError, match=r"certificate\.passed is False"):
        validate_results(results, allow_unknown=True)


def test_ctc_needs_error_rates_and_no_classes(results: dict[str, Any]) -> None:
    results["objective"] = "ctc"
    results["metrics"] = {part: {"wer": 1.2, "cer": 0.4, "loss": 3.0} for part in ("val", "test")}
    validate_results(results)
    del results["metrics"]["test"]["wer"]
    with pytest.raises(ValueError, match=r"metrics\.test\.wer is missing"):
        validate_results(results)


def test_something_else_than_a_dict() -> None:
    with pytest.raises(ValueError, match="contains a list, expected a dict"):
        validate_results([])
