"""Rows of one power of two: no exponent a weight, two bits each."""

from __future__ import annotations

import torch
from torch.nn import functional

from speech_exp.tasks.approaches.approach import Storage, Weights, code_bits, count, exponents_between, span
from speech_exp.tasks.approaches.ste import StraightThrough
from speech_exp.tasks.grids import Grid, exponents_of_powers, is_row_shared, row_shared


class RowShared(StraightThrough):
    """One exponent a row of each matrix, vectors as P; trained straight through.

    A row of three levels is coarse: what an epoch of training moves is mostly less than half a gap, and snapping the weights
    after each epoch would undo it.
    """

    name = "row_shared"
    level_text = "0 or ±2^k, one k a row"

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return row_shared(weight, grid)

    def projected(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """All rows of a step as one matrix, short rows filled with zeros, which add nothing to any row's error; then vectors.

        A step of a small network is short, and so each tensor operation counts.
        """
        rows = [weight.flatten(1) for weight in weights if weight.ndim > 1]
        if not rows:
            return super().projected(weights)
        width = max(one.shape[1] for one in rows)
        together = torch.cat([functional.pad(one, (0, width - one.shape[1])) for one in rows])
        parts = iter(row_shared(together, self.grid).split([len(one) for one in rows]))
        return [
            next(parts)[:, : weight.flatten(1).shape[1]].view_as(weight)
            if weight.ndim > 1
            else self.project(weight, self.grid)
            for weight in weights
        ]

    def on_grid(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return is_row_shared(weight, grid)

    def storage(self, weights: Weights, grid: Grid) -> Storage:
        """A matrix: 0, + or - in 2 bits a weight and one exponent a row; a vector: as P."""
        exponents = span([exponents_of_powers(weight) for weight in weights.values()])
        used = exponents_between(exponents)
        matrices = {name: weight for name, weight in weights.items() if weight.ndim >= 2}
        vectors = {name: weight for name, weight in weights.items() if weight.ndim < 2}
        rows = sum(len(weight) for weight in matrices.values())
        total_bits = 2 * count(matrices) + rows * code_bits(max(1, used)) + count(vectors) * code_bits(1 + 2 * used)
        return Storage.of(total_bits, weights, exponents)
