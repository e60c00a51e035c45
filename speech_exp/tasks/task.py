"""A task is a constraint on the deployed model: one object that the trainer and the report ask at fixed points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.classification import ClassificationNetwork


@dataclass(frozen=True)
class Certificate:
    """What was checked on the deployable form; `kind` "none" where the task constrains nothing."""

    kind: str
    passed: bool
    checked: int
    details: dict[str, Any] = field(default_factory=dict)


class Task:
    """Task A, no constraint, and the points at which a constraint acts; a constrained task overrides what it needs."""

    name = "A"
    budget_bytes: int | None = None  # of one recurrent layer

    def hidden_size(self, cell: Callable[..., RecurrentLayer], input_size: int, requested: int) -> int:
        """Hidden size of the recurrent layers, decided before the model is built."""
        return requested

    def constraint_text(self) -> str:
        """What the task asks of the deployed model, in a few words for the flowchart."""
        return "no constraint"

    def after_step(self, network: ClassificationNetwork, step: int) -> None:
        """Called after each optimizer step, `step` counted from 1."""

    def after_epoch(self, network: ClassificationNetwork, epoch: int) -> None:
        """Called after each epoch, counted from 1, before it is validated."""

    def candidate(self, network: ClassificationNetwork, epoch: int) -> ClassificationNetwork | None:
        """What this epoch is validated as and competes for best with; None where it does not compete."""
        return network

    def may_stop_early(self, epoch: int) -> bool:
        return True

    def deployable(self, network: ClassificationNetwork) -> ClassificationNetwork:
        """The form that is tested, saved and reported."""
        return network

    def certify(self, network: ClassificationNetwork) -> Certificate:
        """Check the deployable form; a constraint that does not hold is an error."""
        return Certificate(kind="none", passed=True, checked=0)
