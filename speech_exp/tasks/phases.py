"""Phases of training: epochs with one optimizer and learning-rate schedule, and the points at which a task acts in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from speech_exp.data.batches import Utterances
from speech_exp.features.batch import Batch
from speech_exp.objectives.objective import Network, Objective

Loss = Callable[[Objective, nn.Module, Batch], torch.Tensor]


def plain_loss(objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the objective's own loss."""
    return objective.loss(network(batch.features_BTF, batch.lengths_B), batch)


class Hooks:
    """What a task does within one phase; this base class does nothing, as in task A.

    Training makes the hooks from the network as it is before the phase. Then it calls, for each epoch, counted from 1:
    `begin_epoch`; for each step `training_form` around `loss` and its backward pass, then `after_step`; at the end
    `after_epoch`, `candidate` and `stage`.
    """

    reference: Network | None = None  # float network at the point where the constraint starts to act

    def __init__(self, network: Network, train: Utterances, seed: int) -> None:
        self.network = network

    def begin_epoch(self, epoch: int) -> None:
        """Called before the steps of each epoch."""

    def training_form(self) -> AbstractContextManager[None]:
        """Return the context in which the network computes its loss and gradients."""
        return nullcontext()

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch; `network` is the one that trains, possibly compiled."""
        return plain_loss(objective, network, batch)

    def after_step(self, step: int, steps: int) -> None:
        """Called after each optimizer step, number `step` of `steps` in this phase."""

    def after_epoch(self, epoch: int) -> None:
        """Called after the steps of each epoch, before its validation."""

    def candidate(self, epoch: int) -> nn.Module | None:
        """Return the network to validate for this epoch, which competes for the best; None if the epoch does not compete."""
        return self.network

    def restored(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return a candidate from its saved weights; `network` has the topology of the one that trains and may be changed."""
        network.load_state_dict(state)
        return network

    def stage(self, epoch: int) -> str:
        """Return the name of this epoch for the history and curves; empty if the task has only one kind of epochs."""
        return ""

    def may_stop_early(self, epoch: int) -> bool:
        return True

    def state(self) -> dict[str, Any]:
        """Return what changed since the phase began, besides the network, as plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""


class FloatHooks(Hooks):
    """A float phase of a task whose constraint acts in a later phase or after training."""

    def stage(self, epoch: int) -> str:
        return "float"


class WarmUpHooks(FloatHooks):
    """A float phase before the constraint acts: none of its epochs competes."""

    def candidate(self, epoch: int) -> None:
        return None


StartHooks = Callable[[Network, Utterances, int], Hooks]  # network, training part, seed


@dataclass(frozen=True)
class Phase:
    """Epochs `first` to `last`; `lr` None uses the trainer's. `start` makes the hooks when the phase begins."""

    first: int
    last: int
    lr: float | None = None
    start: StartHooks = field(default=Hooks, compare=False)

    @property
    def epochs(self) -> range:
        return range(self.first, self.last + 1)
