"""The building blocks of integer layers: a product with its bias, and requantisation by row.

Shape letters: I inputs of a product, O its outputs (rows).
"""

from __future__ import annotations

import torch
from torch import nn

from speech_exp.tasks.integer import rules, scheme


class IntegerProduct(nn.Module):
    """Computes int32 accumulators W x + b of int8 or int16 codes x; W is int8, b is int32 in units of the accumulator."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool, input_limit: int = rules.INT8_LIMIT) -> None:
        super().__init__()
        self.input_limit = input_limit  # largest magnitude of a code of x
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32) if bias else None)

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """Return int32 accumulators (..., O) of codes (..., I)."""
        sums = rules.product(codes, self.weight)
        return sums if self.bias is None else sums + self.bias

    def load(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, scale_O: torch.Tensor) -> None:
        """Load a weight that already includes its input scales, for accumulators of scale `scale_O` (all float64)."""
        codes_OI = scheme.rounded(weight_OI / scale_O.unsqueeze(1)).clamp(-rules.INT8_LIMIT, rules.INT8_LIMIT)
        self.weight.copy_(codes_OI)
        if self.bias is not None and bias_O is not None:
            self.bias.copy_(scheme.rounded(bias_O / scale_O))

    def bound(self) -> int:
        """Return the proven largest magnitude of an accumulator, for any order of summation."""
        bound_O = self.weight.long().abs().sum(1) * self.input_limit
        return int((bound_O if self.bias is None else bound_O + self.bias.long().abs()).max())


class Requantization(nn.Module):
    """Converts codes or accumulators to parts of a different scale, with an int32 multiplier and a shift for each row."""

    multiplier: torch.Tensor
    shift: torch.Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("multiplier", torch.zeros(outputs, dtype=torch.int32))
        self.register_buffer("shift", torch.ones(outputs, dtype=torch.int8))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return int32 parts (..., O) of int32 or int16 numbers (..., O)."""
        return rules.requantize(codes, self.multiplier, self.shift)

    def is_within_rules(self) -> bool:
        return bool((self.multiplier >= 0).all() and (self.shift >= 1).all() and (self.shift <= 62).all())

    def load(self, scale_in: torch.Tensor, scale_out: torch.Tensor) -> None:
        multiplier, shift = scheme.fixed_point(scale_in / scale_out)
        self.multiplier.copy_(multiplier)
        self.shift.copy_(shift)


class IntegerLinear(nn.Module):
    """A linear layer from codes to parts of a given scale."""

    def __init__(self, inputs: int, outputs: int, bias: bool, input_limit: int = rules.INT8_LIMIT) -> None:
        super().__init__()
        self.product = IntegerProduct(inputs, outputs, bias, input_limit)
        self.requantization = Requantization(outputs)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return int32 parts (..., O) of int8 or int16 codes (..., I)."""
        return self.requantization(self.product.accumulate(codes))

    def load(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, scale_I: torch.Tensor, scale_O: torch.Tensor
    ) -> None:
        """Load a float layer for inputs with scales `scale_I` and parts with scales `scale_O`."""
        weight_OI = weight_OI.detach().double().cpu() * scale_I
        bias_O = None if bias_O is None else bias_O.detach().double().cpu()
        row_O = scheme.row_scale(weight_OI, bias_O)
        self.product.load(weight_OI, bias_O, row_O)
        self.requantization.load(row_O, scale_O)
