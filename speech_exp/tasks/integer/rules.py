"""The integer rules: every operation between the quantised features and the logits, so that C code can match every bit.

Source: the integer requantisation of Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", with one rounding instead of gemmlowp's two.

All numbers are two's complement; `x >> n` is the arithmetic shift, floor(x / 2^n), also for negative x;
`&`, `<<`, `min` and `max` are those of C. "code * s" below is the real number that a code represents.

saturate8(x), saturate16(x)
    min(max(x, -127), 127) and min(max(x, -32767), 32767): symmetric; the most negative code is never used.
shift_rounded(x, n)
    (x + 2^(n-1)) >> n for n >= 1 and x for n = 0: the nearest integer to x / 2^n, halves towards plus infinity. int32.
requantize(x, multiplier, shift)
    x is int32, multiplier int32 in [0, 2^31), shift in [1, 62]:
    y = (int64(x) * multiplier + 2^(shift-1)) >> shift, then min(max(y, -LIMIT), LIMIT), LIMIT = 2^29 - 1 = PART_LIMIT.
    The product is below 2^62 and the rounding term at most 2^61, so int64 cannot overflow. A result is called a part: up
    to four parts can be added in int32 without overflow. Narrower results are saturated afterwards.
tanh_code(x)
    x is int16, x * 2^-12, in (-8, 8); result int16, result * 2^-15. With a = |x|, i = a >> 7, f = a & 127 and the table
    T[j] = min(32767, round(32768 tanh(j / 32))), j = 0..256:
    r = T[i] + (((T[i+1] - T[i]) * f + 64) >> 7); the result is r for x >= 0 and -r for x < 0.
    |result * 2^-15 - tanh(x * 2^-12)| <= 4 * 2^-15 for every x.
sigmoid_code(x)
    x is int16, x * 2^-11 (twice the range of tanh_code's), in (-16, 16); result int16 in [1, 32767], result * 2^-15:
    min(32767, (32768 + tanh_code(x) + 1) >> 1), as sigmoid(v) = (1 + tanh(v / 2)) / 2.
    |result * 2^-15 - sigmoid(x * 2^-11)| <= 3 * 2^-15 for every x.
exp2_code(d)
    d is int32, 0 <= d, d * 2^-10 octaves; result int16, result * 2^-15, of 2^(-d * 2^-10). With n = min(d >> 10, 15),
    e = d & 1023, i = e >> 5, f = e & 31 and the table E[j] = min(32767, round(32768 * 2^(-j / 32))), j = 0..32:
    (E[i] + (((E[i+1] - E[i]) * f + 16) >> 5)) >> n. The error is at most 3 * 2^-15.
divide_rounded(p, q)
    floor((p + (q >> 1)) / q) for q > 0: the nearest integer to p / q, halves towards plus infinity. int32. (C's `/`
    rounds towards zero: subtract 1 from its result if the dividend is negative and the remainder is not 0.)
product(x, w)
    sum over j of x[j] * w[o][j] in int32; |sum| is proven below 2^31 from the weights, so the order does not matter.

All tables are those of `TANH_TABLE` and `EXP2_TABLE`, int16. The cells are in `cells` and `lmu`, pooling in `pooling`.
"""

from __future__ import annotations

import math

import torch

INT8_LIMIT = 2**7 - 1
INT16_LIMIT = 2**15 - 1
ACCUMULATOR_LIMIT = 2**31 - 1
PART_LIMIT = 2**29 - 1

UNIT_BITS = 15  # fraction bits of outputs of tanh, sigmoid and exp2
TANH_INPUT_BITS = 12
SIGMOID_INPUT_BITS = 11
OCTAVE_BITS = 10

_TANH_STEP_BITS = 7  # codes between two entries: 2^-5 in real numbers
_EXP2_STEP_BITS = 5
TANH_TABLE = torch.tensor(
    [min(INT16_LIMIT, round(math.tanh(j / 32) * 2**UNIT_BITS)) for j in range(257)], dtype=torch.int16
)
EXP2_TABLE = torch.tensor([min(INT16_LIMIT, round(2 ** (UNIT_BITS - j / 32))) for j in range(33)], dtype=torch.int16)


def saturate8(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8)


def saturate16(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-INT16_LIMIT, INT16_LIMIT).to(torch.int16)


def shift_rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x + (1 << (bits - 1))) >> bits if bits else x


def requantize(x: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return int32 parts (..., O) of accumulators or codes `x` (..., O), int32 multipliers (O) and int8 shifts (O)."""
    # floor((floor(p / 2^(n-1)) + 1) / 2) equals floor((p + 2^(n-1)) / 2^n), with one operation fewer.
    doubled = (x.long() * multiplier) >> (shift - 1)
    return ((doubled + 1) >> 1).clamp(-PART_LIMIT, PART_LIMIT).int()


def tanh_code(x: torch.Tensor) -> torch.Tensor:
    return _looked_up(_TANH_AT_EVERY_CODE, x)


def sigmoid_code(x: torch.Tensor) -> torch.Tensor:
    return _looked_up(_SIGMOID_AT_EVERY_CODE, x)


def exp2_code(distance: torch.Tensor) -> torch.Tensor:
    octaves = (distance >> OCTAVE_BITS).clamp(max=UNIT_BITS)
    fraction = distance & (2**OCTAVE_BITS - 1)
    return (_interpolated(EXP2_TABLE, fraction, _EXP2_STEP_BITS) >> octaves).to(torch.int16)


def divide_rounded(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.div(numerator + (denominator >> 1), denominator, rounding_mode="floor")


def product(codes: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """Multiply int8 or int16 codes (..., I) by int8 or int16 weights (O, I), giving int32 (..., O).

    Uses plain int32 arithmetic: torch's fast int8 product, `_int_mm`, does not guarantee exact sums on processors without
    VNNI, and synchronising its threads costs more than the work of one frame.
    """
    rows = codes.reshape(-1, codes.shape[-1])
    return (rows.int() @ weight_OI.t().int()).view(*codes.shape[:-1], weight_OI.shape[0])


def _interpolated(table: torch.Tensor, position: torch.Tensor, step_bits: int) -> torch.Tensor:
    """Interpolate the table linearly at int32 `position`, with 2^step_bits codes per entry; int32."""
    index = position >> step_bits
    low, high = (table.index_select(0, one.flatten()).view(one.shape).int() for one in (index, index + 1))
    return low + shift_rounded((high - low) * (position & (2**step_bits - 1)), step_bits)


def _tanh_at(x: torch.Tensor) -> torch.Tensor:
    return _interpolated(TANH_TABLE, x.abs(), _TANH_STEP_BITS) * x.sign()


def _looked_up(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.index_select(0, x.flatten().int() + INT16_LIMIT).view(x.shape)


# The two rules at all codes from -32767 to 32767: on a PC a look-up is faster than the arithmetic; a device needs none.
_EVERY_CODE = torch.arange(-INT16_LIMIT, INT16_LIMIT + 1, dtype=torch.int32)
_TANH_AT_EVERY_CODE = _tanh_at(_EVERY_CODE).to(torch.int16)
_SIGMOID_AT_EVERY_CODE = saturate16((_tanh_at(_EVERY_CODE) + (2**UNIT_BITS + 1)) >> 1)
