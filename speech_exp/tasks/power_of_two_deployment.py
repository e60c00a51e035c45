"""The deployable form of task C: weights in scope on the approach's grid, and packed as its code words."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network
from speech_exp.tasks import state_space
from speech_exp.tasks.approaches.approach import Approach, Scope, Weights
from speech_exp.tasks.deployment import BudgetDeployment, Certificate, CertificateError, float_network
from speech_exp.tasks.grids import Grid
from speech_exp.tasks.packed import Part, chunks, parts_of
from speech_exp.tasks.storage import Stored

_PROJECTED = (RecurrentLayer, nn.Linear, nn.Conv1d)
_NORMALIZATION = (nn.BatchNorm1d, nn.LayerNorm)  # kept in float


class PowerOfTwoDeployment(BudgetDeployment):
    """A float network whose weights in `scope` lie on the grid, and whose memories are stored as `memory_matrices` says."""

    def __init__(
        self,
        budget_bytes: int,
        approach: Approach,
        grid: Grid,
        scope: Scope,
        memory_matrices: state_space.Storage,
    ) -> None:
        super().__init__(budget_bytes)
        self.approach, self.grid, self.scope, self.memory_matrices = approach, grid, scope, memory_matrices

    def blank(self, network: Network) -> nn.Module:
        return self.project(network)

    def certify(self, deployed: nn.Module, untrained: Network) -> Certificate:
        network = float_network(deployed)
        weights, exempt = self.weights(network), self._exempt(network)
        budget = super().certify(network, untrained)
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
            "exponents_in_use": self.approach.exponents(weights),
            "scope": self.scope,
            "weights": {name: weight.numel() for name, weight in weights.items()},
            "exempt": exempt,
        }
        return Certificate("power_of_two", True, sum(weight.numel() for weight in weights.values()), details)

    def stored(self, deployed: nn.Module) -> Stored:
        """Return the sizes; the bits per weight in scope are its code word plus its share of the decoding tables."""
        network = float_network(deployed)
        weights, state = self.weights(network), network.state_dict()
        coded = chunks(state, [part for part in self.parts(network) if part.coding is self.approach.coding])
        bits_per_weight = 8 * sum(map(len, coded)) / sum(weight.numel() for weight in weights.values())
        return replace(super().stored(network), bits_per_weight=bits_per_weight)

    def parts(self, deployed: nn.Module) -> list[Part]:
        """Return the weights in scope as code words, the LMU's A and B as in `memory_matrices`, and all else in float32.

        Each recurrent layer has its own code, and the rest of the model shares one.
        """
        network = float_network(deployed)
        matrices = [f"{name}.{key}" for name, _ in state_space.memories(network) for key in ("A", "B")]
        coded = [(self.weights(network), self.approach.coding), (matrices, state_space.CODINGS[self.memory_matrices])]
        return parts_of(network, network.encoder.recurrent_layers, coded)

    def weights(self, network: Network) -> Weights:
        """Return the parameters in scope by name."""
        found: dict[str, torch.Tensor] = {}
        for prefix, module in network.named_modules():
            if not isinstance(module, RecurrentLayer if self.scope != "all" else _PROJECTED):
                continue
            for name, parameter in module.named_parameters(prefix):
                if parameter.ndim > 1 or self.scope != "recurrent_matrices":
                    found[name] = parameter
        return found

    def project(self, network: Network) -> Network:
        """Return a copy of `network` with its weights in scope and its memories rounded to what is stored."""
        projected = copy.deepcopy(network)
        self.store_state_spaces(projected)
        with torch.no_grad():
            for weight in self.weights(projected).values():
                weight.copy_(self.approach.project(weight, self.grid))
        return projected

    def store_state_spaces(self, network: nn.Module) -> None:
        """Round the A and B of each linear memory; refuse those that would grow without bound."""
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
        """Return how other numbers are stored, and why; refuse those the scope does not exempt, and A or B off their grid."""
        in_scope = {id(weight) for weight in self.weights(network).values()}
        exempt = {}
        for prefix, module in network.named_modules():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if id(parameter) in in_scope:
                    continue
                if self.scope == "all" and not isinstance(module, _NORMALIZATION):
                    raise CertificateError(
                        f"{name} is in float32, but task.scope=all exempts only normalisation layers"
                    )
                exempt[name] = "float32, " + ("normalisation" if self.scope == "all" else f"outside {self.scope}")
        for name, memory in state_space.memories(network):
            radius = state_space.spectral_radius(memory.A)
            for key, matrix in (("A", memory.A), ("B", memory.B)):
                if not bool(state_space.is_stored(matrix, self.memory_matrices, self.grid).all()):
                    raise CertificateError(f"{name}.{key} is not stored as task.memory_matrices={self.memory_matrices}")
            if not radius < 1:
                raise CertificateError(f"{name}.A has a spectral radius of {radius:.4f}, which must be below 1")
            storage = f"{self.memory_matrices}, zero-order hold of order {memory.order} and theta {memory.theta:g}"
            exempt |= {
                f"{name}.A": f"{storage}, spectral radius {radius:.6f}",
                f"{name}.B": storage,
            }
        return exempt
