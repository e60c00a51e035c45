"""A task is a constraint on the deployed model: one object that the trainer and the report ask at fixed points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from speech_exp.data.batches import Batch, Utterances
from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.storage import Stored, stored_in_float

LayersOf = Callable[[int], list[RecurrentLayer]]  # hidden size -> the recurrent layers a network of it would have
CALIBRATION_BATCH = 256


@dataclass(frozen=True)
class Certificate:
    """What was checked on the deployable form; `kind` "none" where the task constrains nothing."""

    kind: str
    passed: bool
    checked: int
    details: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return "none needed" if self.kind == "none" else f"{self.kind}, {self.checked:,} checked, passed"


class CertificateError(ValueError):
    """The deployable form does not keep what the task promises."""


@dataclass(frozen=True)
class Phase:
    """Epochs `first` to `last` of one optimizer and learning-rate schedule; `lr` None is the trainer's."""

    first: int
    last: int
    lr: float | None = None

    @property
    def epochs(self) -> range:
        return range(self.first, self.last + 1)


class Task:
    """Task A, no constraint, and the points at which a constraint acts; a constrained task overrides what it needs.

    The trainer calls, in this order: `phases`; for each `begin_phase`; for each epoch `begin_epoch`, for each step
    `training_form` around `loss` and its backward pass, then `after_step`; `after_epoch`, `candidate`. What deploys is
    `deployable` of the best candidate.
    """

    name = "A"
    budget_bytes: int | None = None  # of one recurrent layer
    sizing: str | None = None  # why the hidden size is what it is, once it is decided
    constrained: tuple[str, ...] = ()  # parts it acts on: convolution, recurrent, pooling, linear
    distillation: Distillation | None = None
    reference: Network | None = None  # the float model of which the deployed one is the constrained form

    def hidden_size(self, layers_of: LayersOf, requested: int | None) -> int:
        """Hidden size of the recurrent layers, decided before the model is built."""
        if requested is None:
            raise ValueError("model.hidden_size=null: task A solves for no size, set model.hidden_size to a number")
        return requested

    def constraint_lines(self) -> list[str]:
        """What the task asks of the deployed model and when, in a few words a line for the flowchart."""
        return []

    def phases(self, epochs: int) -> list[Phase]:
        return [Phase(1, epochs)]

    def begin_phase(self, network: Network, phase: Phase, train: Utterances, seed: int) -> None:
        """Called before the first epoch of each phase."""

    def begin_epoch(self, network: Network, epoch: int) -> None:
        """Called before each epoch, counted from 1."""

    def training_form(self, network: Network) -> AbstractContextManager[None]:
        """In this context the network computes its loss and gradients."""
        return nullcontext()

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        return objective.loss(network(batch.features_BTF, batch.lengths_B), batch)

    def after_step(self, network: Network, step: int, steps: int) -> None:
        """Called after each optimizer step, the `step`th of `steps` in this phase."""

    def after_epoch(self, network: Network, epoch: int) -> None:
        """Called after each epoch, counted from 1, before it is validated."""

    def state(self) -> dict[str, Any]:
        """What `begin_phase` and the network do not hold of the phase in progress, in plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`, after `begin_phase`."""

    def candidate(self, network: Network, epoch: int) -> nn.Module | None:
        """What this epoch is validated as and competes for best with; None where it does not compete."""
        return network

    def stage(self, epoch: int) -> str:
        """What the task does in this epoch, for history and curves; empty in a task that does nothing."""
        return ""

    def may_stop_early(self, epoch: int) -> bool:
        return True

    def deployable(self, network: nn.Module, train: Utterances) -> nn.Module:
        """The form that is tested, saved and reported, of the best candidate."""
        return network

    def restore(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """The deployable form from its saved state; `network` has its topology."""
        network.load_state_dict(state)
        return network

    def certify(self, deployed: nn.Module) -> Certificate:
        """Check the deployable form; a constraint that does not hold is a `CertificateError`."""
        return Certificate(kind="none", passed=True, checked=0)

    def stored(self, deployed: nn.Module) -> Stored:
        """Bytes of the deployable form."""
        assert isinstance(deployed, Network)
        return stored_in_float(deployed)

    def engines(self, deployed: nn.Module) -> dict[str, tuple[nn.Module, int]]:
        """Ways to run the model side by side, each with its bytes; none where there is only one."""
        return {}


def calibration_batches(train: Utterances) -> Iterable[Batch]:
    """The training recordings themselves, never their augmented forms."""
    return train.sample(CALIBRATION_BATCH)
