"""The deployable form of a model, which is tested, saved and reported: restored, certified, packed and measured in bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speech_exp.objectives.objective import Network
from speech_exp.tasks import packed
from speech_exp.tasks.packed import Part
from speech_exp.tasks.storage import FLOAT_BITS, Stored, float_bytes, float_layer_bytes
from speech_exp.tasks.topology import difference


@dataclass(frozen=True)
class Certificate:
    """Result of checking the deployable form; `kind` is "none" if the task has no constraint."""

    kind: str
    passed: bool
    checked: int
    details: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return "none needed" if self.kind == "none" else f"{self.kind}, {self.checked:,} checked, passed"


class CertificateError(ValueError):
    """The deployable form violates the task's constraint."""


class Deployment(ABC):
    """The deployable form of one task. It has no state, so a checkpoint and its config are enough to use it."""

    @abstractmethod
    def blank(self, network: Network) -> nn.Module:
        """Return a model with the deployable form's topology; its constants are correct, its other numbers are meaningless."""

    @abstractmethod
    def restore(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return the deployable form from its saved state; `network` has its topology and may be modified."""

    @abstractmethod
    def certify(self, deployed: nn.Module, untrained: Network) -> Certificate:
        """Check the deployable form; raise a `CertificateError` if it violates the constraint.

        `untrained` is a network built from the config; the deployed model must have the same form.
        """

    @abstractmethod
    def parts(self, deployed: nn.Module) -> list[Part]:
        """Return how the deployable form is packed; its values are not read."""

    @abstractmethod
    def stored(self, deployed: nn.Module) -> Stored:
        """Return the sizes in bytes of the deployable form."""

    def unpacked(self, network: Network, path: Path) -> nn.Module:
        """Load the deployable form from its packed file; `network` has its topology and may be modified."""
        blank = self.blank(network)
        return self.restore(network, packed.read(path, blank, self.parts(blank)))


class FloatDeployment(Deployment):
    """The trained network itself, in float32, without a constraint."""

    def blank(self, network: Network) -> nn.Module:
        return network

    def restore(self, network: Network, state: Mapping[str, torch.Tensor]) -> nn.Module:
        expected, found = ({name: tuple(one.shape) for name, one in of.items()} for of in (network.state_dict(), state))
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(f"{name} has the shape {found.get(name)}, the config's network {expected.get(name)}")
        network.load_state_dict(state)
        return network

    def certify(self, deployed: nn.Module, untrained: Network) -> Certificate:
        return Certificate(kind="none", passed=True, checked=0)

    def parts(self, deployed: nn.Module) -> list[Part]:
        network = float_network(deployed)
        return packed.parts_of(network, network.encoder.recurrent_layers)

    def stored(self, deployed: nn.Module) -> Stored:
        network = float_network(deployed)
        return Stored.of(
            network,
            self.parts(network),
            float_layer_bytes(network),
            [layer.state_numbers() * FLOAT_BITS // 8 for layer in network.encoder.recurrent_layers],
            float_bytes(network),
            float(FLOAT_BITS),
        )


class BudgetDeployment(FloatDeployment):
    """The trained network in float32, whose recurrent layers fit a budget."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes

    def certify(self, deployed: nn.Module, untrained: Network) -> Certificate:
        return budget_certificate(
            deployed, self.blank(untrained), float_layer_bytes(float_network(deployed)), self.budget_bytes
        )


def budget_certificate(
    deployed: nn.Module, blank: nn.Module, layer_bytes: Sequence[int], budget_bytes: int
) -> Certificate:
    """Certify that `deployed` has the form of `blank`, and that each of its recurrent layers fits the budget."""
    if found := difference(deployed, blank):
        raise CertificateError(f"{found}: the model is not the one that its config describes")
    over = [f"layer {number} takes {count:,}" for number, count in enumerate(layer_bytes, 1) if count > budget_bytes]
    if over:
        raise CertificateError(
            f"{', '.join(over)} bytes, but task.budget_bytes={budget_bytes}: the model was not made by this task"
        )
    details = {"budget_bytes": budget_bytes, "recurrent_layer_bytes": list(layer_bytes)}
    return Certificate(kind="budget", passed=True, checked=len(layer_bytes), details=details)


def float_network(deployed: nn.Module) -> Network:
    """Return `deployed` as the float network that tasks A, B1 and C deploy."""
    assert isinstance(deployed, Network)
    return deployed
