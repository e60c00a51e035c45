"""When a command creates or empties a run folder, and which config its record contains."""

import json
import sys
from pathlib import Path

import pytest
import torch
from composition import composing, without_figures
from hydra.core.global_hydra import GlobalHydra
from run_files import best

from speech_exp.command_line.main import UserError, run
from speech_exp.comparison.compare import find_runs
from speech_exp.config_roles import config_hash
from speech_exp.training.resuming import run_lock

SMALL = ("dataset=digits_demo", "trainer=debug", "trainer.device=cpu", "trainer.epoch_batches=2", "model.hidden_size=4")
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture
def command(cache, tmp_path, monkeypatch):
    """Return a function that carries out a command line in a new current folder."""
    monkeypatch.chdir(tmp_path)
    with composing(), without_figures():
        yield lambda *typed: GlobalHydra.instance().hydra.run("config", run, [*QUIET, cache, *typed]).return_value


def contents(folder):
    """Return the content of every file below a folder, except the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".lock" not in path.name}


WRONG = [
    "trainer.epochs=many",
    "trainer.lr=-1",
    "seed=-1",
    "task=C task.k_min=9",
    "task=C task.start_epoch=0",
    "dataset.split=fold",
    "dataset.root=/nowhere",
    "dataset.index_ranges.test=[90,99]",
    "dataset.synthetic_voices=8",
    "augment.speeds=[0.9,1.0]",
    "augment.batch.time_masks=few",
    "features.normalization=batch",
    "features.extractor.hop_s=1",
    "objective=ctc",
    "model.hidden_size=0",
    "resume=/nowhere",
    "kd=teacher task=C c_approach=ste kd.run=/nowhere",
    "task=C task.float_checkpoint=/nowhere.pt",
    "action=evaluate checkpoint=/nowhere.pt",
    "action=predict",
    "action=compare",
    "action=status",
    "action=inspect listen=-1",
]


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_value_leaves_no_folder(command, tmp_path, typed):
    with pytest.raises(UserError):
        command(*SMALL, *typed.split())
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_run_leaves_no_folder(command, finished, tmp_path):
    with pytest.raises(UserError, match="belongs to a different run"):
        command(*SMALL, "seed=1", "resume=run", "hydra.run.dir=other")
    assert list(tmp_path.iterdir()) == [finished]


def test_a_missing_package_of_a_logger_leaves_no_folder(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="needs the package mlflow"):
        command(*SMALL, "trainer.mlflow=http://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed", ["dry_run=true", "action=check"])
def test_what_makes_nothing_leaves_no_folder(command, tmp_path, typed):
    command(*SMALL, typed)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(command, tmp_path):
    command(*SMALL, "hydra.run.dir=run")
    return tmp_path / "run"


def test_the_record_contains_the_hashed_config_and_the_typed_overrides(finished):
    record = json.loads((finished / "run.json").read_text())
    assert record["config_hash"] == config_hash(record["config"])
    assert record["choices"]["model"] == "gru"
    assert set(SMALL) < set(record["overrides"])
    assert record["sessions"][-1]["threads"] == torch.get_num_threads()
    assert not (finished / ".hydra").exists()
    log = (finished / "run.log").read_text()
    assert f"run folder  {finished}" in log
    assert log.count("  epoch 1  val_accuracy ") == 1
    (found,) = find_runs(finished)
    assert (found.problem, found.config["model.hidden_size"]) == (None, 4)


def test_another_config_in_the_folder_of_a_finished_run_changes_nothing_but_by_resume_false(command, finished, capsys):
    before = contents(finished)
    for typed in ("seed=1", "seed=1 resume=true", "trainer.lr=0.1"):
        with pytest.raises(UserError, match=r"a different run|a different config"):
            command(*SMALL, *typed.split(), "hydra.run.dir=run")
        assert contents(finished) == before
    command(*SMALL, "seed=1", "resume=false", "hydra.run.dir=run")
    assert f"resume=false: the run in {finished} is replaced" in capsys.readouterr().out
    assert json.loads((finished / "results.json").read_text())["seed"] == 1


def test_a_damaged_record_beside_whole_states_loses_nothing(command, finished):
    (finished / "run.json").write_text("{")
    before = contents(finished)
    with pytest.raises(UserError, match=r"run\.json is missing or damaged"):
        command(*SMALL, "hydra.run.dir=run")
    assert contents(finished) == before
    metrics = json.loads((finished / "results.json").read_text())["metrics"]
    command(*SMALL, "resume=true", "hydra.run.dir=run")
    assert json.loads((finished / "results.json").read_text())["metrics"] == metrics
    assert len(json.loads((finished / "run.json").read_text())["sessions"]) == 2


def test_a_process_that_is_refused_does_not_relabel_the_run(command, finished):
    before = contents(finished)
    with run_lock(finished), pytest.raises(UserError, match="is in use by process"):  # as if the run were in progress
        command(*SMALL, "resume=false", "seed=1", "trainer.lr=0.1", "hydra.run.dir=run")
    assert contents(finished) == before
    (found,) = find_runs(finished)
    assert (found.problem, found.config["seed"]) == (None, 0)


def test_a_config_that_was_changed_is_a_broken_record(finished):
    record = json.loads((finished / "run.json").read_text())
    record["config"]["trainer"]["lr"] = 1.0
    (finished / "run.json").write_text(json.dumps(record))
    (found,) = find_runs(finished)
    assert (found.results, found.problem) == (
        None,
        "broken record: run.json contains a config that does not match its config_hash",
    )


def test_evaluate_writes_beside_the_checkpoint_and_makes_no_folder(command, finished, tmp_path):
    before = set(tmp_path.rglob("*"))
    command("action=evaluate", f"checkpoint={best(finished)}", "trainer.device=cpu")
    stem = best(finished).with_suffix("")
    assert set(tmp_path.rglob("*")) - before == {Path(f"{stem}_test.json"), Path(f"{stem}_test_predictions.csv")}
