"""PyTorch's dynamic INT8, reported for comparison with the integer engine.

Weights are int8, activations are quantised at each product, and gates are computed in float. This is the only module that
uses torch.ao.quantization, which warns that it will move to the package torchao.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from speech_exp.models.layer import RecurrentLayer, State
from speech_exp.models.lmu import LMU
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer.substitution import substituted

_QUANTISED = (nn.GRU, nn.LSTM, nn.Linear)
_SCALE_BYTES = 8  # per matrix: a float scale and an int32 zero point


class _FrameByFrame(RecurrentLayer):
    """Runs an LMU by its streaming form, which calls its linear layers as modules; the others read a float weight directly."""

    def __init__(self, layer: LMU) -> None:
        super().__init__(layer.input_size, layer.hidden_size)
        self.layer = layer

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        state = self.initial_state(len(inputs_BTD), inputs_BTD)
        outputs = []
        for inputs_BD in inputs_BTD.unbind(1):
            output_BH, state = self.step(inputs_BD, state)
            outputs.append(output_BH)
        return torch.stack(outputs, 1)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        return self.layer.initial_state(batch_size, like)

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return self.layer.step(inputs_BD, state)


def dynamic_int8(network: Network) -> nn.Module:
    """Return a copy of `network`, which must be on the CPU, with its recurrent and linear layers in dynamic INT8."""
    lmus = {name: layer for name, layer in network.named_modules() if isinstance(layer, LMU)}
    by_steps = {name: _FrameByFrame(copy.deepcopy(layer)) for name, layer in lmus.items()}
    dynamic = substituted(network, by_steps, shares=False).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*TypedStorage.*", category=UserWarning)
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(dynamic, set(_QUANTISED), dtype=torch.qint8)
    return quantised


def dynamic_bytes(network: Network) -> int:
    """Return the bytes of `dynamic_int8(network)`: int8 matrices with one scale each, everything else in float32."""
    matrices = [
        parameter
        for module in network.modules()
        if isinstance(module, _QUANTISED)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim > 1
    ]
    int8 = sum(matrix.numel() for matrix in matrices)
    numbers = sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())
    return int8 + _SCALE_BYTES * len(matrices) + 4 * (numbers - int8)
