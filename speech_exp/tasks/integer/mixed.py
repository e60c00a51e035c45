"""Networks with integer recurrent layers between parts that stay float: attention, norms, linear layers.

Shape letters: B batch, T frames, F features, D layer input, H states of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer import scheme
from speech_exp.tasks.integer.cells import IntegerLayer, Ranges
from speech_exp.tasks.integer.form import IntegerForm, IntegerPart, integer_layer
from speech_exp.tasks.integer.rules import INT8_LIMIT
from speech_exp.tasks.integer.substitution import recurrent_layers, substituted


class IntegerRecurrent(nn.Module):
    """Replaces a float recurrent layer: quantises inputs to int8, runs the integer layer, dequantises its int16 states."""

    input_scale: torch.Tensor  # (D)
    output_scale: torch.Tensor  # (H)

    def __init__(self, layer: RecurrentLayer) -> None:
        """Build the module; `layer` only provides the topology."""
        super().__init__()
        self.register_buffer("input_scale", torch.ones(layer.input_size))
        self.register_buffer("output_scale", torch.ones(layer.output_size))
        self.layer = integer_layer(layer)

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return float32 states (B, T, H)."""
        return self.layer(scheme.quantized(inputs_BTD, self.input_scale), lengths_B) * self.output_scale

    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges) -> None:
        """Load a float layer that calibration calls `name`."""
        self.input_scale.copy_(scheme.code_scale(ranges[f"{name}.input"], INT8_LIMIT))
        self.output_scale.copy_(self.layer.load(layer, name, ranges, self.input_scale.double()))


class MixedNetwork(IntegerForm):
    """A copy of a float network with integer recurrent layers; everything else is float32 on the CPU."""

    constrained = ("recurrent",)
    promise = "INT8 recurrent layers, integers only from their input codes to their states"

    def __init__(self, network: Network) -> None:
        """Build the form; `network` provides the topology, and codes are 0 until `load` or `load_state_dict`."""
        super().__init__()
        layers = {name: IntegerRecurrent(layer) for name, layer in recurrent_layers(network).items()}
        self.network = substituted(network, layers, shares=False).cpu().eval().requires_grad_(False)

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> Any:
        """Return the network's output on the CPU, in float32 even under autocast."""
        with torch.autocast("cpu", enabled=False):
            return self.network(features_BTF.cpu().float(), lengths_B.cpu())

    def integer_layers(self) -> dict[str, IntegerLayer]:
        return {name: module.layer for name, module in self._stand_ins().items()}

    def integer_parts(self) -> dict[str, IntegerPart]:
        return {
            name: IntegerPart(module.layer, module.input_scale.numel()) for name, module in self._stand_ins().items()
        }

    def covered(self) -> list[str]:
        return list(self._stand_ins())

    def float_parts(self) -> list[str]:
        """Return the largest parts that have numbers of their own but no integer layer."""
        return _float_parts(self.network)

    def check(self) -> None:
        super().check()
        left = {
            name for name, layer in recurrent_layers(self.network).items() if not isinstance(layer, IntegerRecurrent)
        }
        if left:
            raise ValueError(f"recurrent layers of the integer model that compute in float: {', '.join(sorted(left))}")

    def load(self, network: Network, ranges: Ranges) -> None:
        for name in self.float_parts():
            self.network.get_submodule(name).load_state_dict(network.get_submodule(name).state_dict())
        trained = recurrent_layers(network)
        for name, module in self._stand_ins().items():
            module.load(trained[name], name, ranges)

    def _stand_ins(self) -> dict[str, IntegerRecurrent]:
        return {name: module for name, module in self.network.named_modules() if isinstance(module, IntegerRecurrent)}


def _float_parts(module: nn.Module, prefix: str = "") -> list[str]:
    found = []
    for name, child in module.named_children():
        if any(isinstance(one, IntegerRecurrent) for one in child.modules()):
            found += [] if isinstance(child, IntegerRecurrent) else _float_parts(child, f"{prefix}{name}.")
        elif child.state_dict():
            found.append(prefix + name)
    return found
