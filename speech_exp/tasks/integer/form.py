"""The deployed form of task B2: a network that computes its recurrent layers, or everything, in integers."""

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
from speech_exp.tasks.packed import Part, Tables, chunks, parts_of

Form = TypeVar("Form", bound="IntegerForm")


@dataclass(frozen=True)
class IntegerPart:
    """A section of a network that computes in integers only."""

    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # int8 codes (B, T, features), lengths (B)
    features: int


class IntegerForm(nn.Module, ABC):
    """Base class of the integer forms; they run on the CPU, whatever the device of the original network."""

    constrained: ClassVar[tuple[str, ...]]  # kinds of parts that compute in integers
    promise: ClassVar[str]  # what the certificate promises, in a few words

    def _apply(self: Form, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Form:
        """Do nothing: `.to(...)` and `.half()` apply to float networks only."""
        return self

    @abstractmethod
    def load(self, network: Network, ranges: Ranges) -> None:
        """Load a float network of the same topology whose values have these ranges."""

    @abstractmethod
    def integer_layers(self) -> dict[str, IntegerLayer]:
        """Return the recurrent layers by name."""

    @abstractmethod
    def integer_parts(self) -> dict[str, IntegerPart]: ...

    @abstractmethod
    def covered(self) -> list[str]:
        """Return the names of the parts computed in integers."""

    @abstractmethod
    def float_parts(self) -> list[str]:
        """Return the names of the parts that stay float."""

    def recurrent_layer_bytes(self) -> list[int]:
        """Return the bytes of each recurrent layer, over all its directions."""
        return [layer.stored_bytes() for layer in self.integer_layers().values()]

    def recurrent_state_bytes(self) -> list[int]:
        """Return the bytes that each recurrent layer keeps between frames, over all its directions."""
        return [layer.state_bytes() for layer in self.integer_layers().values()]

    def tables(self) -> tuple[torch.Tensor, ...]:
        """Return the look-up tables of the rules that the network uses."""
        layers = self.integer_layers().values()
        return (rules.TANH_TABLE,) if any(layer.uses_tanh_table for layer in layers) else ()

    def parts(self) -> list[Part]:
        """Return how the model is packed: weights, biases, multipliers, shifts, scales, then the tables."""
        return [*parts_of(self, list(self.integer_layers().values())), Part((), Tables(self.tables()))]

    def model_bytes(self) -> int:
        """Return the bytes of everything that a device stores."""
        return sum(map(len, chunks(self.state_dict(), self.parts())))

    def accumulator_bounds(self) -> dict[str, int]:
        """Return the proven largest magnitude of each int32 accumulator, including rounding terms."""
        return {
            f"{name}.{key}": bound
            for name, layer in self.integer_layers().items()
            for key, bound in layer.accumulator_bounds().items()
        }

    def spectral_radii(self) -> dict[str, float]:
        """Return the spectral radius of each linear memory as rounded, by the name of its layer."""
        return {
            f"{name}.{key}": radius
            for name, layer in self.integer_layers().items()
            for key, radius in layer.spectral_radii().items()
        }

    def check(self) -> None:
        """Check that no accumulator can overflow, no memory grows, and every requantisation is within the rules."""
        for name, module in self.named_modules():
            if isinstance(module, Requantization | IntegerLSTM | IntegerLMU) and not module.is_within_rules():
                raise ValueError(
                    f"{name} of the integer model contains a multiplier or a shift outside the integer rules"
                )
        for name, scale in self.named_buffers():
            if name.endswith("_scale") and not (torch.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"{name} of the integer model is not positive")
        for name, bound in self.accumulator_bounds().items():
            if bound > rules.ACCUMULATOR_LIMIT:
                raise ValueError(
                    f"the accumulator {name} may reach {bound}, beyond int32's limit of {rules.ACCUMULATOR_LIMIT}"
                )
        for name, radius in self.spectral_radii().items():
            if not radius < 1:
                raise ValueError(f"{name} has spectral radius {radius:.4f} in int16: change model.order or model.theta")


def integer_layer(layer: RecurrentLayer) -> IntegerLayer:
    """Return the integer layer of this topology; all codes are 0 until it is loaded."""
    if isinstance(layer, Bidirectional):
        return IntegerBidirectional(integer_layer(layer.forward_layer), integer_layer(layer.backward_layer))
    if isinstance(layer, GRU):
        return IntegerGRU(layer.input_size, layer.hidden_size)
    if isinstance(layer, LSTM):
        return IntegerLSTM(layer.input_size, layer.hidden_size)
    if isinstance(layer, LMU):
        return IntegerLMU(layer)
    raise ValueError(f"task=B2 has integer forms of gru, lstm and lmu, but not of {layer.name}: change model or task")
