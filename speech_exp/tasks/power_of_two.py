"""Task C: power-of-two weights, so that a device shifts instead of multiplying."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from speech_exp.bounds import PositiveFloat, PositiveInt
from speech_exp.data.batches import Utterances
from speech_exp.features.batch import Batch
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.approaches.approach import Approach, Scope
from speech_exp.tasks.deployment import float_network
from speech_exp.tasks.distillation import Distillation, loss_with
from speech_exp.tasks.grids import Exponent, Grid
from speech_exp.tasks.phases import FloatHooks, Hooks, Loss, Phase, WarmUpHooks
from speech_exp.tasks.power_of_two_deployment import PowerOfTwoDeployment
from speech_exp.tasks.sizing import LargestWithin
from speech_exp.tasks.state_space import Storage
from speech_exp.tasks.task import Constraint, Deployed, Task

_FLOAT_SHARE = 4  # by default, phase two starts at epoch number epochs / 4


class PowerOfTwo(Task):
    """A float phase, then a second phase in which `approach` brings the weights in scope onto their grid.

    Each epoch of the second phase validates a projected copy, and training continues from the unprojected weights. Such a copy
    is saved and tested, so its weights are exactly on the grid, whatever the approach. Without `fine_tune` there is no second
    phase: the best float epoch is projected once, as a control that shows the benefit of the approach's training.

    Args:
        start_epoch: first epoch of the second phase; None: a quarter of all epochs.
        every_n_steps: apply the approach every N steps; None: on its own schedule, usually after each epoch.
        scope: weights and biases of all recurrent, linear and convolution layers, of the recurrent ones only, or only
            the matrices of the recurrent ones; None: the approach's own scope, otherwise all.
        k_min, k_max: smallest and largest exponent.
        fine_tune_lr: learning rate of the second phase.
        memory_matrices: how the LMU's A and B are stored; no approach changes them.
        float_checkpoint: trained float run that replaces the first phase (loaded by the composition root).
        distillation: from a float teacher, in the second phase.
        fine_tune: whether there is a second phase.
    """

    name = "C"
    sizing: LargestWithin
    deployment: PowerOfTwoDeployment

    def __init__(
        self,
        approach: Approach,
        budget_bytes: PositiveInt,
        start_epoch: PositiveInt | None,
        every_n_steps: PositiveInt | None,
        scope: Scope | None,
        k_min: Exponent,
        k_max: Exponent,
        fine_tune_lr: PositiveFloat,
        memory_matrices: Storage,
        float_checkpoint: str | None,
        distillation: Distillation | None = None,
        fine_tune: bool = True,
    ) -> None:
        if every_n_steps is not None and not approach.takes_every_n_steps:
            raise ValueError(
                f"task.every_n_steps={every_n_steps} cannot be used with c_approach={approach.name}, which has a "
                "fixed schedule: leave task.every_n_steps out"
            )
        if approach.scope is not None and scope not in (None, approach.scope):
            raise ValueError(
                f"task.scope={scope}, but c_approach={approach.name} is only defined for {approach.scope}: leave task.scope out"
            )
        second_phase = {"task.start_epoch": start_epoch, "task.every_n_steps": every_n_steps, "kd": distillation}
        if not fine_tune and (useless := [key for key, value in second_phase.items() if value is not None]):
            raise ValueError(
                f"{useless[0]} cannot be used with task.fine_tune=false, which trains only in float: leave {useless[0]} out"
            )
        self.sizing = LargestWithin(budget_bytes)
        self.deployment = PowerOfTwoDeployment(
            budget_bytes, approach, Grid(k_min, k_max), approach.scope or scope or "all", memory_matrices
        )
        self.every_n_steps = every_n_steps or approach.every_n_steps
        self.start_epoch, self.fine_tune_lr, self.float_checkpoint = start_epoch, fine_tune_lr, float_checkpoint
        self.distillation, self.fine_tune = distillation, fine_tune

    def phases(self, epochs: int, teacher: Network | None = None) -> list[Phase]:
        approach, grid = self.deployment.approach, self.deployment.grid
        if not self.fine_tune:
            approach.check(grid, epochs)
            return [] if self.float_checkpoint else [Phase(1, epochs, None, FloatHooks)]
        start = self._start(epochs)
        if start > epochs:
            raise ValueError(
                f"task.start_epoch={start}, but trainer.epochs={epochs}: no epoch is left for c_approach="
                f"{approach.name}, lower task.start_epoch"
            )
        approach.check(grid, epochs - start + 1)
        loss = loss_with(self.distillation, teacher)
        epochs_of_phase = range(start, epochs + 1)
        hooks = partial(PowerOfTwoHooks, self.deployment, epochs_of_phase, self.every_n_steps, loss)
        second = Phase(start, epochs, self.fine_tune_lr, hooks)
        no_first = self.float_checkpoint or start == 1
        return [second] if no_first else [Phase(1, start - 1, None, WarmUpHooks), second]

    def deploy(self, best: nn.Module, reference: Network | None, train: Utterances) -> Deployed:
        if self.fine_tune:
            return Deployed(best, reference)
        trained = float_network(best)
        return Deployed(self.deployment.project(trained), trained)

    def constraint(self, deployed: nn.Module, epochs: int) -> Constraint:
        approach, grid, scope = self.deployment.approach, self.deployment.grid, self.deployment.scope
        parts = ("convolution", "recurrent", "linear") if scope == "all" else ("recurrent",)
        if scope == "all" and float_network(deployed).score is not None:
            parts = (*parts, "pooling")  # attention has its own weights
        lines = [*self.sizing.lines(), f"{approach.name}: {approach.level_text}, k {grid.k_min} to {grid.k_max}"]
        shown = scope.replace("_", " ")
        if not self.fine_tune:
            return Constraint((*lines, f"{shown}, rounded after training"), parts)
        acts = f"acts every {self.every_n_steps} steps" if self.every_n_steps else "acts every epoch"
        lines += [
            f"{shown}, from epoch {self._start(epochs)}",
            acts if approach.takes_every_n_steps else "acts on its own schedule",
        ]
        if self.distillation:
            lines.append("distilled from a float teacher")
        return Constraint(tuple(lines), parts)

    def _start(self, epochs: int) -> int:
        """Return the first epoch of the second phase."""
        return max(1, epochs // _FLOAT_SHARE) if self.start_epoch is None else self.start_epoch


class PowerOfTwoHooks(Hooks):
    """The second phase: the approach acts on the weights in scope, and each epoch validates a projected copy."""

    def __init__(
        self,
        deployment: PowerOfTwoDeployment,
        epochs: range,
        every_n_steps: int | None,
        loss: Loss,
        network: Network,
        train: Utterances,
        seed: int,
    ) -> None:
        super().__init__(network, train, seed)
        self.reference = copy.deepcopy(network)
        self.deployment, self.approach = deployment, deployment.approach
        self.epochs, self.every_n_steps, self._loss = epochs, every_n_steps, loss
        deployment.store_state_spaces(network)
        self.weights = deployment.weights(network)
        with torch.no_grad():
            self.approach.begin(self.weights, deployment.grid, len(epochs), seed)

    def begin_epoch(self, epoch: int) -> None:
        with torch.no_grad():
            self.approach.begin_epoch(self.weights, self._number(epoch))

    def training_form(self) -> AbstractContextManager[None]:
        return self.approach.training_form(self.weights)

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        return self._loss(objective, network, batch)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        self.approach.after_step(self.weights)
        if self.every_n_steps and step % self.every_n_steps == 0 and step < steps:
            self.approach.act(self.weights, step / steps)

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        if self.every_n_steps is None or epoch == self.epochs[-1]:
            self.approach.act(self.weights, self._number(epoch) / len(self.epochs))

    def candidate(self, epoch: int) -> nn.Module:
        return self.deployment.project(self.network)

    def stage(self, epoch: int) -> str:
        return self.approach.stage(self._number(epoch))

    def may_stop_early(self, epoch: int) -> bool:
        return not self.approach.has_schedule or epoch == self.epochs[-1]

    def state(self) -> dict[str, Any]:
        return self.approach.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.approach.load_state(state)

    def _number(self, epoch: int) -> int:
        """Return the number of this epoch within the phase, from 1."""
        return epoch - self.epochs[0] + 1
