"""Task C: weights that are powers of two, so that a device shifts where it would multiply."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from speech_exp.data.batches import Batch, Utterances
from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks import state_space
from speech_exp.tasks.approaches.approach import Approach, Weights
from speech_exp.tasks.budget import Budget, float_network
from speech_exp.tasks.distillation import Distillation
from speech_exp.tasks.grids import Grid
from speech_exp.tasks.storage import Stored, stored_in_codes
from speech_exp.tasks.task import Certificate, CertificateError, Phase

Scope = Literal["all", "rnn_only", "recurrent_matrices"]
_PROJECTED = (RecurrentLayer, nn.Linear, nn.Conv1d)  # normalisation layers stay float
_FLOAT_SHARE = 4  # where the user names no start, one epoch of so many is trained in float


class PowerOfTwo(Budget):
    """A float phase, then one in which `approach` brings the weights in scope onto their grid.

    Each epoch of the second phase validates a projected copy; training goes on from its own weights. What is saved and
    tested is such a copy, so its weights are on the grid exactly, whatever the approach.

    Args:
        start_epoch: first epoch of the second phase; None: a quarter of all epochs.
        every_n_steps: the approach acts after so many steps; None: as the approach is wont to, mostly after each epoch.
        scope: weights and biases of all recurrent, linear and convolution layers, of the recurrent ones only, or only
            their matrices; None: what the approach fixes, else all.
        k_min, k_max: smallest and largest exponent.
        fine_tune_lr: learning rate of the second phase.
        memory_matrices: how the LMU's A and B are stored, which no approach touches.
        float_checkpoint: trained float run that takes the place of the first phase (handed over by the composition root).
        distillation: from a float teacher, in the second phase.
    """

    name = "C"

    def __init__(
        self,
        approach: Approach,
        budget_bytes: int,
        start_epoch: int | None,
        every_n_steps: int | None,
        scope: Scope | None,
        k_min: int,
        k_max: int,
        fine_tune_lr: float,
        memory_matrices: state_space.Storage,
        float_checkpoint: str | None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(budget_bytes)
        if start_epoch is not None and start_epoch < 1:
            raise ValueError(f"task.start_epoch={start_epoch}: expected at least 1, change task.start_epoch")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"task.every_n_steps={every_n_steps}: expected at least 1, change task.every_n_steps")
        if every_n_steps is not None and not approach.takes_every_n_steps:
            raise ValueError(
                f"task.every_n_steps={every_n_steps} has no meaning with c_approach={approach.name}, which acts on a "
                "schedule of its own: leave task.every_n_steps out"
            )
        if approach.scope is not None and scope not in (None, approach.scope):
            raise ValueError(
                f"task.scope={scope}, but c_approach={approach.name} is defined for {approach.scope} alone: leave task.scope out"
            )
        if not fine_tune_lr > 0:
            raise ValueError(f"task.fine_tune_lr={fine_tune_lr}: expected a number above 0, change task.fine_tune_lr")
        self.approach, self.grid = approach, Grid(k_min, k_max)
        self.scope = approach.scope or scope or "all"
        self.constrained = ("convolution", "recurrent", "linear") if self.scope == "all" else ("recurrent",)
        self.every_n_steps = every_n_steps or approach.every_n_steps
        self.start_epoch, self.fine_tune_lr = start_epoch, fine_tune_lr
        self.memory_matrices, self.float_checkpoint = memory_matrices, float_checkpoint
        self.distillation = distillation
        self._first = self._last = 0  # epochs of the second phase, 0 before it

    def constraint_lines(self) -> list[str]:
        start = f"from epoch {self._first or self.start_epoch or 'a quarter'}"
        acts = f"acts every {self.every_n_steps} steps" if self.every_n_steps else "acts every epoch"
        lines = [
            *super().constraint_lines(),
            f"{self.approach.name}: {self.approach.level_text}, k {self.grid.k_min} to {self.grid.k_max}",
            f"{self.scope.replace('_', ' ')}, {start}",
            acts if self.approach.takes_every_n_steps else "acts on its own schedule",
        ]
        return [*lines, "distilled from a float teacher"] if self.distillation else lines

    def phases(self, epochs: int) -> list[Phase]:
        start = max(1, epochs // _FLOAT_SHARE) if self.start_epoch is None else self.start_epoch
        if start > epochs:
            raise ValueError(
                f"task.start_epoch={start}, but trainer.epochs={epochs}: no epoch is left for c_approach="
                f"{self.approach.name}, lower task.start_epoch"
            )
        self.approach.check(self.grid, epochs - start + 1)
        second = Phase(start, epochs, self.fine_tune_lr)
        return [second] if self.float_checkpoint or start == 1 else [Phase(1, start - 1), second]

    def begin_phase(self, network: Network, phase: Phase, train: Utterances, seed: int) -> None:
        if phase.lr is None:
            return
        self._first, self._last = phase.first, phase.last
        self.reference = copy.deepcopy(network)
        if self.scope == "all" and network.score is not None:
            self.constrained = (*self.constrained, "pooling")  # attention has weights of its own
        self._store_state_spaces(network)
        with torch.no_grad():
            self.approach.begin(self.weights(network), self.grid, phase.last - phase.first + 1, seed)

    def begin_epoch(self, network: Network, epoch: int) -> None:
        if self._first:
            with torch.no_grad():
                self.approach.begin_epoch(self.weights(network), epoch - self._first + 1)

    def training_form(self, network: Network) -> AbstractContextManager[None]:
        return self.approach.training_form(self.weights(network)) if self._first else nullcontext()

    def loss(self, objective: Objective, network: nn.Module, batch: Batch) -> torch.Tensor:
        if self._first and self.distillation:
            return self.distillation.loss(objective, network, batch)
        return super().loss(objective, network, batch)

    @torch.no_grad()
    def after_step(self, network: Network, step: int, steps: int) -> None:
        if not self._first:
            return
        weights = self.weights(network)
        self.approach.after_step(weights)
        if self.every_n_steps and step % self.every_n_steps == 0 and step < steps:
            self.approach.act(weights, step / steps)

    @torch.no_grad()
    def after_epoch(self, network: Network, epoch: int) -> None:
        if self._first and (self.every_n_steps is None or epoch == self._last):
            self.approach.act(self.weights(network), (epoch - self._first + 1) / (self._last - self._first + 1))

    def state(self) -> dict[str, Any]:
        return self.approach.state() if self._first else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self._first:
            self.approach.load_state(state)

    def candidate(self, network: Network, epoch: int) -> nn.Module | None:
        return self._projected(network) if self._first else None

    def stage(self, epoch: int) -> str:
        return self.approach.stage(epoch - self._first + 1) if self._first else "float"

    def may_stop_early(self, epoch: int) -> bool:
        return bool(self._first) and (not self.approach.has_schedule or epoch == self._last)

    def certify(self, deployed: nn.Module) -> Certificate:
        network = float_network(deployed)
        budget = super().certify(network)
        weights = self.weights(network)
        off = {name: int((~self.approach.on_grid(weight, self.grid)).sum()) for name, weight in weights.items()}
        if any(off.values()):
            named = ", ".join(f"{count} of {name}" for name, count in off.items() if count)
            raise CertificateError(
                f"weights off the grid of c_approach={self.approach.name} ({self.approach.level_text}, k {self.grid.k_min} "
                f"to {self.grid.k_max}): {named}"
            )
        details = {
            **budget.details,
            "approach": self.approach.name,
            "levels": self.approach.level_text,
            "k_min": self.grid.k_min,
            "k_max": self.grid.k_max,
            "exponents_in_use": self.approach.storage(weights, self.grid).exponents,
            "scope": self.scope,
            "weights": {name: weight.numel() for name, weight in weights.items()},
            "exempt": self._exempt(network),
        }
        return Certificate("power_of_two", True, sum(weight.numel() for weight in weights.values()), details)

    def stored(self, deployed: nn.Module) -> Stored:
        """Packed bytes: code words for the weights in scope, one code for each recurrent layer and one for the rest."""
        network = float_network(deployed)

        def code_bits(weights: Weights) -> int:
            return self.approach.storage(weights, self.grid).total_bits

        matrix_bits = state_space.bits(network, self.memory_matrices, self.grid)
        return stored_in_codes(network, self.weights(network), code_bits, matrix_bits)

    def weights(self, network: Network) -> Weights:
        """The parameters in scope by name."""
        found: dict[str, torch.Tensor] = {}
        for prefix, module in network.named_modules():
            if not isinstance(module, RecurrentLayer if self.scope != "all" else _PROJECTED):
                continue
            for name, parameter in module.named_parameters(prefix):
                if parameter.ndim > 1 or self.scope != "recurrent_matrices":
                    found[name] = parameter
        return found

    def _projected(self, network: Network) -> Network:
        projected = copy.deepcopy(network)
        self._store_state_spaces(projected)
        with torch.no_grad():
            for weight in self.weights(projected).values():
                weight.copy_(self.approach.project(weight, self.grid))
        return projected

    def _store_state_spaces(self, network: nn.Module) -> None:
        for name, memory in state_space.memories(network):
            A_MM, B_M = (state_space.stored(matrix, self.memory_matrices, self.grid) for matrix in (memory.A, memory.B))
            radius = state_space.spectral_radius(A_MM)
            if not radius < 1:
                raise ValueError(
                    f"task.memory_matrices={self.memory_matrices} gives {name}.A a spectral radius of {radius:.4f}, which must "
                    "be below 1: set task.memory_matrices=int16, or change model.order or model.theta"
                )
            memory.set_state_space(A_MM, B_M)

    def _exempt(self, network: Network) -> dict[str, str]:
        """What is stored otherwise, and how; the LMU's A and B are checked here."""
        in_scope = {id(weight) for weight in self.weights(network).values()}
        exempt = {name: "float32" for name, one in network.named_parameters() if id(one) not in in_scope}
        for name, memory in state_space.memories(network):
            radius = state_space.spectral_radius(memory.A)
            for key, matrix in (("A", memory.A), ("B", memory.B)):
                if not bool(state_space.is_stored(matrix, self.memory_matrices, self.grid).all()):
                    raise CertificateError(f"{name}.{key} is not stored as task.memory_matrices={self.memory_matrices}")
            if not radius < 1:
                raise CertificateError(f"{name}.A has a spectral radius of {radius:.4f}, which must be below 1")
            exempt |= {
                f"{name}.A": f"{self.memory_matrices}, spectral radius {radius:.6f}",
                f"{name}.B": self.memory_matrices,
            }
        return exempt
