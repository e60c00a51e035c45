"""Base class of the approaches of task C: the points at which an approach acts, its grid, and how its weights are packed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, TypeAlias

import torch

from speech_exp.tasks.codes import PowerCode
from speech_exp.tasks.grids import Grid, exponents_of_powers, is_power, nearest_power
from speech_exp.tasks.packed import Coding

Scope: TypeAlias = Literal["all", "rnn_only", "recurrent_matrices"]
# Name -> one of the network's own parameters in scope; approaches change them in place.
Weights: TypeAlias = Mapping[str, torch.Tensor]


class Approach:
    """One way to train phase two; called as `begin`, then `begin_epoch`, steps and `act` in turn until progress is 1.

    By default, each `act` projects the weights onto the grid; subclasses override what they do differently.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope | None] = None  # a scope that the approach requires; None lets the user choose task.scope
    takes_every_n_steps: ClassVar[bool] = True
    has_schedule: ClassVar[bool] = False  # True: the last epochs matter most, so training must not stop before them
    every_n_steps: int | None = None  # default interval if task.every_n_steps is null; None: after each epoch
    level_text: ClassVar[str] = "0 or ±2^k"  # possible deployed weights, for the flowchart
    coding: ClassVar[Coding] = PowerCode()  # how deployed weights are coded in the packed model
    grid: Grid  # set by `begin`

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Return the exact deployable form of one tensor."""
        return nearest_power(weight, grid)

    def on_grid(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Whether each element may be deployed, determined without `project`."""
        return is_power(weight, grid)

    def check(self, grid: Grid, epochs: int) -> None:
        """Refuse, before any training, a grid or a number of epochs in phase two that the approach cannot use."""

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        """Start phase two, of `epochs` epochs, from trained float weights."""
        self.check(grid, epochs)
        self.grid = grid

    def begin_epoch(self, weights: Weights, epoch: int) -> None:
        """Called before the steps of each epoch, counted from 1 within phase two."""

    def training_form(self, weights: Weights) -> AbstractContextManager[None]:
        """Return the context for the forward and backward pass of a step, with the weights that the step uses."""
        return nullcontext()

    def after_step(self, weights: Weights) -> None:
        """Called after every optimizer step."""

    def act(self, weights: Weights, progress: float) -> None:
        """Called after an epoch or every n steps at `progress` in (0, 1] of phase two; at 1, its end, weights become exact."""
        self.project_all(weights)

    def state(self) -> dict[str, Any]:
        """Return the state of phase two beyond `begin` and the weights, as plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`, after `begin`."""

    def stage(self, epoch: int) -> str:
        """Return the name of this epoch of phase two, for the history and the training curves."""
        return self.name

    def exponents(self, weights: Weights) -> tuple[int, int] | None:
        """Return the lowest and highest exponent among deployed weights, or None if all are 0."""
        return span([exponents_of_powers(weight) for weight in weights.values()])

    @torch.no_grad()
    def project_all(self, weights: Weights) -> None:
        for weight in weights.values():
            weight.copy_(self.project(weight, self.grid))


def span(exponents: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Return the lowest and highest exponent over several tensors."""
    used = [pair for pair in exponents if pair is not None]
    return (min(low for low, _ in used), max(high for _, high in used)) if used else None
