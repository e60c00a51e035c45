"""Quantisation-aware training: the integer rules simulated in float, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speech_exp.features.batch import Batch
from speech_exp.models.lmu import LMU
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer import scheme
from speech_exp.tasks.integer.calibration import observe
from speech_exp.tasks.integer.cells import Ranges
from speech_exp.tasks.integer.equations import Product, Scale
from speech_exp.tasks.integer.rounded import rounded
from speech_exp.tasks.integer.rules import INT8_LIMIT, TANH_INPUT_BITS


class FakeRounding:
    """Rounds and saturates like the rules; gradients pass through rounding unchanged and are 0 where a code saturates."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges

    def watch(self, name: str, x: torch.Tensor) -> None:
        pass

    def codes(self, x: torch.Tensor, scale: Scale, limit: int) -> torch.Tensor:
        if isinstance(scale, float):
            return torch.fake_quantize_per_tensor_affine(x, scale, 0, -limit, limit)
        if scale.dim() == 2:  # one scale per channel of (B, C, M)
            return _per_feature(x, scale.flatten(), 1, limit)
        return _per_feature(x, scale, x.dim() - 1, limit)

    def product(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, scale_I: Scale, common: bool = False
    ) -> Product:
        scaled_OI = weight_OI * scale_I
        scale_O = scheme.row_scale(scaled_OI.detach(), None if bias_O is None else bias_O.detach(), common)
        coded_OI = _per_feature(scaled_OI, scale_O, 0, INT8_LIMIT) / scale_I
        return lambda x: F.linear(x, coded_OI, bias_O)

    def narrow_scale(self, name: str) -> Scale:
        return scheme.code_scale(self.ranges[name], INT8_LIMIT).float()

    def state_scale(self, name: str) -> Scale:
        return scheme.state_scale(self.ranges[name]).float()

    def common_scale(self, name: str) -> Scale:
        return float(scheme.state_scale(self.ranges[name].max()))

    def cell_scale(self, name: str) -> Scale:
        return 2.0 ** -scheme.cell_bits(self.ranges[name], TANH_INPUT_BITS)

    def state_matrices(self, layer: LMU) -> tuple[torch.Tensor, torch.Tensor]:
        A_MM, B_M, bits = scheme.state_matrices(layer.memory.A, layer.memory.B)
        return A_MM.float() / 2**bits, B_M.float() / 2**bits


class FakeQuantized(nn.Module):
    """Trainable simulation of the integer form of `network`, whose parameters it shares.

    The ranges are calibrated on `batches` at construction. Besides float rounding it differs from the integer network in two
    ways: parts and biases are not rounded before they are added, and sigmoid, tanh and softmax are exact functions instead of
    tables. A convolution front computed in integers keeps its running statistics.
    """

    def __init__(self, network: Network, batches: Iterable[Batch]) -> None:
        super().__init__()
        device = network.output.weight.device
        ranges = {point: range_X.to(device) for point, range_X in observe(network, batches).items()}
        self.faked = rounded(network, FakeRounding(ranges))

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> Any:
        """Return the network's output in float32."""
        with torch.autocast(features_BTF.device.type, enabled=False):  # codes are finer than 16-bit floats
            return self.faked(features_BTF.float(), lengths_B)


def _per_feature(x: torch.Tensor, scale: torch.Tensor, axis: int, limit: int) -> torch.Tensor:
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, -limit, limit)
