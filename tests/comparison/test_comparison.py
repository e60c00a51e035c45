"""Numbers of a comparison by hand calculation; runs that cannot be counted are named; the order of runs does not matter."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.comparison.estimates import Estimate, student_interval
from speech_exp.comparison.grouping import group_runs

MakeRun = Callable[..., Path]


def labels(folder: Path) -> list[str]:
    return [group.label for group in group_runs(find_runs(folder)).groups]


def notes(folder: Path) -> str:
    return compare(find_runs(folder), folder / "out").markdown


def csv_values(text: str, **where: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text)) if all(row[key] == value for key, value in where.items())]


class TestInterval:
    def test_by_hand(self) -> None:
        # Mean 0.98, s = 0.01, t(2) = 4.302653 (any table): half width 4.302653 * 0.01 / sqrt(3).
        found = student_interval([0.97, 0.98, 0.99])
        assert found.mean == pytest.approx(0.98, abs=1e-15)
        assert found.low == pytest.approx(0.9551586, abs=1e-7)
        assert found.high == pytest.approx(1.0048414, abs=1e-7)

    def test_five_seeds(self) -> None:
        # t(4) = 2.776445, s = sqrt(2.5).
        found = student_interval([1, 2, 3, 4, 5])
        assert found.high is not None
        assert found.high - 3 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)

    def test_fewer_than_three_values_have_none(self) -> None:
        assert student_interval([0.5]) == Estimate(1, 0.5)
        assert student_interval([0.5, 0.6]) == Estimate(2, 0.55)

    def test_equal_values_tell_nothing_of_their_spread(self) -> None:
        assert student_interval([0.9] * 5) == Estimate(5, 0.9)

    def test_cut_at_what_a_value_can_be(self) -> None:
        found = student_interval([0.97, 0.98, 0.99], 0.0, 1.0)
        assert (found.low, found.high) == (pytest.approx(0.9551586, abs=1e-7), 1.0)

    def test_no_value(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            student_interval([])


@pytest.mark.usefixtures("undrawn")
class TestGroups:
    def test_models_are_the_columns_in_their_usual_order(self, make_run: MakeRun, tmp_path: Path) -> None:
        for model in ("lmu", "lstm", "gru"):
            for seed in (0, 1):
                make_run(f"{model}{seed}", model=model, seed=seed, overrides=[f"model={model}", f"seed={seed}"])
        grouping = group_runs(find_runs(tmp_path / "runs"))
        assert [group.label for group in grouping.groups] == ["gru", "lstm", "lmu"]
        assert grouping.keys == ("model",)
        assert grouping.same["dataset"] == "fsdd"
        assert grouping.notes == ()

    def test_tasks_and_approaches(self, make_run: MakeRun, tmp_path: Path) -> None:
        for task, approach in (("C", "inq"), ("A", None), ("C", "ema"), ("B1", None)):
            make_run(f"{task}{approach}", task=task, c_approach=approach)
        assert labels(tmp_path / "runs") == ["A", "B1", "C ema", "C inq"]

    def test_a_key_of_one_task_is_not_part_of_the_labels_of_others(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("float", task="B1", config="task:\n  budget_bytes: 1\n")
        for epochs in (0, 5):
            config = f"task:\n  budget_bytes: 1\n  qat_epochs: {epochs}\n"
            make_run(f"qat{epochs}", task="B2", overrides=[f"task.qat_epochs={epochs}"], config=config)
        assert labels(tmp_path / "runs") == ["B1", "B2 · task.qat_epochs=0", "B2 · task.qat_epochs=5"]

    def test_weights_that_were_only_rounded_are_labelled(self, make_run: MakeRun, tmp_path: Path) -> None:
        for fine_tune in (False, True):
            text = str(fine_tune).lower()
            config, typed = f"task:\n  fine_tune: {text}\n", [f"task.fine_tune={text}"]
            make_run(f"C{text}", task="C", c_approach="ste", overrides=typed, config=config)
        assert labels(tmp_path / "runs") == ["rounded", "fine-tuned"]

    def test_typed_overrides_that_vary_make_groups_sorted_by_size(self, make_run: MakeRun, tmp_path: Path) -> None:
        for lr in ("0.01", "0.002", "0.1"):
            make_run(f"lr{lr}", overrides=[f"trainer.lr={lr}", f"seed={lr}", "trainer.epochs=3"])
        assert labels(tmp_path / "runs") == ["trainer.lr=0.002", "trainer.lr=0.01", "trainer.lr=0.1"]

    def test_typing_the_default_changes_nothing(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("typed", seed=0, overrides=["trainer.lr=1e-3"], config="trainer:\n  lr: 0.001\n")
        make_run("default", seed=1, config="trainer:\n  lr: 0.001\n")
        assert len(labels(tmp_path / "runs")) == 1

    def test_a_typed_default_that_another_key_owns_changes_nothing(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("a", seed=0, overrides=["trainer.lr=1e-3"], config="recipe:\n  lr: 0.001\ntrainer:\n  lr: 0.001\n")
        make_run("b", seed=1, config="recipe:\n  lr: 0.001\ntrainer:\n  lr: 0.001\n")
        assert len(labels(tmp_path / "runs")) == 1

    def test_a_random_split_that_follows_the_seed_makes_no_groups(self, make_run: MakeRun, tmp_path: Path) -> None:
        for seed in (0, 1):
            make_run(f"{seed}", seed=seed, config=f"seed: {seed}\ndataset:\n  split_seed: {seed}\n")
        grouping = group_runs(find_runs(tmp_path / "runs"))
        assert [group.seeds for group in grouping.groups] == [[0, 1]]
        assert grouping.notes == ()

    def test_setting_that_varies_with_the_model_is_reported_and_makes_no_group(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        make_run("a", model="gru", overrides=["trainer.lr=0.1"])
        make_run("b", model="lstm", overrides=["trainer.lr=0.2"])
        assert labels(tmp_path / "runs") == ["gru", "lstm"]
        assert "trainer.lr varies together with model" in notes(tmp_path / "runs")

    def test_edited_config_between_seeds_is_reported(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("a", seed=0, config="seed: 0\ntrainer:\n  weight_decay: 0.1\n")
        make_run("b", seed=1, config="seed: 1\ntrainer:\n  weight_decay: 0.2\n")
        text = notes(tmp_path / "runs")
        assert "the configs of its runs differ in trainer.weight_decay" in text

    def test_rerun_of_a_seed_counts_once(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("first", 0.5, seed=0)
        make_run("second", 0.9, seed=0)
        make_run("third", 0.9, seed=1)
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        assert [len(group.runs) for group in found.grouping.groups] == [2]
        assert "left out because they repeat a seed and setting: first" in found.markdown


@pytest.mark.usefixtures("undrawn")
class TestReport:
    def test_numbers_by_hand(self, make_run: MakeRun, tmp_path: Path) -> None:
        for seed, accuracy in enumerate((0.97, 0.98, 0.99)):
            make_run(f"gru{seed}", accuracy, model="gru", seed=seed)
            make_run(f"lstm{seed}", 0.5, model="lstm", seed=seed)
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        lines = found.markdown.splitlines()
        assert "| runs (seeds) | 3 (3) | 3 (3) |" in lines
        assert "| accuracy (%) | 98.00 (95.52 to 100.00) | 50.00 |" in lines
        assert "| F1, mean of classes (%) | 89.00 | 89.00 |" in lines
        assert "| parameters | 9,505 | 9,505 |" in lines
        assert "| recurrent layers (bytes) | 36,180 | 36,180 |" in lines
        assert "| latency, 95th percentile (ms) | 2.50 | 2.50 |" in lines
        assert "| training (s) | 10.0 | 10.0 |" in lines
        assert "| no | 100.0 | 100.0 |" in lines  # precision of class "no"
        text = (tmp_path / "out" / "comparison.csv").read_text(encoding="utf-8")
        (row,) = csv_values(text, group="gru", metric="accuracy")
        assert (row["n"], row["unit"], row["model"]) == ("3", "fraction", "gru")
        assert float(row["mean"]) == pytest.approx(0.98)
        assert float(row["low"]) == pytest.approx(0.9551586, abs=1e-7)
        assert float(row["high"]) == 1
        (row,) = csv_values(text, group="lstm", metric="class_recall", item="no")
        assert float(row["mean"]) == pytest.approx(0.8)
        assert row["low"] == ""

    def test_same_runs_elsewhere_give_the_same_text(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("a")
        first = compare(find_runs(tmp_path / "runs"), tmp_path / "one").markdown
        (tmp_path / "runs").rename(tmp_path / "moved")
        assert compare(find_runs(tmp_path / "moved"), tmp_path / "two").markdown == first

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_too_few_seeds_have_no_interval_and_the_report_explains_it(
        self, make_run: MakeRun, tmp_path: Path, seeds: int
    ) -> None:
        for seed in range(seeds):
            make_run(f"a{seed}", 0.8 + 0.2 * seed / seeds, seed=seed)
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        assert f"| accuracy (%) | {80 + 20 * (seeds - 1) / seeds / 2:.2f} |" in found.markdown
        assert "No intervals, because they need at least 3 seeds." in found.markdown

    def test_groups_are_in_the_order_of_their_numbers(self, make_run: MakeRun, tmp_path: Path) -> None:
        for epochs in ("10", "2", "1e-3"):
            make_run(epochs, overrides=[f"trainer.epochs={epochs}"])
        assert labels(tmp_path / "runs") == [f"trainer.epochs={one}" for one in ("1e-3", "2", "10")]

    def test_different_seeds_are_reported(self, make_run: MakeRun, tmp_path: Path) -> None:
        for model, seeds in (("gru", (0, 1)), ("lstm", (0, 2))):
            for seed in seeds:
                make_run(f"{model}{seed}", model=model, seed=seed)
        assert "The groups have different seeds (gru: 0, 1; lstm: 0, 2)." in notes(tmp_path / "runs")

    def test_other_threads_and_commits_are_reported(self, make_run: MakeRun, tmp_path: Path) -> None:
        for seed, (threads, commit) in enumerate([(1, "a" * 40), (2, "a" * 40), (1, "b" * 40)]):
            make_run(f"{seed}", seed=seed, run_info={"sessions": [{"threads": threads, "commit": commit}]})
        text = notes(tmp_path / "runs")
        assert "Computed with different numbers of threads (1, 2), which changes the last bits of a run." in text
        assert "The runs were made by different commits (aaaaaaaaaa, bbbbbbbbbb)." in text
        (tmp_path / "runs" / "1").rename(tmp_path / "1")
        (tmp_path / "runs" / "2").rename(tmp_path / "2")
        text = notes(tmp_path / "runs")
        assert "threads (" not in text
        assert "commits" not in text

    def test_many_groups_become_rows(self, make_run: MakeRun, tmp_path: Path) -> None:
        for lr in range(1, 10):
            make_run(f"lr{lr}", overrides=[f"trainer.lr={lr}"])
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out").markdown.splitlines()
        titles = "runs (seeds) | accuracy (%) | recurrent layers (bytes) | model (bytes) | latency, mean (ms, cpu)"
        assert f"| group | {titles} | training (s) |" in found
        assert "| trainer.lr=9 | 1 (1) | 90.00 | 36,180 | 38,020 | 1.50 | 10.0 |" in found

    def test_models_of_other_directions_are_not_on_equal_terms(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("gru", model="gru", config="model: {bidirectional: true}\n")
        make_run("lmu", model="lmu", config="model: {bidirectional: false}\n")
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out").markdown
        assert "| directions | 2 | 1 |" in found
        assert (
            "Not a like-for-like comparison, because directions differ (bidirectional: gru; unidirectional: lmu)."
            in found
        )

    def test_directions_are_not_mentioned_if_all_models_have_one(self, make_run: MakeRun, tmp_path: Path) -> None:
        for model in ("gru", "lmu"):
            make_run(model, model=model, config="model: {bidirectional: false}\n")
        assert "directions" not in compare(find_runs(tmp_path / "runs"), tmp_path / "out").markdown

    def test_layers_are_listed_one_by_one(self, make_run: MakeRun, results: dict[str, Any], tmp_path: Path) -> None:
        make_run("a", size=results["size"] | {"recurrent_layer_bytes": [100, 2000]})
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        assert "| recurrent layers (bytes) | 100 + 2,000 |" in found.markdown


class TestFigures:
    def test_files_and_links(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("a")
        out = tmp_path / "out"
        found = compare(find_runs(tmp_path / "runs"), out)
        names = {f"comparison.{form}" for form in ("md", "csv", "tex", "html")}
        kinds = ("accuracy", "per_class", "curves", "bytes", "latency", "training")
        names |= {f"comparison_{kind}.{form}" for kind in kinds for form in ("png", "svg")}
        assert {path.name for path in out.iterdir()} == {path.name for path in found.files} == names
        assert all(f"]({name})" in found.markdown for name in names if name.endswith(".png"))

    def test_figure_without_data_is_left_out_and_an_old_one_removed(self, make_run: MakeRun, tmp_path: Path) -> None:
        (make_run("a") / "history.csv").unlink()
        (tmp_path / "out").mkdir()
        stale = [tmp_path / "out" / f"comparison_{part}.png" for part in ("curves", "size")]
        for path in stale:
            path.write_bytes(b"old")
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        assert not any(path.exists() for path in stale)
        assert "comparison_curves" not in found.markdown

    def test_order_of_runs_changes_no_byte(self, make_run: MakeRun, tmp_path: Path) -> None:
        values = random.Random(0)
        for model in ("gru", "lstm"):
            for seed in range(3):
                make_run(f"{model}{seed}", values.random(), model=model, seed=seed)
        for name in ("x", "y", "z"):
            (make_run(name) / "results.json").unlink()
        runs = find_runs(tmp_path / "runs")
        compare(runs, tmp_path / "one" / "sweep")
        compare(random.Random(1).sample(runs, len(runs)), tmp_path / "two" / "sweep")
        for path in (tmp_path / "one" / "sweep").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / "sweep" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("undrawn")
class TestSpeakers:
    def test_mean_over_speakers_then_over_seeds(self, make_run: MakeRun, tmp_path: Path) -> None:
        accuracies = {("theo", 0): 0.8, ("theo", 1): 0.7, ("lucas", 0): 1.0, ("lucas", 1): 0.9}
        for (speaker, seed), accuracy in accuracies.items():
            make_run(f"{speaker}{seed}", accuracy, split="speaker", test_speaker=speaker, seed=seed)
        found = compare(find_runs(tmp_path / "runs"), tmp_path / "out")
        assert "| runs (seeds) | 4 (2) |" in found.markdown
        assert "| accuracy (%) | 85.00 |" in found.markdown
        assert "| worst speaker (%) | 75.00 (theo) |" in found.markdown
        assert "| lucas | 95.00 |" in found.markdown

    def test_missing_speaker_is_reported(self, make_run: MakeRun, tmp_path: Path) -> None:
        for speaker, seed in (("theo", 0), ("theo", 1), ("lucas", 0)):
            make_run(f"{speaker}{seed}", split="speaker", test_speaker=speaker, seed=seed)
        assert "no run of seed 1 with speaker lucas" in notes(tmp_path / "runs")


@pytest.mark.usefixtures("undrawn")
class TestFoundRuns:
    def test_unfinished_and_broken_runs_are_named(self, make_run: MakeRun, tmp_path: Path) -> None:
        make_run("sweep/0", seed=0)
        runs = tmp_path / "runs"
        (make_run("sweep/1") / "results.json").write_text('{"seed": ', encoding="utf-8")
        (make_run("sweep/2", run_info={"status": "failed", "error": "ValueError: a\n| b"}) / "results.json").unlink()
        (make_run("sweep/3", run_info={"status": "running"}) / "results.json").unlink()
        (make_run("sweep/4", seed=4) / "run.json").unlink()
        make_run("sweep/5", run_info={"config": {"trainer": {"lr": 0.1}}})
        (make_run("sweep/6") / "results.json").write_text(json.dumps({"seed": 6}), encoding="utf-8")
        (make_run("sweep/7") / "results.json").write_bytes(b"\xff\xfe\x00")
        (runs / "no_run").mkdir()
        found = find_runs(runs)
        assert [run.name for run in found] == [f"sweep/{at}" for at in range(8)]
        assert [run.results is not None for run in found] == [at == 0 for at in range(8)]
        problems = {run.name: run.problem or "" for run in found}
        assert "results.json is not JSON" in problems["sweep/1"]
        assert problems["sweep/2"] == "no results.json, status failed: ValueError: a | b"
        assert problems["sweep/3"] == "no results.json, status running"
        assert problems["sweep/4"] == "broken record: run.json is missing"
        assert problems["sweep/5"] == "broken record: run.json contains a config that does not match its config_hash"
        assert "model is missing" in problems["sweep/6"]
        assert problems["sweep/7"] == "broken record: results.json is not UTF-8"
        text = compare(found, tmp_path / "out").markdown
        assert "1 run in 1 group." in text
        assert "7 runs without results" in text
        assert "| sweep/2 | failed | no results.json, status failed: ValueError: a \\| b |" in text

    def test_run_folder_itself_and_runs_below_runs(self, make_run: MakeRun) -> None:
        folder = make_run("student", seed=1)
        make_run("student/teacher", seed=1)
        (run,) = find_runs(folder)
        assert run.name == "student"

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not a folder, expected one that contains run folders: set runs to"):
            find_runs(tmp_path / "none")

    def test_nothing_to_compare(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no run has a results\.json"):
            compare([], tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_results_of_a_run_not_marked_finished_are_counted_and_reported(
        self, make_run: MakeRun, tmp_path: Path
    ) -> None:
        make_run("a", run_info={"status": "interrupted"})
        assert "although they are not finished: a (interrupted)" in notes(tmp_path / "runs")


@pytest.mark.usefixtures("undrawn")
def test_the_latex_table_fits_a_column_of_a_paper(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        for model in ("lstm", "lmu"):
            predictions = [(f"{at}@s{at % 6}", "yes", "no" if at % 9 == seed else "yes") for at in range(60)]
            make_run(
                f"{model}{seed}",
                0.9,
                model=model,
                seed=seed,
                task="C",
                c_approach="row_shared",
                predictions=predictions,
            )
            make_run(f"{model}{seed} float", 0.9, model=model, seed=seed, task="B1", predictions=predictions)
    compare(find_runs(tmp_path / "runs"), tmp_path / "out")
    lines = (tmp_path / "out" / "comparison.tex").read_text(encoding="utf-8").splitlines()
    cells = [line.removesuffix(r" \\").split(" & ") for line in lines if " & " in line]
    font = FontProperties(family="cmr10", size=9)  # \small in a paper of 10 pt
    widths_pt = [
        max(TextPath((0, 0), cell, prop=font).get_extents().width for cell in column)
        for column in zip(*cells, strict=True)
    ]
    assert len(cells) == 5
    assert 1.15 * 72.27 + sum(widths_pt[1:]) + 4 * 2 * (len(widths_pt) - 1) <= 3.3 * 72.27
