"""Pooling over time in integers.

Shape letters: B batch, T frames, H encoder output.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from speech_exp.tasks.integer import rules
from speech_exp.tasks.integer.parts import IntegerLinear, Requantization
from speech_exp.tasks.integer.rules import INT16_LIMIT, UNIT_BITS, divide_rounded, exp2_code, saturate8

# This limit keeps all sums over time within int32: see `accumulator_bounds`.
MAX_FRAMES = 2**15


class IntegerPooling(nn.Module):
    """Pools int16 states (B, T, H) with lengths n (B) into one int16 state (B, H) of the same scale.

    `last`: the state at frame n - 1, which the layer itself returns.
    `mean`: divide_rounded(sum of the states, n).
    `attention`: score s_t = requantize(W h'_t + b), an int32 with scale 2^-10 octaves (log2(e) times the float score), where
    h' = saturate8(requantize(h)); e_t = exp2_code(max(s) - s_t); p_t = divide_rounded(e_t << 15, sum(e));
    the result is divide_rounded(sum(p_t h_t), sum(p)).
    Sums and maxima only include the first n frames.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.score = IntegerLinear(size, 1, bias=True) if kind == "attention" else None
        self.score_narrowing = Requantization(size) if kind == "attention" else None

    @property
    def takes_last(self) -> bool:
        return self.kind == "last"

    def forward(self, states_BTH: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        frames = states_BTH.shape[1]
        if frames > MAX_FRAMES:
            raise ValueError(
                f"integer pooling sums at most {MAX_FRAMES} frames, got {frames}: set objective.pooling=last"
            )
        valid_BT = torch.arange(frames) < lengths_B.unsqueeze(1)
        if self.score is None or self.score_narrowing is None:
            sum_BH = (states_BTH * valid_BT.unsqueeze(2)).sum(1, dtype=torch.int32)
            return divide_rounded(sum_BH, lengths_B.int().unsqueeze(1)).to(torch.int16)
        score_BT = self.score(saturate8(self.score_narrowing(states_BTH))).squeeze(2)
        highest_B1 = score_BT.masked_fill(~valid_BT, -rules.PART_LIMIT).amax(1, keepdim=True)
        distance_BT = (highest_B1 - score_BT).masked_fill(~valid_BT, 0)
        weight_BT = exp2_code(distance_BT).int() * valid_BT
        share_BT = divide_rounded(weight_BT << UNIT_BITS, weight_BT.sum(1, keepdim=True, dtype=torch.int32))
        sum_BH = (states_BTH * share_BT.unsqueeze(2)).sum(1, dtype=torch.int32)
        return divide_rounded(sum_BH, share_BT.sum(1, keepdim=True, dtype=torch.int32)).to(torch.int16)

    def load(self, score: nn.Linear | None, state_scale_H: torch.Tensor, narrow_scale_H: torch.Tensor) -> None:
        if self.score is None or self.score_narrowing is None or score is None:
            return
        self.score_narrowing.load(state_scale_H, narrow_scale_H)
        octave = torch.full((1,), math.log(2) * 2.0**-rules.OCTAVE_BITS, dtype=torch.float64)
        self.score.load(score.weight, score.bias, narrow_scale_H, octave)

    def accumulator_bounds(self) -> dict[str, int]:
        """Return the bounds at `MAX_FRAMES` frames, including the rounding terms of the divisions.

        The exact shares of all frames sum to 2^15, and rounding changes each by at most one half.
        """
        if self.kind == "last":
            return {}
        if self.score is None:
            return {"sum": MAX_FRAMES * INT16_LIMIT + MAX_FRAMES // 2}
        shares = 2**UNIT_BITS + MAX_FRAMES // 2
        weights = MAX_FRAMES * INT16_LIMIT
        return {
            "score": self.score.product.bound(),
            "weights": weights,
            "share": (INT16_LIMIT << UNIT_BITS) + weights // 2,
            "sum": shares * INT16_LIMIT + shares // 2,
        }
