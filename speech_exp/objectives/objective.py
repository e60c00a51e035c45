"""The interface of an objective: a network around an encoder, a loss, and an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from speech_exp.features.batch import Batch
from speech_exp.models.encoder import Encoder
from speech_exp.objectives.prediction import Prediction


class Network(nn.Module):
    """An encoder followed by a linear layer; the forward pass takes features and lengths."""

    encoder: Encoder
    output: nn.Linear
    score: nn.Linear | None  # of attention pooling; no default, because a class attribute would hide the submodule


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]  # sorted by id; keys id, reference, prediction, score

    def tables(self) -> dict[str, Any]:
        """Return the test values that results.json lists in `metrics` besides the metrics themselves."""
        return {}


class Objective(ABC):
    """What a network is trained for. `output` is whatever the network's forward pass returns."""

    name: ClassVar[str]
    primary: ClassVar[str]  # the main metric of a run
    goal: ClassVar[Literal["maximize", "minimize"]]  # direction of `primary`
    targets: ClassVar[str]  # what the data set must provide: "classes" or "text"
    views: int = 1  # differently augmented copies of each training batch, concatenated, that the loss uses together

    def outputs(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the network's outputs for a data set with these classes."""
        return class_names

    @abstractmethod
    def network(self, encoder: Encoder, num_classes: int) -> Network: ...

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return one number for the batch: a mean over what `weight` counts."""

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """Return the weight of a batch in averages of losses, which makes them independent of how utterances are batched."""

    @abstractmethod
    def rows(self, output: Any) -> torch.Tensor:
        """Return all distributions over classes in the output, (N, V): one per utterance, or one per valid frame."""

    @abstractmethod
    def better(self, metrics: dict[str, float], than: dict[str, float]) -> bool:
        """Whether these validation metrics are better than the best so far."""

    @abstractmethod
    def columns(self, class_names: Sequence[str]) -> list[str]:
        """Return the table header for the cells of a prediction."""

    @abstractmethod
    def prediction(self, output: Any, class_names: Sequence[str], step_s: float) -> Prediction:
        """Return the prediction for a batch of one utterance; the encoder's states are `step_s` apart."""

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[Batch],
        class_names: Sequence[str],
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> Evaluation:
        """Compute the metrics over all batches.

        Batches are moved to the network's device, because integer engines run on the CPU even when training uses a GPU.
        `collect` combines the outcomes of this process with those of all ranks that share the work.
        """
        network.eval()
        device = device_of(network)
        found = []
        for batch in batches:
            batch = batch.to(device)
            found.append(self.outcome(network(batch.features_BTF, batch.lengths_B), batch))
        return self.summary(collect(found), class_names)

    @abstractmethod
    def outcome(self, output: Any, batch: Batch) -> Any:
        """Return what `summary` needs from a batch, as plain values and tensors on the CPU."""

    @abstractmethod
    def summary(self, outcomes: list[Any], class_names: Sequence[str]) -> Evaluation:
        """Compute the metrics from the outcomes of all batches."""


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Return `x` in float32 if it is a 16-bit float; float64 is unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the network's tensors, or the CPU if torch finds none (packed dynamic INT8)."""
    return next(
        (tensor.device for tensor in network.state_dict().values() if isinstance(tensor, torch.Tensor)),
        torch.device("cpu"),
    )
