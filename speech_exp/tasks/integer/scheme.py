"""Convert real numbers to codes: scales, weights, multipliers. Only used at conversion, never between codes and logits.

A scale is the real number that one code step represents. Weights are int8 with one scale per row; the input scales are
multiplied into the weights first, so that every input feature can have its own scale.

Shape letters: I inputs of a product, O its outputs (rows).
"""

from __future__ import annotations

import torch

from speech_exp.tasks.integer.rules import ACCUMULATOR_LIMIT, INT8_LIMIT, INT16_LIMIT, saturate8

# The int16 codes of a state cover this multiple of the largest magnitude seen in calibration: one bit of fifteen leaves
# room for recordings that are louder than those of training.
STATE_HEADROOM = 2.0
# Each feature of a vector gets at least this share of the largest feature's range, so that a feature that was silent in
# calibration does not saturate at once.
SMALLEST_SHARE = 1 / 16
_BIAS_LIMIT = 2**29  # leaves room for the products in the accumulator


def code_scale(range_X: torch.Tensor, limit: int) -> torch.Tensor:
    """Return the scale of each feature, given its largest magnitude `range_X`; float64."""
    range_X = range_X.double()
    largest = range_X.max()
    if not torch.isfinite(largest):
        raise ValueError("calibration found values that are not finite: the network diverged, train it again")
    return range_X.clamp(min=float(largest) * SMALLEST_SHARE if largest > 0 else 1.0) / limit


def state_scale(range_X: torch.Tensor) -> torch.Tensor:
    """Return the scale of int16 codes with headroom; float64."""
    return code_scale(range_X * STATE_HEADROOM, INT16_LIMIT)


def cell_bits(range_X: torch.Tensor, most: int) -> int:
    """Return the fraction bits, 0 to `most`, of int16 codes with one power-of-two scale that covers the range with headroom."""
    bits = most
    while bits and float(range_X.max()) * STATE_HEADROOM * 2**bits > INT16_LIMIT:
        bits -= 1
    return bits


def row_scale(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, common: bool = False) -> torch.Tensor:
    """Return the scale of each row of a weight that includes its input scales, large enough for its bias to fit int32.

    With `common`, all rows get the largest scale. For rows of zeros any scale works; it is 1.
    """
    scale_O = weight_OI.abs().amax(1) / INT8_LIMIT
    if bias_O is not None:
        scale_O = torch.maximum(scale_O, bias_O.abs() / _BIAS_LIMIT)
    if common:
        scale_O = scale_O.max().expand_as(scale_O)
    return torch.where(scale_O > 0, scale_O, 1.0)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest integer, halves towards plus infinity, like the rules."""
    return (x + 0.5).floor()


def quantized(x: torch.Tensor, scale_X: torch.Tensor) -> torch.Tensor:
    """Return int8 codes of numbers (..., X): saturate8 of the nearest integer to x / scale, one float32 scale per feature."""
    return saturate8(rounded(x.float() / scale_X))


def fixed_point(ratio_O: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int32 multipliers in [2^30, 2^31) and int8 shifts in [1, 62], with multiplier * 2^-shift nearest to each ratio.

    A ratio below 2^-32, which maps every int32 to 0, becomes multiplier 0.
    """
    mantissa_O, exponent_O = torch.frexp(ratio_O.double())
    multiplier_O = rounded(mantissa_O * 2**31).long()
    carried_O = multiplier_O == 2**31
    multiplier_O, exponent_O = torch.where(carried_O, 2**30, multiplier_O), exponent_O + carried_O.int()
    shift_O = 31 - exponent_O
    if (shift_O < 1).any() or not torch.isfinite(ratio_O).all():
        raise ValueError(
            f"a requantisation by {float(ratio_O.max()):g} does not fit an int32 multiplier: the network's ranges are "
            "too uneven for integers, train it again or add QAT epochs"
        )
    vanishes_O = shift_O > 62
    return torch.where(vanishes_O, 0, multiplier_O).int(), torch.where(vanishes_O, 1, shift_O).to(torch.int8)


def state_matrices(A_MM: torch.Tensor, B_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the LMU's A and B as int16 codes, and the most fraction bits that fit int16 and an int32 accumulator.

    m and u are int16, so with a fraction bits a row's accumulator is at most 32767 (sum_j |A_ij| + |B_i|) + 2^(a-1), with A
    and B in codes.
    """
    for bits in range(15, 0, -1):
        A_codes_MM, B_codes_M = (rounded(x.double() * 2**bits) for x in (A_MM, B_M))
        fits = max(float(A_codes_MM.abs().max()), float(B_codes_M.abs().max())) <= INT16_LIMIT
        bound = state_bound(A_codes_MM, B_codes_M, bits)
        if fits and bound <= ACCUMULATOR_LIMIT:
            return A_codes_MM.to(torch.int16), B_codes_M.to(torch.int16), bits
    raise ValueError("the LMU's A and B do not fit 16 bits: change model.order or model.theta")


def state_bound(A_MM: torch.Tensor, B_M: torch.Tensor, bits: int) -> int:
    """Return the largest magnitude of A m + B u in codes, including the rounding term."""
    row_sum_M = A_MM.long().abs().sum(1) + B_M.long().abs()
    return int(row_sum_M.max()) * INT16_LIMIT + (1 << (bits - 1))
