"""Downsampling in time before the expensive layers, with causal convolutions of stride 2.

Shape letters: B batch, T frames, F features, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

KERNEL = 3  # frames of a convolution
STRIDE = 2
Factor = Literal[2, 4]
FACTORS: dict[Factor, int] = {2: 1, 4: 2}  # downsampling -> convolutions

ConvolutionState = tuple[torch.Tensor, int]  # the previous KERNEL - 1 frames (B, C, 2), and the number of frames so far


class Downsampling(nn.Module):
    """A stack of one or two convolutions over time (kernel 3, stride 2, ReLU) and a linear layer to `width`.

    Every convolution is causal: output j depends on inputs 2j-2, 2j-1 and 2j (zeros before the first). Padding therefore
    never affects an utterance, output n is available as soon as input frame `factor * n` is (both counted from 0), and T
    frames give ceil(T / factor) outputs, streamed or not. The drawback: up to `factor - 1` frames at the end are ignored.
    """

    def __init__(self, input_size: int, width: int, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        sizes = [input_size, *[width] * FACTORS[factor]]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inside, outside, KERNEL, STRIDE) for inside, outside in pairwise(sizes)
        )
        self.projection = nn.Linear(width, width)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs (B, ceil(T / factor), W), finite in the padding too, and their lengths (B,)."""
        padding_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) >= lengths_B.unsqueeze(1)
        # The convolutions do not need this mask, but attention needs finite numbers even where a batch is padded.
        x_BCT = features_BTF.masked_fill(padding_BT.unsqueeze(2), 0.0).transpose(1, 2)
        for convolution in self.convolutions:
            x_BCT = convolution(F.pad(x_BCT, (KERNEL - 1, 0))).relu()
        lengths_B = (lengths_B + self.factor - 1).div(self.factor, rounding_mode="floor")
        return self.projection(x_BCT.transpose(1, 2)), lengths_B

    def initial_state(self, batch_size: int, like: torch.Tensor) -> list[ConvolutionState]:
        sizes = [convolution.in_channels for convolution in self.convolutions]
        return [(like.new_zeros(batch_size, int(size), KERNEL - 1), 0) for size in sizes]  # type: ignore[arg-type]

    def step(
        self, features_BF: torch.Tensor, states: list[ConvolutionState]
    ) -> tuple[torch.Tensor | None, list[ConvolutionState]]:
        """Process one frame of a stream; the first and every `factor`-th frame after it give an output (B, W), others None."""
        output_BC: torch.Tensor | None = features_BF
        next_states = []
        for convolution, (before_BCK, frames) in zip(self.convolutions, states, strict=True):
            if output_BC is None:
                next_states.append((before_BCK, frames))
                continue
            window_BCK = torch.cat([before_BCK, output_BC.unsqueeze(2)], 2)
            next_states.append((window_BCK[:, :, 1:], frames + 1))
            output_BC = convolution(window_BCK).relu().squeeze(2) if frames % STRIDE == 0 else None
        return None if output_BC is None else self.projection(output_BC), next_states
