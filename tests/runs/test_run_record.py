"""The record states how a run ended, keeps each row as it arrives, and never leaves a partial file."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_exp import files
from speech_exp.runs import environment
from speech_exp.runs.record import Prediction, RunRecord, read_history, read_predictions

START: dict[str, Any] = {"seed": 3, "config_hash": "abc", "device": "cpu"}
START |= {"setup": {"config": {"seed": 3}, "choices": {"model": "gru"}, "overrides": ["seed=3"]}}
START |= {"sessions": [environment.session()]}


def read(record: RunRecord, name: str = "run.json") -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads((record.folder / name).read_text(encoding="utf-8"), parse_constant=refuse)
    return found


def test_finished_run(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "new" / "run")
    with record.start(**START):
        during = read(record)
        record.data_read("f00d", [{"id": "3_theo_1", "reason": "empty"}])
    after = read(record)
    assert during["status"] == "running"
    assert during["finished"] is None
    assert after["status"] == "finished"
    assert after["command"] == shlex.join([Path(sys.executable).name, *sys.argv])
    assert (after["seed"], after["config_hash"], after["data_fingerprint"]) == (3, "abc", "f00d")
    assert after["dropped"] == [{"id": "3_theo_1", "reason": "empty"}]
    assert after["started"] <= after["finished"]
    assert {"python", "torch", "torchaudio", "numpy", "hydra-core", "speech_exp"} <= set(after["versions"])
    assert (after["config"], after["choices"], after["overrides"]) == ({"seed": 3}, {"model": "gru"}, ["seed=3"])
    (session,) = after["sessions"]
    assert session["threads"] == torch.get_num_threads()
    assert {"commit", "dirty", "host", "started", "processes"} <= set(session)
    assert {"host", "os", "device", "device_name", "cpu_count", "git"} <= set(after)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("loss is inf at step 7"), "failed"),
        *((SystemExit(code), "failed") for code in (2, 255)),
    ],
)
def test_run_that_ends_early_says_why_and_the_exception_propagates(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    record = RunRecord(tmp_path)
    with pytest.raises(type(error)), record.start(**START):
        record.write_history([{"epoch": 1, "val_accuracy": 0.5}])
        raise error
    found = read(record)
    assert found["status"] == status
    assert str(error) in found["error"]
    assert type(error).__name__ in found["error"]
    assert (found["trace"] is not None) == (status == "failed")
    assert read_history(tmp_path / "history.csv") == [{"epoch": 1.0, "val_accuracy": 0.5}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_a_signal_ends_was_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    record = RunRecord(tmp_path)
    with pytest.raises(SystemExit), record.start(**START):
        raise SystemExit(128 + number)
    found = read(record)
    assert (found["status"], found["error"]) == ("interrupted", f"{number.name}: stopped by a signal")
    assert found["trace"] is None
    assert found["finished"] >= found["started"]


def test_new_start_removes_the_results_of_an_earlier_run(tmp_path: Path, results: dict[str, Any]) -> None:
    record = RunRecord(tmp_path)
    with record.start(**START):
        record.write_history([{"epoch": 1}])
        record.write_results(results)
        record.write_predictions([])
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoint_epoch_3.pt", "checkpoint_epoch_2_best.pt", "checkpoint_epoch_2_best_test.json"):
        (tmp_path / "checkpoints" / name).touch()
    RunRecord(tmp_path).start(**START)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "run.json"]


def test_a_resumed_run_keeps_its_files(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.start(**START)
    record.write_history([{"epoch": 1}])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_epoch_1.pt").touch()
    RunRecord(tmp_path).start(**START, resumes=True)
    assert (tmp_path / "history.csv").exists()
    assert (tmp_path / "checkpoints" / "checkpoint_epoch_1.pt").exists()
    assert read(record)["resumes"] is True


def test_history_is_on_disk_after_every_row_with_all_digits(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.start(**START)
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 0.1 + 0.2, "lr": np.float32(0.5)},
        {"epoch": 2, "loss": float("nan"), "lr": None},
    ]
    for count in range(1, len(rows) + 1):
        record.write_history(rows[:count])
        assert len(read_history(tmp_path / "history.csv")) == count
    with open(tmp_path / "history.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "loss", "lr"], ["1", repr(0.1 + 0.2), "0.5"], ["2", "nan", ""]]
    assert b"\r" not in (tmp_path / "history.csv").read_bytes()


@pytest.mark.parametrize(
    ("row", "text"),
    [({"epoch": 2, "loss": 1.0, "f1": 1.0}, "unknown columns ['f1']"), ({"epoch": 2}, "lacks ['loss']")],
)
def test_first_row_fixes_the_columns(tmp_path: Path, row: dict[str, float], text: str) -> None:
    record = RunRecord(tmp_path)
    record.start(**START)
    record.write_history([{"epoch": 1, "loss": 2.0}])
    before = (tmp_path / "history.csv").read_bytes()
    with pytest.raises(ValueError) as error:
        record.write_history([{"epoch": 1, "loss": 2.0}, row])
    assert text in str(error.value)
    assert "expected those of the first row: epoch, loss" in str(error.value)
    assert (tmp_path / "history.csv").read_bytes() == before


def test_columns_of_text_are_left_out_of_the_history(tmp_path: Path) -> None:
    text = "epoch,phase,val_wer,note\n1,,0.5,\n2,inq 30 %,,\n"
    (tmp_path / "history.csv").write_text(text, encoding="utf-8")
    first, second = read_history(tmp_path / "history.csv")
    assert set(first) == set(second) == {"epoch", "val_wer", "note"}
    assert (first["epoch"], first["val_wer"], second["epoch"]) == (1.0, 0.5, 2.0)
    assert np.isnan(second["val_wer"]) and np.isnan(first["note"])


def test_broken_history_is_named(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2.0\n2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"history.csv line 3 has 1 cells, expected 2"):
        read_history(tmp_path / "history.csv")


def test_results_keep_every_digit_and_take_numpy_numbers(tmp_path: Path, results: dict[str, Any]) -> None:
    record = RunRecord(tmp_path)
    results["metrics"]["test"]["accuracy"] = np.float64(1 / 3)
    results["size"]["recurrent_layer_bytes"] = np.array([36180])
    results["seed"] = np.int64(7)
    record.write_results(results)
    found = read(record, "results.json")
    assert found["metrics"]["test"]["accuracy"] == 1 / 3
    assert found["size"]["recurrent_layer_bytes"] == [36180]
    assert found["seed"] == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path, results: dict[str, Any], value: float) -> None:
    record = RunRecord(tmp_path)
    record.write_results(results)
    before = (tmp_path / "results.json").read_bytes()
    results["metrics"]["test"]["loss"] = value
    with pytest.raises(ValueError, match=r"results.json: metrics.test.loss is (nan|inf), expected a finite number"):
        record.write_results(results)
    assert (tmp_path / "results.json").read_bytes() == before


def test_why_a_run_failed_is_reported_without_the_password_of_a_server(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    with pytest.raises(OSError, match="open"), record.start(**START):
        raise OSError("no answer from http://me:open-sesame@host/api")
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert "no answer from http://***@host/api" in text
    assert "open-sesame" not in text


def test_results_that_break_the_schema_are_not_written(tmp_path: Path, results: dict[str, Any]) -> None:
    results["acuracy"] = 1.0
    with pytest.raises(ValueError, match="acuracy is unknown"):
        RunRecord(tmp_path).write_results(results)
    assert list(tmp_path.iterdir()) == []


def test_predictions(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.write_predictions([{"id": "a", "reference": "0", "prediction": "1", "score": 0.75}])
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8") == "id,reference,prediction,score\na,0,1,0.75\n"
    with pytest.raises(ValueError, match="expected id, reference, prediction, score"):
        record.write_predictions([{"id": "a"}])


def test_predictions_name_speaker_and_recordings_where_these_are_known(tmp_path: Path) -> None:
    known = {"id": "0_theo_71", "speaker": "theo", "recordings": "7_theo_3 1_theo_4"}
    rest = {"reference": "seven one", "prediction": "seven", "score": 0.5}
    path = RunRecord(tmp_path).write_predictions([known | rest, {"id": "b", **rest}])
    assert path.read_text(encoding="utf-8").splitlines()[0] == "id,speaker,recordings,reference,prediction,score"
    assert read_predictions(path) == {
        "0_theo_71": Prediction("seven one", "seven", "theo", ("7_theo_3", "1_theo_4")),
        "b": Prediction("seven one", "seven"),
    }


def test_predictions_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("id,reference,prediction,score\na,0,1,0.75\n", encoding="utf-8")
    assert read_predictions(path) == {"a": Prediction("0", "1")}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "results.json"
    files.write_text(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_does_not_hide_the_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="the real one"), RunRecord(tmp_path).start(**START):
        monkeypatch.setattr(os, "replace", full_disk)
        raise ValueError("the real one")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_state_follows_the_sources_alone(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    assert environment.git_state(package) == {"commit": None, "dirty": None}  # outside a checkout
    git(tmp_path, "init")
    assert environment.git_state(package) == {"commit": None, "dirty": None}  # not tracked, as in a .venv
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    state = environment.git_state(package)
    assert state["dirty"] is False
    assert len(state["commit"]) == 40
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "run.json").write_text("{}", encoding="utf-8")
    assert environment.git_state(package) == state  # results do not make the sources dirty
    (package / "new.py").write_text("x = 1\n", encoding="utf-8")
    assert environment.git_state(package)["dirty"] is True


def test_machine_without_git_still_gives_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record = RunRecord(tmp_path / "run")
    record.start(**START | {"sessions": [environment.session()]})
    assert read(record)["git"] == {"commit": None, "dirty": None}
