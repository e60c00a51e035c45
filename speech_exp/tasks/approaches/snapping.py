"""Approaches that move the weights onto a grid from time to time and train on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speech_exp.tasks.approaches.approach import (
    Approach,
    Storage,
    Weights,
    code_bits,
    count,
    span,
)
from speech_exp.tasks.grids import (
    Grid,
    apot2,
    apot2_levels,
    exponents_of_apot2,
    is_apot2,
    stochastic_power,
)


class SnapEpoch(Approach):
    """w <- P(w)."""

    name = "snap_epoch"


class SnapStep(Approach):
    """w <- P(w) every so many steps of the optimizer; task.every_n_steps, where set, takes the place of its own number."""

    name = "snap_step"

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"c_approach.every_n_steps={every_n_steps}: expected at least 1, change c_approach.every_n_steps"
            )
        self.every_n_steps = every_n_steps


class MixedPot(Approach):
    """Input and recurrent matrices of the recurrent layers only; biases and the output layer stay float."""

    name = "mixed_pot"
    scope = "recurrent_matrices"


class Ema(Approach):
    """w <- a w + (1 - a) P(w); a falls linearly from `start` at the first act to 0 at progress 1."""

    name = "ema"
    has_schedule = True

    def __init__(self, start: float) -> None:
        if not 0 <= start <= 1:
            raise ValueError(f"c_approach.start={start}: expected a share from 0 to 1, change c_approach.start")
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
        # At progress 1 the share is 0 and lerp returns its first argument as it is: w = P(w), bit for bit.
        kept = 0.0 if progress >= 1 else self.start * (1 - progress) / (1 - self._first_progress)
        for weight in weights.values():
            weight.copy_(torch.lerp(self.project(weight, self.grid), weight, kept))


class Stochastic(Approach):
    """Rounds to one of the two neighbouring levels at random, without bias; at the end to the nearest."""

    name = "stochastic"

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        super().begin(weights, grid, epochs, seed)
        self._generator = torch.Generator().manual_seed(seed)  # its own: other draws of the run stay as they are

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

    def check(self, grid: Grid, epochs: int) -> None:
        apot2_levels(grid)  # refuses a grid that is too wide

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return apot2(weight, grid)

    def on_grid(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return is_apot2(weight, grid)

    def storage(self, weights: Weights, grid: Grid) -> Storage:
        """One code word a weight for every level of two terms with exponents between the lowest and highest in use."""
        exponents = span([exponents_of_apot2(weight) for weight in weights.values()])
        codes = 1 if exponents is None else 2 * len(apot2_levels(Grid(*exponents))) - 1
        return Storage.of(count(weights) * code_bits(codes), weights, exponents)
