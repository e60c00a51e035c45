"""Runs compared by word error rate: lower is better in the loss against float, in fronts and in figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.comparison.pareto import Point, pareto_front
from speech_exp.comparison.score import WER

MakeRun = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.usefixtures("undrawn")
def test_points_of_error_rate_added_against_float(make_recogniser: MakeRun, runs: Path) -> None:
    make_recogniser("b", 0.10, task="B1")
    make_recogniser("c", 0.125, task="C", c_approach="inq")
    make_recogniser("d", 0.09, task="B2")
    text = compare(find_runs(runs), runs.parent / "out").markdown
    assert "| lost against float (points) | – | -1.00 | 2.50 |" in text
    assert "Lost against float: points of added word error rate, paired by seed" in text


@pytest.mark.usefixtures("undrawn")
def test_without_a_float_run_the_float_model_of_the_run_is_the_reference(make_recogniser: MakeRun, runs: Path) -> None:
    make_recogniser("c", 0.125, task="C", c_approach="inq", test_float=0.12)
    assert "| lost against float (points) | 0.50 |" in compare(find_runs(runs), runs.parent / "out").markdown


@pytest.mark.usefixtures("undrawn")
def test_front_wants_few_errors_for_little(make_recogniser: MakeRun, runs: Path) -> None:
    points = [Point("", str(at), *place) for at, place in enumerate([(100, 0.1), (200, 0.05), (300, 0.07)])]
    assert pareto_front(points, WER) == [0, 1]
    make_recogniser("a", 0.05, task="A", size={"packed_bytes": 200})
    make_recogniser("b", 0.10, task="B1", size={"packed_bytes": 100})
    text = compare(find_runs(runs), runs.parent / "out").markdown
    assert "Pareto front of word error rate over stored bytes: B1 (100 bytes), A (200 bytes)." in text


def test_figures_and_the_score_of_each_run(make_recogniser: MakeRun, make_run: MakeRun, runs: Path) -> None:
    make_recogniser("a", 0.05)
    make_run("b", 0.75)
    found = compare(find_runs(runs), runs.parent / "out")
    kinds = ("", "_curves", "_bytes", "_latency", "_training")
    names = {path.name for path in found.files}
    assert {f"comparison_wer{kind}.png" for kind in kinds} <= names
    assert {"comparison_accuracy.png", "comparison_bytes.png"} <= names
    assert "| fsdd | 0 | 75.00 | – | 2 | – | b |" in found.markdown
    assert "| fsdd_strings | 0 | – | 5.00 | 2 | – | a |" in found.markdown


@pytest.mark.usefixtures("undrawn")
def test_costs_of_several_devices_are_not_drawn_in_one_figure(make_run: MakeRun, runs: Path) -> None:
    make_run("a", model="gru", run_info={"device_name": "H100"})
    make_run("b", model="lmu", run_info={"device_name": "AMD EPYC"}, seconds={"features": 1, "train": 1, "total": 2})
    make_run("c", model="lstm", latency_ms={"mean": 0.0, "p95": 1.0, "device": "cpu"})
    found = compare(find_runs(runs), runs.parent / "out")
    names = {path.name for path in found.files}
    assert "comparison_bytes.png" in names
    assert not {"comparison_training.png", "comparison_latency.png"} & names
    note = "No figure over training time, because the runs used different devices: AMD EPYC, H100, unknown."
    assert note in found.markdown
    assert "No figure over latency, because not every run has a value above 0." in found.markdown
