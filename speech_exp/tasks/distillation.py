"""Knowledge distillation: a float teacher of the student's own topology (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from speech_exp.data.batches import Batch
from speech_exp.objectives.objective import Network, Objective, full_precision


class Distillation:
    """loss = alpha tau² KL(teacher || student) + (1 - alpha) objective, both distributions softened by `tau`.

    tau² keeps the gradients of the first part of the size they have at tau 1 (section 2.1 there). The KL divergence is
    summed over classes and over the rows of the batch (utterances, or valid frames), and divided by what the objective's
    own loss is a mean over (utterances, or characters), so that it does not matter how utterances are batched.
    `teacher` is set before training.
    """

    teacher: Network | None = None

    def __init__(self, tau: float, alpha: float) -> None:
        if not tau > 0:
            raise ValueError(f"kd.tau={tau}: expected a number above 0, change kd.tau")
        if not 0 <= alpha <= 1:
            raise ValueError(f"kd.alpha={alpha}: expected a number from 0 to 1, change kd.alpha")
        self.tau, self.alpha = tau, alpha

    def loss(self, objective: Objective, student: nn.Module, batch: Batch) -> torch.Tensor:
        assert self.teacher is not None, "the composition root hands over the teacher before training"
        output = student(batch.features_BTF, batch.lengths_B)
        with torch.no_grad():
            taught = self.teacher.eval()(batch.features_BTF, batch.lengths_B)
        divergence = functional.kl_div(
            functional.log_softmax(full_precision(objective.rows(output)) / self.tau, dim=-1),
            functional.log_softmax(full_precision(objective.rows(taught)) / self.tau, dim=-1),
            reduction="sum",
            log_target=True,
        )
        divergence = divergence / objective.weight(batch)
        return self.alpha * self.tau**2 * divergence + (1 - self.alpha) * objective.loss(output, batch)
