"""A run's epochs and results where people watch them: TensorBoard, MLflow, Weights & Biases (extras of their names).

The run folder stays the record; a logger is told what it holds. Each is open from before the first epoch to the run's end.
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

_log = logging.getLogger(__name__)

_RESULTS = ("metrics", "size", "latency_ms", "seconds", "throughput")  # of results.json, what is worth a column
_MLFLOW_BATCH = 100  # parameters that a server takes at once (mlflow.utils.validation)
_MLFLOW_RETRIES = 3  # its own 7 take four minutes, which each epoch would wait for a server that is gone


class RunLogger(AbstractContextManager["RunLogger"]):
    """Leaving it closes the run there, as failed where an exception leaves."""

    @abstractmethod
    def epoch(self, row: Mapping[str, float | str]) -> None:
        """Take the numbers of a row of the history."""

    @abstractmethod
    def results(self, results: Mapping[str, Any]) -> None:
        """Take the numbers of results.json."""


def run_loggers(
    folder: Path, config: Mapping[str, Any], tensorboard: bool, mlflow: str | None, wandb: str | None
) -> list[RunLogger]:
    """Those asked for, still closed; a missing package is told here, before any work.

    Args:
        folder: run folder, whose last two names are the run's name.
        config: resolved config, as MLflow and Weights & Biases list it.
        mlflow: tracking URI; None for none.
        wandb: project; None for none.
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
            f"trainer.{extra}={value} needs the package {extra}: pip install 'speech_exp[{extra}]' or set trainer.{extra}={off}"
        ) from None


@contextmanager
def _opening(asked: str, remedy: str) -> Iterator[None]:
    """What a package or its server refuses at the start, in one sentence."""
    try:
        yield
    except Exception as error:  # the packages' own, and those of the network
        raise ValueError(f"{asked} took no run ({shorten(str(error), 300)}): {remedy}") from error


class TensorBoard(RunLogger):
    """Event files in the run folder; results stand below `results/` at the last epoch."""

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


class MLflow(RunLogger):
    """A run of the experiment `speech_exp`. A server that fails later is reported and does not end a training."""

    def __init__(self, mlflow: Any, tracking_uri: str, name: str, config: Mapping[str, Any]) -> None:
        self._mlflow, self._tracking_uri, self._name, self._config = mlflow, tracking_uri, name, config

    def __enter__(self) -> MLflow:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(_MLFLOW_RETRIES))
        with _opening(f"trainer.mlflow={self._tracking_uri}", "start that server, or set trainer.mlflow=null"):
            self._mlflow.set_tracking_uri(self._tracking_uri)
            self._mlflow.set_experiment("speech_exp")
            self._mlflow.start_run(run_name=self._name)
            try:
                settings = list(_flat(self._config).items())
                for first in range(0, len(settings), _MLFLOW_BATCH):
                    self._mlflow.log_params(dict(settings[first : first + _MLFLOW_BATCH]))
            except BaseException:
                self._try(lambda: self._mlflow.end_run("FAILED"))  # left open it would stop the next run of a sweep
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

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # of the network and of mlflow: they share no nearer base
            _log.warning("MLflow at %s was not told all of this run: %s", self._tracking_uri, error)


class WeightsAndBiases(RunLogger):
    """A run of a project, its local files in the run folder; WANDB_MODE=offline and its other variables hold."""

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


def _row_numbers(row: Mapping[str, float | str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and not isinstance(value, str)}


def _result_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """`metrics.test.accuracy` and so on; of classes and other lists nothing."""
    flat = _flat({part: results[part] for part in _RESULTS})
    return {
        name: value
        for name, value in flat.items()
        if isinstance(value, (int, float)) and not name.startswith("metrics.test_per_class.")
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"trainer": {"lr": 1}}` as `{"trainer.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
