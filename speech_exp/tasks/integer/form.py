"""What task B2 deploys: a network whose recurrent layers, or all of which, compute in integers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import nn

from speech_exp.models.layer import Bidirectional, RecurrentLayer
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer import rules
from speech_exp.tasks.integer.cells import IntegerBidirectional, IntegerGRU, IntegerLayer, IntegerLSTM, Ranges
from speech_exp.tasks.integer.lmu import IntegerLMU
from speech_exp.tasks.integer.parts import Requantization

Form = TypeVar("Form", bound="IntegerForm")


@dataclass(frozen=True)
class IntegerPart:
    """A stretch of a network that computes in integers alone."""

    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # int8 codes (B, T, features), lengths (B)
    features: int


class IntegerForm(nn.Module, ABC):
    """It runs on the CPU, whatever device the network it comes from lies on."""

    constrained: ClassVar[tuple[str, ...]]  # kinds of parts that compute in integers
    promise: ClassVar[str]  # of the certificate, in a few words

    def _apply(self: Form, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Form:
        """Stays as it is: `.to(...)` and `.half()` concern float networks."""
        return self

    @abstractmethod
    def load(self, network: Network, ranges: Ranges) -> None:
        """Takes over a float network of the same topology whose values have these ranges."""

    @abstractmethod
    def integer_layers(self) -> dict[str, IntegerLayer]:
        """The recurrent layers by name."""

    @abstractmethod
    def integer_parts(self) -> dict[str, IntegerPart]: ...

    @abstractmethod
    def covered(self) -> list[str]:
        """The parts computed in integers."""

    @abstractmethod
    def float_parts(self) -> list[str]:
        """The parts that stay float."""

    def recurrent_layer_bytes(self) -> list[int]:
        """Bytes of each recurrent layer, all its directions: weights 1, biases 4, LMU's A and B 2, without scales."""
        return [layer.stored_bytes() for layer in self.integer_layers().values()]

    def model_bytes(self) -> int:
        """Everything a device stores: weights, biases, multipliers, shifts, scales and the tables in use."""
        # int64 are only the batches that a normalisation has counted in training.
        stored = sum(x.numel() * x.element_size() for x in self.state_dict().values() if x.dtype != torch.int64)
        if any(layer.uses_tanh_table for layer in self.integer_layers().values()):
            stored += rules.TANH_TABLE.numel() * rules.TANH_TABLE.element_size()
        return stored

    def accumulator_bounds(self) -> dict[str, int]:
        """Proven largest magnitude of each int32 accumulator, rounding terms included."""
        return {
            f"{name}.{key}": bound
            for name, layer in self.integer_layers().items()
            for key, bound in layer.accumulator_bounds().items()
        }

    def spectral_radii(self) -> dict[str, float]:
        """Of each linear memory as rounded, by its layer's name."""
        return {
            f"{name}.{key}": radius
            for name, layer in self.integer_layers().items()
            for key, radius in layer.spectral_radii().items()
        }

    def check(self) -> None:
        """That no accumulator can overflow, no memory grows, and every requantisation is within the rules."""
        for name, module in self.named_modules():
            if isinstance(module, Requantization | IntegerLSTM | IntegerLMU) and not module.is_within_rules():
                raise ValueError(f"{name} of the integer model holds a multiplier or a shift outside the integer rules")
        for name, scale in self.named_buffers():
            if name.endswith("_scale") and not (torch.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"{name} of the integer model is not positive")
        for name, bound in self.accumulator_bounds().items():
            if bound > rules.ACCUMULATOR_LIMIT:
                raise ValueError(f"the accumulator {name} may reach {bound}, int32 ends at {rules.ACCUMULATOR_LIMIT}")
        for name, radius in self.spectral_radii().items():
            if not radius < 1:
                raise ValueError(f"{name} has spectral radius {radius:.4f} in int16: change model.order or model.theta")


def integer_layer(layer: RecurrentLayer) -> IntegerLayer:
    """The integer layer of this topology, all codes 0 until it loads."""
    if isinstance(layer, Bidirectional):
        return IntegerBidirectional(integer_layer(layer.forward_layer), integer_layer(layer.backward_layer))
    if isinstance(layer, GRU):
        return IntegerGRU(layer.input_size, layer.hidden_size)
    if isinstance(layer, LSTM):
        return IntegerLSTM(layer.input_size, layer.hidden_size)
    if isinstance(layer, LMU):
        return IntegerLMU(layer)
    raise ValueError(f"the integer engine knows gru, lstm and lmu, not {layer.name!r}: change model")
