"""A float network that rounds at the same points as its integer form.

Shape letters: B batch, T frames, D layer input, F features, H states.
"""

from __future__ import annotations

import torch
from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer import equations
from speech_exp.tasks.integer.equations import Rounding, has_integer_parts_only
from speech_exp.tasks.integer.substitution import recurrent_layers, substituted


class _RoundedNetwork(nn.Module):
    """A whole classification network over the compact encoder."""

    def __init__(self, network: ClassificationNetwork, rounding: Rounding) -> None:
        super().__init__()
        self.network, self.rounding = network, rounding

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return equations.logits(self.network, features_BTF, lengths_B, self.rounding)


class _RoundedLayer(nn.Module):
    """One recurrent layer between parts that compute in float."""

    def __init__(self, layer: RecurrentLayer, name: str, rounding: Rounding) -> None:
        super().__init__()
        self.layer, self.name, self.rounding = layer, name, rounding

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return equations.states(self.layer, self.name, inputs_BTD, lengths_B, self.rounding)


def rounded(network: Network, rounding: Rounding) -> nn.Module:
    """Return `network` with `rounding` at the points where its integer form rounds; parameters are shared."""
    if has_integer_parts_only(network):
        return _RoundedNetwork(network, rounding)
    layers = {name: _RoundedLayer(layer, name, rounding) for name, layer in recurrent_layers(network).items()}
    return substituted(network, layers, shares=True)
