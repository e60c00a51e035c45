"""Knowledge distillation from a float teacher of the same topology as the student (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from speech_exp.bounds import PositiveFloat, Proportion
from speech_exp.features.batch import Batch
from speech_exp.objectives.objective import Network, Objective, full_precision
from speech_exp.tasks.phases import Loss, plain_loss


class Distillation:
    """A loss with a float teacher: alpha tau² KL(teacher || student) + (1 - alpha) objective.

    Both distributions of the KL divergence are softened by the temperature `tau`. tau² keeps the gradients of the first term at
    the size they have with tau 1 (section 2.1 of the paper). The KL divergence is summed over classes and over the rows of the
    batch (utterances or valid frames), then divided by what the objective's own loss averages over (utterances or characters),
    so that it does not depend on how utterances are batched.
    """

    def __init__(self, tau: PositiveFloat, alpha: Proportion) -> None:
        self.tau, self.alpha = tau, alpha

    def loss(self, teacher: Network, objective: Objective, student: nn.Module, batch: Batch) -> torch.Tensor:
        output = student(batch.features_BTF, batch.lengths_B)
        with torch.no_grad():
            teacher_output = teacher.eval()(batch.features_BTF, batch.lengths_B)
        divergence = functional.kl_div(
            functional.log_softmax(full_precision(objective.rows(output)) / self.tau, dim=-1),
            functional.log_softmax(full_precision(objective.rows(teacher_output)) / self.tau, dim=-1),
            reduction="sum",
            log_target=True,
        )
        divergence = divergence / objective.weight(batch)
        return self.alpha * self.tau**2 * divergence + (1 - self.alpha) * objective.loss(output, batch)


def loss_with(distillation: Distillation | None, teacher: Network | None) -> Loss:
    """Return the loss that learns from the teacher, or the objective's own if there is none."""
    return plain_loss if distillation is None or teacher is None else partial(distillation.loss, teacher)
