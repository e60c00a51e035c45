"""Task B1: recurrent layers that fit into a number of bytes."""

from __future__ import annotations

from torch import nn

from speech_exp.bounds import PositiveInt
from speech_exp.objectives.objective import Network
from speech_exp.tasks.deployment import BudgetDeployment
from speech_exp.tasks.phases import Phase
from speech_exp.tasks.sizing import LargestWithin
from speech_exp.tasks.task import Constraint, Task


class Budget(Task):
    """The largest hidden size with which every recurrent layer fits `budget_bytes`.

    Args:
        budget_bytes: limit per recurrent layer, over all its directions, as stored: float32, including the LMU's A and B.
    """

    name = "B1"
    sizing: LargestWithin

    def __init__(self, budget_bytes: PositiveInt) -> None:
        self.sizing, self.deployment = LargestWithin(budget_bytes), BudgetDeployment(budget_bytes)

    def phases(self, epochs: int, teacher: Network | None = None) -> list[Phase]:
        return [Phase(1, epochs)]

    def constraint(self, deployed: nn.Module, epochs: int) -> Constraint:
        return Constraint(self.sizing.lines(), ("recurrent",))
