"""PyTorch's dynamic INT8, beside which the integer engine is reported: weights int8, activations quantised at each product,
gates in float. All that uses torch.ao.quantization stands here; it warns that it will move to the package torchao.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from speech_exp.models.layer import RecurrentLayer
from speech_exp.models.lmu import LMU
from speech_exp.objectives.objective import Network

_QUANTISED = (nn.GRU, nn.LSTM, nn.Linear)
_SCALE_BYTES = 8  # of each matrix: a float scale and an int32 zero point


class _LMUByModules(LMU):
    """An LMU that calls its linear layers as modules, where the sequence form reads the float weight of one."""

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        state = self.initial_state(len(inputs_BTD), inputs_BTD)
        outputs = []
        for inputs_BD in inputs_BTD.unbind(1):
            output_BH, state = self.step(inputs_BD, state)
            outputs.append(output_BH)
        return torch.stack(outputs, 1)

    def final(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return RecurrentLayer.final(self, inputs_BTD, lengths_B)


def dynamic_int8(network: Network) -> nn.Module:
    """A copy of `network`, which lies on the CPU, with its recurrent and linear layers in dynamic INT8."""
    dynamic = copy.deepcopy(network).eval()
    for module in dynamic.modules():
        if isinstance(module, LMU):
            module.__class__ = _LMUByModules
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*TypedStorage.*", category=UserWarning)
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(dynamic, set(_QUANTISED), dtype=torch.qint8)
    return quantised


def dynamic_bytes(network: Network) -> int:
    """Bytes of `dynamic_int8(network)`: int8 matrices with a scale each, all else in float32."""
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
