"""Convert a trained float network, or a saved state, to its integer form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from speech_exp.features.batch import Batch
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer.calibration import observe
from speech_exp.tasks.integer.equations import has_integer_parts_only
from speech_exp.tasks.integer.form import IntegerForm
from speech_exp.tasks.integer.mixed import MixedNetwork
from speech_exp.tasks.integer.network import IntegerNetwork


def integer_form(network: Network) -> IntegerForm:
    """Return the unloaded integer form of this topology: the whole network if possible, otherwise its recurrent layers."""
    return IntegerNetwork(network) if has_integer_parts_only(network) else MixedNetwork(network)


@torch.no_grad()
def convert(network: Network, batches: Iterable[Batch]) -> IntegerForm:
    """Return the integer form of a trained network, with ranges calibrated on these batches; `network` is unchanged."""
    converted = integer_form(network)
    converted.load(network, observe(network, batches))
    converted.check()
    return converted


def from_state(network: Network, state: Mapping[str, torch.Tensor]) -> IntegerForm:
    """Return the integer form whose `state_dict()` is `state`; `network` only provides the topology."""
    built = integer_form(network)
    expected = built.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"the integer model lacks {', '.join(missing)}")
    if unknown := sorted(state.keys() - expected.keys()):
        raise ValueError(f"the integer model contains unknown entries {', '.join(unknown)}")
    for name, wanted in expected.items():
        given: Any = state[name]
        if not isinstance(given, torch.Tensor) or given.dtype != wanted.dtype or given.shape != wanted.shape:
            found = f"{given.dtype} {list(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
            raise ValueError(f"{name} of the integer model is {found}, expected {wanted.dtype} {list(wanted.shape)}")
    built.load_state_dict(dict(state))
    built.check()
    return built
