"""Straight-through training: the network computes with its deployable weights, the optimizer updates a float master copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from speech_exp.tasks.approaches.approach import Approach, Weights


class StraightThrough(Approach):
    """Applies the gradient at the projected weights to the master copy (straight-through estimator; Bengio et al. 2013)."""

    takes_every_n_steps = False  # it projects at every step anyway

    @contextmanager
    def training_form(self, weights: Weights) -> Iterator[None]:
        """Project the parameters inside the context and restore the master copy afterwards.

        Both happen in place, because modules and the optimizer hold references to the parameters.
        """
        parameters = list(weights.values())
        with torch.no_grad():
            master = [weight.clone() for weight in parameters]
            torch._foreach_copy_(parameters, self.projected(parameters))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, master)

    def projected(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the deployable form of all tensors of a step."""
        return [self.project(weight, self.grid) for weight in weights]

    def act(self, weights: Weights, progress: float) -> None:
        if progress >= 1:
            self.project_all(weights)


class Ste(StraightThrough):
    """Straight-through training with P."""

    name = "ste"

    def projected(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Project all weights as one vector: in the short steps of a small network, every tensor operation counts."""
        together = self.project(torch.cat([weight.flatten() for weight in weights]), self.grid)
        parts = together.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
