"""What every objective offers: a network over an encoder, a loss, and an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from speech_exp.data.batches import Batch
from speech_exp.models.encoder import Encoder


class Network(nn.Module):
    """An encoder and a linear layer over its output; the forward pass takes features and lengths."""

    encoder: Encoder
    output: nn.Linear
    score: nn.Linear | None  # of attention pooling; no default here: a class attribute would hide the submodule


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split found."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]  # by id: id, reference, prediction, score

    def tables(self) -> dict[str, Any]:
        """What `metrics` of results.json holds of the test beside its metrics."""
        return {}


class Objective(ABC):
    """What is trained for. `output` is whatever the network's forward pass gives."""

    name: ClassVar[str]
    primary: ClassVar[str]  # the metric by which a run is told
    goal: ClassVar[Literal["maximize", "minimize"]]  # of `primary`
    targets: ClassVar[str]  # what a data set must give: "classes" or "text"
    views: int = 1  # of each training batch that the loss takes at once, each augmented anew, one after the other

    def outputs(self, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the network's outputs for a data set of these classes."""
        return class_names

    @abstractmethod
    def network(self, encoder: Encoder, num_classes: int) -> Network: ...

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> torch.Tensor:
        """One number for the batch: a mean over what `weight` counts."""

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """By which the losses of batches are averaged, so that it does not matter how utterances are batched."""

    @abstractmethod
    def rows(self, output: Any) -> torch.Tensor:
        """Every distribution over classes that the output holds, (N, V): one an utterance, or one a valid frame."""

    @abstractmethod
    def better(self, metrics: dict[str, float], than: dict[str, float]) -> bool:
        """Whether an epoch of these validation metrics is better than the best so far."""

    @abstractmethod
    def columns(self, class_names: Sequence[str]) -> list[str]:
        """What `cells` gives, as the header of a table."""

    @abstractmethod
    def cells(self, output: Any, class_names: Sequence[str], step_s: float) -> list[str]:
        """A user's reading of the output for one utterance; the encoder's states are `step_s` apart."""

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module,
        batches: Iterable[Batch],
        class_names: Sequence[str],
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> Evaluation:
        """Metrics over all batches, which are brought to the network's device: integer engines run on the CPU beside a GPU's
        training.

        `collect` makes the outcomes of all batches of those of this process's, where several share the work.
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
        """What `summary` must know of a batch, in plain values and tensors on the CPU."""

    @abstractmethod
    def summary(self, outcomes: list[Any], class_names: Sequence[str]) -> Evaluation:
        """Metrics over the batches of which these are the outcomes."""


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32, from 16-bit floats; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def device_of(network: nn.Module) -> torch.device:
    """Where its tensors lie; the CPU for one without any that torch knows of (packed dynamic INT8)."""
    return next(
        (tensor.device for tensor in network.state_dict().values() if isinstance(tensor, torch.Tensor)),
        torch.device("cpu"),
    )
