"""Copy a network with its recurrent layers replaced by other modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.objectives.objective import Network


def recurrent_layers(network: Network) -> dict[str, RecurrentLayer]:
    """Return the encoder's recurrent layers by their names in the network; a bidirectional layer is one entry."""
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(layer)]: layer for layer in network.encoder.recurrent_layers}


def substituted(network: Network, stand_ins: Mapping[str, nn.Module], shares: bool) -> Network:
    """Return a copy of `network` with `stand_ins` at these names; `shares`: all other tensors are shared, not copied."""
    replaced = {id(network.get_submodule(name)): stand_in for name, stand_in in stand_ins.items()}
    kept = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())} if shares else {}
    return copy.deepcopy(network, {**replaced, **kept})
