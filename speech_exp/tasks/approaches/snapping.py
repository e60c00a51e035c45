"""Approaches that move the weights onto a grid at intervals and continue training from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speech_exp.bounds import PositiveInt, Proportion
from speech_exp.tasks.approaches.approach import Approach, Weights, span
from speech_exp.tasks.codes import Apot2Code
from speech_exp.tasks.grids import (
    Grid,
    apot2,
    apot2_levels,
    exponents_of_apot2,
    is_apot2,
    stochastic_power,
)


class SnapEpoch(Approach):
    """w <- P(w) after each epoch."""

    name = "snap_epoch"


class SnapStep(Approach):
    """w <- P(w) every `every_n_steps` optimizer steps; task.every_n_steps overrides this number."""

    name = "snap_step"

    def __init__(self, every_n_steps: PositiveInt) -> None:
        self.every_n_steps = every_n_steps


class MixedPot(Approach):
    """P on the input and recurrent matrices of the recurrent layers only; biases and the output layer stay float."""

    name = "mixed_pot"
    scope = "recurrent_matrices"


class Ema(Approach):
    """w <- a w + (1 - a) P(w); a decreases linearly from `start` at the first act to 0 at progress 1."""

    name = "ema"
    has_schedule = True

    def __init__(self, start: Proportion) -> None:
        self.start = start
        self._first_progress: float | None = None

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        super().begin(weights, grid, epochs, seed)
        self._first_progress = None

    def state(self) -> dict[str, Any]:
        return {"first_progress": self._first_progress}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._first_progress = state["first_progress"]

    @torch.no_grad()
    def act(self, weights: Weights, progress: float) -> None:
        if self._first_progress is None:
            self._first_progress = progress
        # At progress 1 the share is 0 and lerp returns its first argument unchanged: w = P(w), bit for bit.
        kept = 0.0 if progress >= 1 else self.start * (1 - progress) / (1 - self._first_progress)
        for weight in weights.values():
            weight.copy_(torch.lerp(self.project(weight, self.grid), weight, kept))


class Stochastic(Approach):
    """Rounds at random to one of the two neighbouring levels, without bias; at the end to the nearest."""

    name = "stochastic"

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        super().begin(weights, grid, epochs, seed)
        self._generator = torch.Generator().manual_seed(seed)  # separate, to keep the run's other draws unchanged

    def state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])

    @torch.no_grad()
    def act(self, weights: Weights, progress: float) -> None:
        exact = progress >= 1
        for weight in weights.values():
            rounded = self.project(weight, self.grid) if exact else stochastic_power(weight, self.grid, self._generator)
            weight.copy_(rounded)


class Apot2(Approach):
    """Sums and differences of two powers (Li et al. 2020, "Additive Powers-of-Two Quantization", here with differences)."""

    name = "apot2"
    level_text = "0, ±2^k or ±2^k1 ± 2^k2"
    coding = Apot2Code()

    def check(self, grid: Grid, epochs: int) -> None:
        apot2_levels(grid)  # raises a ValueError if the grid is too wide

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return apot2(weight, grid)

    def on_grid(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return is_apot2(weight, grid)

    def exponents(self, weights: Weights) -> tuple[int, int] | None:
        return span([exponents_of_apot2(weight) for weight in weights.values()])
