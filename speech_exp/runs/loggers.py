"""Send a run's epochs, results and figures to TensorBoard, MLflow or Weights & Biases (each needs the extra of that name).

The run folder remains the record; loggers receive a copy. They are open from before the first epoch to the end of the run.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any

import numpy as np

from speech_exp.safe_text import without_credentials

_log = logging.getLogger(__name__)

_RESULTS = ("metrics", "size", "latency_ms", "seconds", "throughput")  # parts of results.json that are worth a column
_MLFLOW_BATCH = 100  # most parameters that a server accepts at once (mlflow.utils.validation)
_MLFLOW_RETRIES = 3  # MLflow's default of 7 takes four minutes, a delay in every epoch if the server is down


class RunLogger(AbstractContextManager["RunLogger"]):
    """A context that logs one run; leaving it closes the logged run, as failed after an exception."""

    @abstractmethod
    def epoch(self, row: Mapping[str, float | str]) -> None:
        """Log the numbers in a row of the history."""

    @abstractmethod
    def results(self, results: Mapping[str, Any]) -> None:
        """Log the numbers in results.json."""

    @abstractmethod
    def figures(self, folder: Path) -> None:
        """Log the PNG files in a folder."""


def run_loggers(
    folder: Path, config: Mapping[str, Any], tensorboard: bool, mlflow: str | None, wandb: str | None
) -> list[RunLogger]:
    """Return the requested loggers, not yet opened; a missing package raises ValueError here, before any work.

    Args:
        folder: run folder; its last two path components are the run's name.
        config: resolved config, shown by MLflow and Weights & Biases.
        tensorboard: whether to log to TensorBoard.
        mlflow: tracking URI, or None for no logging to MLflow.
        wandb: project, or None for no logging to Weights & Biases.
    """
    loggers: list[RunLogger] = []
    name = "/".join(folder.parts[-2:])
    if tensorboard:
        package = _package("torch.utils.tensorboard", "tensorboard", "true", "false")
        loggers.append(TensorBoard(package.SummaryWriter, folder))
    if mlflow is not None:
        loggers.append(MLflow(_package("mlflow", "mlflow", mlflow, "null"), mlflow, name, config))
    if wandb is not None:
        loggers.append(WeightsAndBiases(_package("wandb", "wandb", wandb, "null"), wandb, name, config, folder))
    return loggers


def _package(module: str, extra: str, value: str, off: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ValueError(
            f"trainer.{extra}={without_credentials(value)} needs the package {extra}: pip install 'speech_exp[{extra}]' or set trainer.{extra}={off}"
        ) from None


@contextmanager
def _opening(service: str, remedy: str) -> Iterator[None]:
    """Turn an error of the package or its server at the start into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:  # errors of the packages, and of the network
        raise ValueError(
            without_credentials(f"{service} did not accept the run ({shorten(str(error), 300)}): {remedy}")
        ) from error


class TensorBoard(RunLogger):
    """Writes event files to the run folder; results are under `results/` at the last epoch."""

    def __init__(self, summary_writer: Callable[[str], Any], folder: Path) -> None:
        self._open, self._folder = summary_writer, folder

    def __enter__(self) -> TensorBoard:
        self._writer = self._open(str(self._folder))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def epoch(self, row: Mapping[str, float | str]) -> None:
        for name, value in _row_numbers(row).items():
            self._writer.add_scalar(name, value, int(row["epoch"]))

    def results(self, results: Mapping[str, Any]) -> None:
        for name, value in _result_numbers(results).items():
            self._writer.add_scalar(f"results/{name}", value, results["epochs"])

    def figures(self, folder: Path) -> None:
        from PIL import Image

        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as picture:
                self._writer.add_image(f"figures/{path.stem}", np.asarray(picture.convert("RGB")), dataformats="HWC")


class MLflow(RunLogger):
    """Logs a run of the experiment `speech_exp`. If the server fails later, a warning is logged and training goes on."""

    def __init__(self, mlflow: Any, tracking_uri: str, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow, self._tracking_uri, self._name, self._config = mlflow, tracking_uri, name, config

    def __enter__(self) -> MLflow:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(_MLFLOW_RETRIES))
        logging.getLogger("urllib3").setLevel(
            logging.ERROR
        )  # a line for each retry would bury the one that says what to do
        with _opening(f"trainer.mlflow={self._tracking_uri}", "start that server, or set trainer.mlflow=null"):
            self._mlflow.set_tracking_uri(self._tracking_uri)
            self._mlflow.set_experiment("speech_exp")
            self._mlflow.start_run(run_name=self._name)
            try:
                settings = list(_flat(self._config).items())
                for first in range(0, len(settings), _MLFLOW_BATCH):
                    self._mlflow.log_params(dict(settings[first : first + _MLFLOW_BATCH]))
            except BaseException:
                self._try(lambda: self._mlflow.end_run("FAILED"))  # if left open, it would stop the next run of a sweep
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stopped = kind is not None and not issubclass(kind, Exception)  # Ctrl-C
        status = "KILLED" if stopped else "FINISHED" if kind is None else "FAILED"
        self._try(lambda: self._mlflow.end_run(status))

    def epoch(self, row: Mapping[str, float | str]) -> None:
        self._try(lambda: self._mlflow.log_metrics(_row_numbers(row), step=int(row["epoch"])))

    def results(self, results: Mapping[str, Any]) -> None:
        self._try(lambda: self._mlflow.log_metrics(_result_numbers(results)))

    def figures(self, folder: Path) -> None:
        self._try(lambda: self._mlflow.log_artifacts(str(folder), "figures"))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # errors of the network and of MLflow share no closer base class
            message = without_credentials(f"MLflow at {self._tracking_uri} did not receive all of this run: {error}")
            _log.warning("%s", message)


class WeightsAndBiases(RunLogger):
    """Logs a run of a project, with local files in the run folder; WANDB_MODE=offline and other WANDB_* variables apply."""

    def __init__(self, wandb: Any, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        self._wandb, self._project, self._name, self._config, self._folder = wandb, project, name, config, folder

    def __enter__(self) -> WeightsAndBiases:
        with _opening(f"trainer.wandb={self._project}", "set WANDB_MODE=offline, or trainer.wandb=null"):
            self._run = self._wandb.init(
                project=self._project, name=self._name, config=dict(self._config), dir=str(self._folder)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def epoch(self, row: Mapping[str, float | str]) -> None:
        self._run.log(_row_numbers(row), step=int(row["epoch"]))

    def results(self, results: Mapping[str, Any]) -> None:
        self._run.summary.update(_result_numbers(results))

    def figures(self, folder: Path) -> None:
        pictures = {f"figures/{path.stem}": self._wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
        self._run.log(pictures)


def _row_numbers(row: Mapping[str, float | str]) -> dict[str, float]:
    """Return the numbers of an epoch in two groups, such as `val/accuracy` and `train/lr`."""
    numbers = {name: value for name, value in row.items() if name != "epoch" and not isinstance(value, str)}
    return {
        f"val/{name[4:]}" if name.startswith("val_") else f"train/{name.removeprefix('train_')}": value
        for name, value in numbers.items()
    }


def _result_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers such as `metrics.test.accuracy`, without those of single classes, and without lists."""
    flat = _flat({part: results[part] for part in _RESULTS})
    return {
        name: value
        for name, value in flat.items()
        if isinstance(value, (int, float)) and not name.startswith("metrics.test_per_class.")
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten `{"trainer": {"lr": 1}}` to `{"trainer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
