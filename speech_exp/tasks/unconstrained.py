"""Task A: no constraint."""

from __future__ import annotations

from torch import nn

from speech_exp.objectives.objective import Network
from speech_exp.tasks.deployment import FloatDeployment
from speech_exp.tasks.phases import Phase
from speech_exp.tasks.sizing import AsRequested
from speech_exp.tasks.task import Constraint, Task


class Unconstrained(Task):
    """The encoder keeps the sizes of its config and is deployed as trained."""

    name = "A"

    def __init__(self) -> None:
        self.sizing, self.deployment = AsRequested(), FloatDeployment()

    def phases(self, epochs: int, teacher: Network | None = None) -> list[Phase]:
        return [Phase(1, epochs)]

    def constraint(self, deployed: nn.Module, epochs: int) -> Constraint:
        return Constraint()
