"""Straight-through training: the network computes with P(w), the optimizer moves a float w."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from speech_exp.tasks.approaches.approach import Approach, Weights


class Ste(Approach):
    """Straight-through estimator (Bengio et al. 2013): the gradient at P(w) is taken as that of the float master copy w."""

    name = "ste"
    takes_every_n_steps = False  # it projects at every step anyway

    @contextmanager
    def training_form(self, weights: Weights) -> Iterator[None]:
        """The parameters hold P(w) inside and w again outside, in place: modules and optimizer know them by identity."""
        parameters = list(weights.values())
        with torch.no_grad():
            # As one vector: a step of a small network is short, and so each tensor operation counts.
            master = torch.cat([weight.flatten() for weight in parameters])
            projected = self.project(master, self.grid)
            _fill(parameters, projected)
        try:
            yield
        finally:
            with torch.no_grad():
                _fill(parameters, master)

    def act(self, weights: Weights, progress: float) -> None:
        if progress >= 1:
            self.project_all(weights)


def _fill(parameters: list[torch.Tensor], values: torch.Tensor) -> None:
    parts = values.split([parameter.numel() for parameter in parameters])
    shaped = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
    torch._foreach_copy_(parameters, shaped)
