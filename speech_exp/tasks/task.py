"""A task: what constrains the deployed model. It has a sizing, phases of training, and a deployable form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from speech_exp.data.batches import Utterances
from speech_exp.objectives.objective import Network
from speech_exp.tasks.deployment import Deployment
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.phases import Phase
from speech_exp.tasks.sizing import Sizing


@dataclass(frozen=True)
class Deployed:
    """The deployable form of a trained network; `reference` is the float model that it was made from, if different."""

    network: nn.Module
    reference: Network | None = None


@dataclass(frozen=True)
class Constraint:
    """What the flowchart shows of a task: short lines, and the constrained parts (convolution, recurrent, pooling, linear)."""

    lines: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


class Task(ABC):
    """Base class of all tasks. Its parts serve one purpose each; a task itself keeps nothing of a run."""

    name: ClassVar[str]
    sizing: Sizing  # before the network is built
    deployment: Deployment  # after training, and for a checkpoint
    distillation: Distillation | None = None

    @abstractmethod
    def phases(self, epochs: int, teacher: Network | None = None) -> list[Phase]:
        """Return the phases of training, none if the network is deployed as it is; raise ValueError for too few epochs.

        `teacher` is the float network for `distillation`.
        """

    def deploy(self, best: nn.Module, reference: Network | None, train: Utterances) -> Deployed:
        """Return the deployable form of the best candidate; `reference` is that of its phase (`Hooks.reference`)."""
        return Deployed(best, reference)

    @abstractmethod
    def constraint(self, deployed: nn.Module, epochs: int) -> Constraint:
        """Describe the constraint on `deployed`, which was trained with `trainer.epochs=epochs`."""

    def engines(self, deployed: Deployed) -> dict[str, tuple[nn.Module, int]]:
        """Return alternative engines for the model, each with its bytes; empty if there is only one."""
        return {}
