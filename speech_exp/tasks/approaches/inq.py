"""Incremental network quantisation: large weights are projected and frozen, stage by stage, while the rest keeps training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch

from speech_exp.tasks.approaches.approach import Approach, Weights
from speech_exp.tasks.grids import Grid


class Inq(Approach):
    """INQ (Zhou et al. 2017), with partition by magnitude within each tensor.

    `stages` are pairs of a cumulative share of frozen weights and the epochs trained with it. The epochs are scaled to the
    length of phase two, with at least one per stage. A last stage of share 1 and 0 epochs is the projection at the end.
    """

    name = "inq"
    takes_every_n_steps = False  # freezing at other times would be a different schedule
    has_schedule = True

    def __init__(self, stages: Sequence[Sequence[float]]) -> None:
        self.stages = _checked(stages)
        self._starts: list[int] = []
        self._frozen: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {}

    def check(self, grid: Grid, epochs: int) -> None:
        trained = sum(length > 0 for _, length in self.stages)
        if epochs < trained:
            raise ValueError(
                f"phase two has {epochs} epochs with c_approach=inq: expected at least {trained}, one for each stage that trains; "
                f"raise trainer.epochs, lower task.start_epoch or shorten c_approach.stages"
            )

    def begin(self, weights: Weights, grid: Grid, epochs: int, seed: int) -> None:
        super().begin(weights, grid, epochs, seed)
        self._starts = _first_epochs([length for _, length in self.stages], epochs)
        self._values = {name: weight.new_zeros(weight.shape) for name, weight in weights.items()}
        self._frozen = {name: values.bool() for name, values in self._values.items()}

    def begin_epoch(self, weights: Weights, epoch: int) -> None:
        for name in weights:
            self._freeze(name, weights[name], self._share(epoch))
        self.after_step(weights)

    @torch.no_grad()
    def after_step(self, weights: Weights) -> None:
        """Restore frozen weights: momentum and weight decay also move weights without a gradient."""
        for name, weight in weights.items():
            weight.copy_(torch.where(self._frozen[name], self._values[name], weight))

    def act(self, weights: Weights, progress: float) -> None:
        if progress >= 1:
            self.project_all(weights)

    def state(self) -> dict[str, Any]:
        return {"frozen": self._frozen, "values": self._values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for current, saved in ((self._frozen, state["frozen"]), (self._values, state["values"])):
            for name, tensor in current.items():
                tensor.copy_(saved[name])

    def stage(self, epoch: int) -> str:
        return f"inq {100 * self._share(epoch):g} %"

    def _share(self, epoch: int) -> float:
        begun = (share for (share, _), start in zip(self.stages, self._starts, strict=True) if start <= epoch)
        return max(begun, default=0.0)

    @torch.no_grad()
    def _freeze(self, name: str, weight: torch.Tensor, share: float) -> None:
        """Freeze the largest free weights until `share` of the tensor, rounded up, is frozen."""
        frozen = self._frozen[name]
        # Use the share as written in decimal: in binary, 0.07 * 100 is above 7 and would be rounded up to 8.
        joining = math.ceil(Fraction(str(share)) * weight.numel()) - int(frozen.sum())
        if joining <= 0:
            return
        magnitude = weight.abs().masked_fill(frozen, -1.0)
        # A stable sort selects the same weights among equal magnitudes on every run.
        chosen = magnitude.flatten().argsort(descending=True, stable=True)[:joining]
        frozen.view(-1)[chosen] = True
        self._values[name].view(-1)[chosen] = self.project(weight.flatten()[chosen], self.grid)


def _checked(stages: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the stages after checking that shares rise to 1 and epochs are positive (or 0 in the last stage)."""
    error = ValueError(
        f"c_approach.stages={stages}: expected pairs [cumulative share, epochs] whose shares rise from above 0 to 1.0 and whose "
        f"epochs are above 0 (0 only in the last pair), change c_approach.stages"
    )
    if not stages or any(len(stage) != 2 for stage in stages):
        raise error
    shares, lengths = [stage[0] for stage in stages], [stage[1] for stage in stages]
    rising = all(before < after for before, after in zip([0.0, *shares], shares, strict=False))
    if not (rising and shares[-1] == 1 and all(length > 0 for length in lengths[:-1]) and lengths[-1] >= 0):
        raise error
    return list(zip(shares, lengths, strict=True))


def _first_epochs(lengths: Sequence[float], epochs: int) -> list[int]:
    """Return the first epoch of each stage, from 1, with the lengths scaled to `epochs`; epochs + 1 means after the end.

    The cumulative ends are rounded, so that errors do not add up, then moved apart if a stage would have no epoch.
    """
    starts, end = [], 0
    for number, length in enumerate(lengths):
        starts.append(end + 1)
        later = sum(other > 0 for other in lengths[number + 1 :])
        if length > 0:
            rounded = round(epochs * sum(lengths[: number + 1]) / sum(lengths))
            end = min(max(rounded, end + 1), epochs - later)
        # Only the last stage can have no epochs: it starts after the end of the one before.
    return starts
