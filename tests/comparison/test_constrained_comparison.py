"""Comparison of constrained runs: loss against float, bytes, and engines."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from speech_exp.comparison import compare as comparison
from speech_exp.comparison import figures as comparison_figures
from speech_exp.comparison.compare import Comparison, compare, find_runs
from speech_exp.comparison.grouping import group_runs
from speech_exp.comparison.pareto import Cost, Point
from speech_exp.comparison.score import Score

MakeRun = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def compared(runs: Path) -> Comparison:
    return compare(find_runs(runs), runs.parent / "out")


def line(found: Comparison, title: str) -> list[str]:
    """Return the cells of a row of the main table."""
    (text,) = [one for one in found.markdown.splitlines() if one.startswith(f"| {title} |")]
    return text.strip("| ").split(" | ")[1:]


class TestLabels:
    def labels(self, runs: Path) -> list[str]:
        return [group.label for group in group_runs(find_runs(runs)).groups]

    def test_task_approach_and_teacher_are_one_part(self, make_run: MakeRun, runs: Path) -> None:
        settings = [("B1", None, None), ("C", "apot2", None), ("C", "apot2", "teacher"), ("C", "ema", "none")]
        for at, (task, approach, kd) in enumerate(settings):
            make_run(f"{at}", task=task, c_approach=approach, kd=kd)
        assert self.labels(runs) == ["B1", "C apot2", "C apot2 + kd", "C ema"]

    def test_sweep_of_approaches_and_models(self, make_run: MakeRun, runs: Path) -> None:
        for model in ("lmu", "gru"):
            for approach in ("inq", "ema"):
                for seed in (0, 1):
                    name = f"model={model},c_approach={approach},seed={seed}"
                    make_run(name, task="C", model=model, c_approach=approach, seed=seed, overrides=name.split(","))
        assert self.labels(runs) == ["gru · ema", "gru · inq", "lmu · ema", "lmu · inq"]

    def test_teacher_alone(self, make_run: MakeRun, runs: Path) -> None:
        for kd in ("none", "teacher"):
            make_run(kd, task="C", c_approach="ste", kd=kd)
        assert self.labels(runs) == ["no kd", "kd"]

    def test_model_and_setting_make_the_label(self, make_run: MakeRun, runs: Path) -> None:
        for model in ("gru", "lstm"):
            for kd in ("none", "teacher"):
                make_run(f"{model}{kd}", model=model, kd=kd, task="C", overrides=["trainer.lr=1"] * (kd == "none"))
        groups = group_runs(find_runs(runs)).groups
        assert [(group.model, group.setting) for group in groups[:2]] == [("gru", "no kd"), ("gru", "kd")]
        assert all(group.label == f"{group.model} · {group.setting}" for group in groups)


@pytest.mark.usefixtures("undrawn")
class TestLostAgainstFloat:
    def test_paired_with_the_run_of_b1_by_hand(self, make_run: MakeRun, runs: Path) -> None:
        for seed, (reference, deployed) in enumerate([(0.99, 0.98), (0.98, 0.98), (0.97, 0.95)]):
            make_run(f"b{seed}", reference, task="B1", seed=seed)
            make_run(f"c{seed}", deployed, task="C", c_approach="ema", seed=seed, test_float=0.5)
        found = compared(runs)
        # Differences 0.01, 0, 0.02: mean 0.01, s = 0.01, t(2) = 4.302653: half width 0.0248414.
        assert line(found, "lost against float (points)") == ["–", "1.00 (-1.48 to 3.48)"]
        assert "same data, features, encoder, objective, model and seed (3 of 3 runs)." in found.markdown
        rows = csv.DictReader((runs.parent / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines())
        (row,) = [row for row in rows if row["metric"] == "lost_against_float"]
        assert (row["group"], row["n"], row["unit"]) == ("C ema", "3", "fraction")
        assert float(row["mean"]) == pytest.approx(0.01)
        assert float(row["low"]) == pytest.approx(0.01 - 0.0248414, abs=1e-7)

    def test_without_a_float_run_the_float_model_of_the_run_is_the_reference(
        self, make_run: MakeRun, runs: Path
    ) -> None:
        make_run("b", 0.99, task="B1", features="mfcc39")
        make_run("c", 0.98, task="C", c_approach="ema", test_float=0.985)
        found = compared(runs)
        assert line(found, "lost against float (points)") == ["0.50", "–"]
        assert "the reference is the float model that each run itself tested" in found.markdown

    def test_mixed_references_are_reported(self, make_run: MakeRun, runs: Path) -> None:
        make_run("b", 0.99, task="B1", seed=0)
        for seed in (0, 1):
            make_run(f"c{seed}", 0.98, task="C", c_approach="ema", seed=seed, test_float=0.985)
        make_run("d", 0.98, task="B2", seed=3)
        found = compared(runs)
        assert line(found, "lost against float (points)")[2] == "0.75"  # of 1.0 and 0.5
        assert "model and seed (1 of 2 runs), or without one the float model that the run itself tested: C ema (1 of 2 runs)." in found.markdown  # fmt: skip
        assert "Without a float reference, so that their loss is unknown: B2." in found.markdown

    def test_every_key_that_must_agree(self, make_run: MakeRun, runs: Path) -> None:
        make_run("c", 0.9, task="B2", test_float=0.95)
        others = {
            "dataset": "digits_demo",
            "split": "random",
            "features": "mfcc39",
            "encoder": "asr",
            "model": "lmu",
            "seed": 7,
        }
        for key, value in others.items():
            make_run(f"other {key}", 0.99, **{"task": "B1", key: value})
        assert "the float model that each run itself tested" in compared(runs).markdown
        assert set(line(compared(runs), "lost against float (points)")) == {"–", "5.00"}

    def test_among_several_runs_the_one_with_the_same_setting_is_used(self, make_run: MakeRun, runs: Path) -> None:
        for lr, reference in (("0.1", 0.9), ("0.2", 0.8)):
            make_run(f"b{lr}", reference, task="B1", overrides=[f"trainer.lr={lr}"])
        for lr in ("0.1", "0.2", "0.3"):
            make_run(f"c{lr}", 0.85, task="C", c_approach="ema", overrides=[f"trainer.lr={lr}"])
        # No float run has the third setting, so its reference is the mean of both.
        assert line(compared(runs), "lost against float (points)") == ["–", "–", "5.00", "-5.00", "0.00"]

    def test_each_test_speaker_has_its_own(self, make_run: MakeRun, runs: Path) -> None:
        for speaker, reference, deployed in (("theo", 0.9, 0.85), ("lucas", 0.8, 0.8)):
            for task, accuracy in (("B1", reference), ("B2", deployed)):
                make_run(f"{task}{speaker}", accuracy, task=task, split="speaker", test_speaker=speaker)
        assert line(compared(runs), "lost against float (points)") == ["–", "2.50"]

    def test_another_validation_speaker_is_another_run(self, make_run: MakeRun, runs: Path) -> None:
        split: dict[str, Any] = {"split": "speaker", "test_speaker": "theo"}
        for name, task, accuracy, speaker in (
            ("b", "B1", 0.9, "lucas"),
            ("c", "C", 0.85, "lucas"),
            ("d", "C", 0.8, "jackson"),
        ):
            make_run(
                name, accuracy, task=task, overrides=[f"dataset.validation_speaker={speaker}"], test_float=0.82, **split
            )
        assert line(compared(runs), "lost against float (points)") == ["–", "3.50"]  # of 5.0 and 2.0

    def test_nothing_is_lost_in_float_tasks(self, make_run: MakeRun, runs: Path) -> None:
        for task in ("A", "B1"):
            make_run(task, task=task)
        assert "against float" not in compared(runs).markdown

    def test_no_negative_zero(self, make_run: MakeRun, runs: Path) -> None:
        make_run("c", 0.95 + 1e-9, task="B2", test_float=0.95)
        assert line(compared(runs), "lost against float (points)") == ["0.00"]


@pytest.mark.usefixtures("undrawn")
class TestBytes:
    def test_bits_and_packed_bytes_only_where_they_tell_something(self, make_run: MakeRun, runs: Path) -> None:
        make_run("b", task="B1", size={"packed_bytes": 38032, "packed_layer_bytes": [36180]})
        found = compared(runs)
        assert "bits per weight" not in found.markdown
        assert "recurrent layers, packed" not in found.markdown
        assert line(found, "model, packed file (bytes)") == ["38,032"]
        size = {"bits_per_weight": 4.25, "packed_bytes": 5000, "packed_layer_bytes": [2000, 2805]}
        make_run("c", task="C", c_approach="inq", size=size)
        found = compared(runs)
        assert line(found, "bits per weight") == ["32.00", "4.25"]
        assert line(found, "model (bytes)") == ["38,020", "38,020"]
        assert line(found, "model, packed file (bytes)") == ["38,032", "5,000"]
        assert line(found, "recurrent layers, packed (bytes)") == ["36,180", "2,000 + 2,805"]

    def test_front_is_named_with_packed_bytes_or_else_those_of_the_model(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a", 0.99, task="A", size={"model_bytes": 140000, "packed_bytes": None})
        make_run("b", 0.98, task="B1", size={"model_bytes": 38020, "packed_bytes": None})
        make_run("b2", 0.97, task="B2", size={"model_bytes": 39000, "packed_bytes": 39000})
        make_run("c", 0.96, task="C", c_approach="inq", size={"packed_bytes": 5000})
        front = "Pareto front of accuracy over stored bytes: C inq (5,000 bytes), B1 (38,020 bytes), A (140,000 bytes)."
        assert front in compared(runs).markdown

    def test_many_groups_become_rows_of_the_measures_that_matter(self, make_run: MakeRun, runs: Path) -> None:
        size = {"bits_per_weight": 4.0, "packed_bytes": 4752, "packed_layer_bytes": [4522]}
        for at in range(9):
            make_run(f"{at}", 0.98, task="C", c_approach=f"approach_{at}", size=size, test_float=0.99)
        lines = compared(runs).markdown.splitlines()
        assert "| approach_8 | 1 (1) | 98.00 | 1.00 | 4.00 | 36,180 | 4,522 | 38,020 | 4,752 | 1.50 | 10.0 |" in lines


def engines(results: dict[str, Any], accuracy: float) -> dict[str, Any]:
    found = {}
    for name, lost, model_bytes, latency_ms in (("float", 0.0, 38020, 0.5), ("dynamic", 0.01, 12000, 0.75), ("integer", 0.02, 9505, 4.0)):  # fmt: skip
        metrics = {**results["metrics"]["test"], "accuracy": accuracy - lost}
        found[name] = {"metrics": metrics, "model_bytes": model_bytes, "latency_ms": latency_ms}
    return found


@pytest.mark.usefixtures("undrawn")
class TestEngines:
    def test_side_by_side(self, make_run: MakeRun, results: dict[str, Any], runs: Path) -> None:
        make_run("b1", 0.99, task="B1")
        for seed in (0, 1):
            make_run(f"b2{seed}", 0.95, task="B2", seed=seed, engines=engines(results, 0.98 + 0.01 * seed))
        found = compared(runs).markdown.splitlines()
        at = found.index("## Engines side by side")
        assert found[at + 2] == "| group | engine | accuracy (%) | model (bytes) | latency (ms) |"
        assert found[at + 4 : at + 8] == [
            "| B2 | float | 98.50 | 38,020 | 0.50 |",
            "| B2 | dynamic | 97.50 | 12,000 | 0.75 |",
            "| B2 | integer (emulated in PyTorch, not measured on a device) | 96.50 | 9,505 | 4.00 |",
            "",
        ]
        rows = csv.DictReader((runs.parent / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines())
        found_bytes = {row["item"]: row["mean"] for row in rows if row["metric"] == "engine_model_bytes"}
        assert found_bytes == {"float": "38020", "dynamic": "12000", "integer": "9505"}

    def test_agreement_is_shown_where_it_was_measured(
        self, make_run: MakeRun, results: dict[str, Any], runs: Path
    ) -> None:
        own = engines(results, 0.98)
        own["integer"]["agreement"] = 0.9967
        make_run("b2", task="B2", engines=own)
        text = compared(runs).markdown
        assert "| gru | float | 98.00 | – | 38,020 | 0.50 |" in text
        assert (
            "| gru | integer (emulated in PyTorch, not measured on a device) | 96.00 | 99.67 | 9,505 | 4.00 |" in text
        )

    def test_the_float_engine_that_trained_less_is_reported(
        self, make_run: MakeRun, results: dict[str, Any], runs: Path
    ) -> None:
        for qat in (0, 5):
            own = engines(results, 0.98)
            config = f"task:\n  qat_epochs: {qat}\n"
            make_run(
                f"b2{qat}", task="B2", engines=own, config=config, overrides=[f"task.qat_epochs={qat}"], test_float=0.98
            )
        text = compared(runs).markdown
        assert "| task.qat_epochs=0 | float | 98.00 |" in text
        assert "| task.qat_epochs=5 | float (not trained for the 5 QAT epochs) | 98.00 |" in text
        assert "Trained longer than its float reference, by task.qat_epochs: task.qat_epochs=5." in text

    def test_emulated_latency_is_labelled_and_left_out_of_figures(
        self, make_run: MakeRun, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for task in ("B1", "B2"):
            make_run(task, task=task)
        drawn = {}

        def noted(points: Sequence[Point], cost: Cost, _: Score, path: Path) -> Path:
            drawn[cost.title] = [point.setting for point in points]
            return path

        monkeypatch.setattr(comparison_figures, "comparison_front", noted)
        monkeypatch.setattr(comparison, "page", lambda *_: "")  # embeds the figures
        found = compared(runs)
        assert drawn == {"bytes": ["B1", "B2"], "latency": ["B1"], "training time": ["B1", "B2"]}
        assert line(found, "latency measured on") == ["cpu", "cpu, emulated in PyTorch, not measured on a device"]
        assert (
            "Left out of the figure over latency, because they are emulated in PyTorch, not measured on a device: B2."
            in found.markdown
        )

    def test_no_section_without_engines(self, make_run: MakeRun, runs: Path) -> None:
        make_run("b1", task="B1")
        assert "Engines" not in compared(runs).markdown


@pytest.mark.usefixtures("undrawn")
def test_results_without_certificate_are_still_counted(make_run: MakeRun, runs: Path) -> None:
    path = make_run("old") / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    del results["certificate"]
    path.write_text(json.dumps(results), encoding="utf-8")
    assert "1 run in 1 group." in compared(runs).markdown


def test_order_of_constrained_runs_changes_no_byte(make_run: MakeRun, results: dict[str, Any], runs: Path) -> None:
    values = random.Random(0)
    for model in ("gru", "lstm"):
        for seed in range(2):
            make_run(f"{model}b1{seed}", values.random(), model=model, task="B1", seed=seed)
            own = engines(results, values.random())
            make_run(f"{model}b2{seed}", values.random(), model=model, task="B2", seed=seed, engines=own)
            for approach in ("ema", "inq", "ste"):
                name = f"{model}{approach}{seed}"
                make_run(name, 0.9, model=model, task="C", c_approach=approach, seed=seed, size={"packed_bytes": 5000})
    found = find_runs(runs)
    compare(found, runs.parent / "one" / "sweep")
    compare(random.Random(1).sample(found, len(found)), runs.parent / "two" / "sweep")
    names = {path.name for path in (runs.parent / "one" / "sweep").iterdir()}
    assert len(names) == 16
    for name in names:
        assert (runs.parent / "one" / "sweep" / name).read_bytes() == (
            runs.parent / "two" / "sweep" / name
        ).read_bytes(), name
