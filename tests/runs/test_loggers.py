"""What loggers receive: TensorBoard read back from its files, MLflow and Weights & Biases by stand-ins for their modules,
and in slow tests by the packages themselves.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speech_exp.runs.loggers import RunLogger, run_loggers

CONFIG = {"seed": 0, "trainer": {"lr": 0.1, **{f"key{number}": number for number in range(150)}}}
ROW = {"epoch": 3, "phase": "ema", "val_loss": 0.5, "lr": 0.25}


@pytest.fixture
def mlflow(monkeypatch):
    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "log_artifacts", "end_run")
    module = Mock(spec=names)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


@pytest.fixture
def wandb(monkeypatch):
    run = SimpleNamespace(log=Mock(), finish=Mock(), summary={})
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Mock(return_value=run), run=run, Image=str))
    return sys.modules["wandb"]


def loggers(
    folder: Path, tensorboard: bool = False, mlflow: str | None = None, wandb: str | None = None
) -> list[RunLogger]:
    return run_loggers(folder / "sweep" / "run", CONFIG, tensorboard, mlflow, wandb)


def log(
    loggers: list[RunLogger], results: dict[str, Any], folder: Path = Path(), error: BaseException | None = None
) -> None:
    with ExitStack() as stack:
        for logger in loggers:
            stack.enter_context(logger)
            logger.epoch(ROW)
            if error:
                raise error
            logger.results(results)
            logger.figures(folder)


@pytest.fixture
def figures(tmp_path):
    """Return a folder with one figure of 2 by 1 pixels."""
    folder = tmp_path / "figures"
    folder.mkdir()
    Image.new("RGB", (2, 1)).save(folder / "flowchart.png")
    return folder


def test_nothing_is_logged_unless_requested(tmp_path):
    assert loggers(tmp_path) == []


def test_tensorboard_contains_the_numbers_of_rows_and_results_and_the_figures(tmp_path, results, figures):
    log(loggers(tmp_path, tensorboard=True), results, figures)
    found = EventAccumulator(str(tmp_path / "sweep" / "run")).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert (scalars.pop("val/loss"), scalars.pop("train/lr")) == ([(3, 0.5)], [(3, 0.25)])
    (picture,) = found.Images("figures/flowchart")
    assert (picture.width, picture.height) == (2, 1)
    accuracy = results["metrics"]["test"]["accuracy"]
    assert scalars["results/metrics.test.accuracy"] == [(results["epochs"], pytest.approx(accuracy))]
    assert not [tag for tag in scalars if not tag.startswith("results/") or "per_class" in tag]


def test_mlflow_gets_config_rows_results_and_figures(tmp_path, mlflow, results, figures):
    log(loggers(tmp_path, mlflow="http://host"), results, figures)
    mlflow.set_tracking_uri.assert_called_once_with("http://host")
    mlflow.start_run.assert_called_once_with(run_name="sweep/run")
    batches = [call.args[0] for call in mlflow.log_params.call_args_list]
    assert all(len(batch) <= 100 for batch in batches)
    assert {key: value for batch in batches for key, value in batch.items()} == {
        "seed": 0,
        **{f"trainer.{key}": value for key, value in CONFIG["trainer"].items()},
    }
    first, last = mlflow.log_metrics.call_args_list
    assert (first.args[0], first.kwargs) == ({"val/loss": 0.5, "train/lr": 0.25}, {"step": 3})
    assert last.args[0]["metrics.val.accuracy"] == results["metrics"]["val"]["accuracy"]
    mlflow.log_artifacts.assert_called_once_with(str(figures), "figures")
    mlflow.end_run.assert_called_once_with("FINISHED")


@pytest.mark.parametrize(("error", "status"), [(ValueError("diverged"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_mlflow_sees_how_a_run_ends(tmp_path, mlflow, results, error, status):
    with pytest.raises(type(error)):
        log(loggers(tmp_path, mlflow="http://host"), results, error=error)
    mlflow.end_run.assert_called_once_with(status)


def test_an_mlflow_server_that_fails_later_ends_no_training(tmp_path, mlflow, results, caplog):
    mlflow.log_metrics.side_effect = OSError("no route")
    log(loggers(tmp_path, mlflow="http://host"), results)
    assert "MLflow at http://host did not receive all of this run: no route" in caplog.text


def test_an_mlflow_server_that_fails_at_the_start_is_an_error(tmp_path, mlflow, results):
    mlflow.set_experiment.side_effect = OSError("no route")
    expected = (
        r"trainer.mlflow=http://host did not accept the run \(no route\): start that server, or set trainer.mlflow=null"
    )
    with pytest.raises(ValueError, match=expected):
        log(loggers(tmp_path, mlflow="http://host"), results)


def test_an_mlflow_run_that_cannot_be_described_is_not_left_open(tmp_path, mlflow, results):
    mlflow.log_params.side_effect = OSError("no route")
    with pytest.raises(ValueError, match=r"trainer.mlflow=http://host did not accept the run \(no route\)"):
        log(loggers(tmp_path, mlflow="http://host"), results)
    mlflow.end_run.assert_called_once_with("FAILED")


def test_weights_and_biases_gets_config_rows_results_and_figures(tmp_path, wandb, results, figures):
    log(loggers(tmp_path, wandb="mine"), results, figures)
    folder = str(tmp_path / "sweep" / "run")
    wandb.init.assert_called_once_with(project="mine", name="sweep/run", config=CONFIG, dir=folder)
    picture = str(figures / "flowchart.png")
    rows = [call({"val/loss": 0.5, "train/lr": 0.25}, step=3), call({"figures/flowchart": picture})]
    assert wandb.run.log.call_args_list == rows
    assert wandb.run.summary["metrics.test.accuracy"] == results["metrics"]["test"]["accuracy"]
    wandb.run.finish.assert_called_once_with(exit_code=0)


def test_weights_and_biases_sees_a_failed_run(tmp_path, wandb, results):
    with pytest.raises(ValueError, match="diverged"):
        log(loggers(tmp_path, wandb="mine"), results, error=ValueError("diverged"))
    wandb.run.finish.assert_called_once_with(exit_code=1)


@pytest.mark.parametrize(
    ("module", "asked", "expected"),
    [
        (
            "torch.utils.tensorboard",
            {"tensorboard": True},
            r"trainer.tensorboard=true needs .*speech_exp\[tensorboard\]",
        ),
        (
            "mlflow",
            {"mlflow": "http://host"},
            r"trainer.mlflow=http://host needs .*speech_exp\[mlflow\]' or set .*=null",
        ),
        ("wandb", {"wandb": "mine"}, r"trainer.wandb=mine needs .*speech_exp\[wandb\]"),
    ],
)
def test_a_missing_package_is_reported_in_one_sentence_before_any_work(tmp_path, monkeypatch, module, asked, expected):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=expected):
        loggers(tmp_path, **asked)
    assert list(tmp_path.iterdir()) == []


def package(name: str) -> Any:
    """Import a package; if it is missing, skip the test, or fail in CI."""
    return import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


def run(folder: Path, *typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).parents[2] / "run.py"), "dataset=digits_demo", "trainer=debug"]
    where = [f"hydra.run.dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    variables = {**{name: value for name, value in os.environ.items() if not name.startswith("WANDB")}, **environment}
    return subprocess.run(
        [*command, *typed, *where], capture_output=True, text=True, cwd=folder, env=variables, stdin=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_mlflow_itself_contains_a_run(tmp_path, monkeypatch):
    mlflow = package("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    ended = run(tmp_path, f"trainer.mlflow={store}", "trainer.epochs=3")
    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("speech_exp").experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", f"{tmp_path.name}/run")
    assert found.data.params["trainer.epochs"] == "3"
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert found.data.metrics["metrics.test.accuracy"] == metrics["test"]["accuracy"]
    assert [row.step for row in client.get_metric_history(found.info.run_id, "val/accuracy")] == [1, 2, 3]


@pytest.mark.slow
def test_a_missing_server_is_reported_in_one_sentence(tmp_path):
    package("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{free.getsockname()[1]}"  # a port where no server listens
        ended = run(tmp_path, f"trainer.mlflow={server}")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert line.startswith(f"error: trainer.mlflow={server} did not accept the run (")
    assert line.endswith("start that server, or set trainer.mlflow=null")
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_weights_and_biases_itself_keeps_a_run_offline(tmp_path):
    package("wandb")
    home = {
        "WANDB_CONFIG_DIR": str(tmp_path / "home"),
        "HOME": str(tmp_path / "home"),
    }  # a home folder without an API key
    refused = run(tmp_path, "trainer.wandb=mine", **home)
    assert refused.returncode == 1
    assert "error: trainer.wandb=mine did not accept the run (" in refused.stderr
    assert "Traceback" not in refused.stderr
    ended = run(tmp_path, "trainer.wandb=mine", WANDB_MODE="offline", **home)
    assert ended.returncode == 0, ended.stderr
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"val_accuracy" in content
    assert b"metrics.test.accuracy" in content
