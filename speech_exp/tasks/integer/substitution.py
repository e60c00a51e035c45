"""Copies of a network in which other modules stand in for its recurrent layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network


def recurrent_layers(network: Network) -> dict[str, RecurrentLayer]:
    """Those of the encoder, all directions of one together, by their names in the network."""
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(layer)]: layer for layer in network.encoder.recurrent_layers}


def substituted(network: Network, stand_ins: Mapping[str, nn.Module], shares: bool) -> Network:
    """A copy of `network` with `stand_ins` at these names; it `shares` the tensors of all else or has its own."""
    replaced = {id(network.get_submodule(name)): stand_in for name, stand_in in stand_ins.items()}
    kept = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())} if shares else {}
    return copy.deepcopy(network, {**replaced, **kept})
