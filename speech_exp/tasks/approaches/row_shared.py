"""Rows that share one power of two: two bits per weight and one exponent per row."""

from __future__ import annotations

import torch
from torch.nn import functional

from speech_exp.tasks.approaches.ste import StraightThrough
from speech_exp.tasks.codes import RowCode
from speech_exp.tasks.grids import Grid, is_row_shared, row_shared


class RowShared(StraightThrough):
    """One exponent for each row of a matrix, and P for vectors; trained with the straight-through estimator.

    The three levels of a row are coarse: an epoch usually moves a weight by less than half a gap, and snapping the weights
    after each epoch would undo it.
    """

    name = "row_shared"
    level_text = "0 or ±2^k, one k a row"
    coding = RowCode()

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        return row_shared(weight, grid)

    def projected(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Project all rows of a step as one matrix, then the vectors.

        Short rows are padded with zeros, which add nothing to the error of a row. Steps of a small network are so short that
        the number of tensor operations matters.
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
