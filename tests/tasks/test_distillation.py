"""The distillation loss by hand, and which networks get gradients."""

import math

import pytest
import torch

from speech_exp.features.batch import Batch
from speech_exp.objectives.classification import Classification
from speech_exp.tasks.distillation import Distillation


class Logits(torch.nn.Module):
    def __init__(self, logits_BV):
        super().__init__()
        self.logits_BV = torch.nn.Parameter(torch.tensor(logits_BV))

    def forward(self, features_BTF, lengths_B):
        return self.logits_BV * 1.0


BATCH = Batch(torch.zeros(2, 1, 1), torch.ones(2, dtype=torch.int64), torch.tensor([0, 1]), None, ["a", "b"])
OBJECTIVE = Classification("mean", 0.0, 0.0)


def softmax(logits, tau):
    powers = [math.exp(value / tau) for value in logits]
    return [power / sum(powers) for power in powers]


def test_the_loss_by_hand():
    teacher, student = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], [[1.0, 0.5, 0.0], [0.3, 0.2, -2.0]]
    distillation = Distillation(tau=3.0, alpha=0.6)
    divergence = cross_entropy = 0.0
    for row, (one, other) in enumerate(zip(teacher, student, strict=True)):
        p, q = softmax(one, 3.0), softmax(other, 3.0)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
        cross_entropy -= math.log(softmax(other, 1.0)[row]) / 2
    expected = 0.6 * 9 * divergence + 0.4 * cross_entropy
    assert distillation.loss(Logits(teacher), OBJECTIVE, Logits(student), BATCH).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_a_student_equal_to_its_teacher_has_only_the_objective_left():
    logits = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]]
    distillation = Distillation(tau=2.0, alpha=0.25)
    expected = 0.75 * OBJECTIVE.loss(torch.tensor(logits), BATCH)
    assert distillation.loss(Logits(logits), OBJECTIVE, Logits(logits), BATCH).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_the_teacher_gets_no_gradient_and_stays_in_evaluation():
    distillation = Distillation(tau=3.0, alpha=1.0)
    teacher = Logits([[2.0, 0.0], [0.0, 1.0]]).train()
    student = Logits([[0.0, 0.0], [0.0, 0.0]])
    distillation.loss(teacher, OBJECTIVE, student, BATCH).backward()
    assert student.logits_BV.grad.abs().sum() > 0
    assert teacher.logits_BV.grad is None
    assert not teacher.training
