"""What the approaches of task C have in common: the points at which one acts, its grid, and how its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch

from speech_exp.tasks.grids import Grid, exponents_of_powers, is_power, nearest_power

# Name -> one of the network's own parameters in scope; approaches change them in place.
Weights: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Storage:
    """What a device stores of the deployed weights, as code words of a fixed length; tables that decode them are not counted."""

    bits_per_weight: float
    total_bits: int
    exponents: tuple[int, int] | None  # lowest and highest in use; None where all weights are 0

    @classmethod
    def of(cls, total_bits: int, weights: Weights, exponents: tuple[int, int] | None) -> Storage:
        return cls(total_bits / max(1, count(weights)), total_bits, exponents)


class Approach:
    """One way through phase two, called as `begin`, then `begin_epoch`, steps and `act` in turn until progress is 1.

    It keeps its weights on the grid by projecting them at each `act`; an approach overrides what it does otherwise.
    """

    name: ClassVar[str]
    scope: ClassVar[str | None] = None  # a scope that the approach fixes; None leaves task.scope to the user
    takes_every_n_steps: ClassVar[bool] = True
    has_schedule: ClassVar[bool] = False  # True: its last epochs matter most, so training must not stop before them
    every_n_steps: int | None = None  # its own rhythm where task.every_n_steps is null; None: after each epoch
    level_text: ClassVar[str] = "0 or ±2^k"  # what a deployed weight may be, for the flowchart
    grid: Grid  # of `begin`

    def project(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The exact deployable form of one tensor."""
        return nearest_power(weight, grid)

    def on_grid(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """For each element whether it may be deployed, found without `project`."""
        return is_power(weight, grid)

    def check(self, grid: Grid, epochs: int) -> None:
        """Refuse, before any work, a grid or a length of phase two that the approach cannot use."""

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        """Phase two starts from trained float weights and has this many epochs."""
        self.check(grid, epochs)
        self.grid = grid

    def begin_epoch(self, weights: Weights, epoch: int) -> None:
        """Before the steps of an epoch, counted from 1 within phase two."""

    def training_form(self, weights: Weights) -> AbstractContextManager[None]:
        """Around forward and backward of a step: the weights as the step sees them."""
        return nullcontext()

    def after_step(self, weights: Weights) -> None:
        """After every step of the optimizer."""

    def act(self, weights: Weights, progress: float) -> None:
        """After an epoch or every n steps, `progress` in (0, 1] of phase two; at 1, its end, the weights become exact."""
        self.project_all(weights)

    def state(self) -> dict[str, Any]:
        """What `begin` and the weights do not hold of phase two, in plain values and tensors."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`, after `begin`."""

    def stage(self, epoch: int) -> str:
        """What this epoch of phase two is called in the history and the training curves."""
        return self.name

    def storage(self, weights: Weights, grid: Grid) -> Storage:
        """Bits of deployed weights: one code word a weight for 0 and ± each exponent between the lowest and highest in use."""
        exponents = span([exponents_of_powers(weight) for weight in weights.values()])
        return Storage.of(count(weights) * code_bits(1 + 2 * exponents_between(exponents)), weights, exponents)

    @torch.no_grad()
    def project_all(self, weights: Weights) -> None:
        for weight in weights.values():
            weight.copy_(self.project(weight, self.grid))


def count(weights: Weights) -> int:
    return sum(weight.numel() for weight in weights.values())


def code_bits(codes: int) -> int:
    """Length of a code word that tells this many codes apart."""
    return (codes - 1).bit_length()  # the logarithm to base 2, rounded up, in integers


def exponents_between(exponents: tuple[int, int] | None) -> int:
    return 0 if exponents is None else exponents[1] - exponents[0] + 1


def span(exponents: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Lowest and highest over several tensors."""
    used = [pair for pair in exponents if pair is not None]
    return (min(low for low, _ in used), max(high for _, high in used)) if used else None
