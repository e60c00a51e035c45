"""Fewer frames before the costly layers: causal convolutions of stride 2.

Shape letters: B batch, T frames, F features, W width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

KERNEL = 3  # frames of a convolution
STRIDE = 2
FACTORS = {2: 1, 4: 2}  # downsampling -> convolutions

ConvolutionState = tuple[torch.Tensor, int]  # the KERNEL - 1 frames before (B, C, 2), and how many frames came


class Downsampling(nn.Module):
    """One or two convolutions over time (kernel 3, stride 2, ReLU) and a linear layer to `width`.

    Every convolution is causal: its output j comes from its inputs 2j-2, 2j-1 and 2j (zeros before the first). So padding
    behind an utterance cannot reach it, the n-th output is there as soon as input frame `factor * n` is, and T frames
    give ceil(T / factor), streamed or not. The price: what follows the last such frame, at most `factor - 1` frames, is
    not heard.
    """

    def __init__(self, input_size: int, width: int, factor: int) -> None:
        super().__init__()
        if factor not in FACTORS:
            raise ValueError(
                f"encoder.downsampling={factor}: expected one of {', '.join(map(str, FACTORS))}, change encoder.downsampling"
            )
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
        """(B, ceil(T / factor), W), finite in the padding too, and the lengths of that."""
        padding_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) >= lengths_B.unsqueeze(1)
        # Not for the convolutions: attention needs finite numbers everywhere, whatever a batch holds in its padding.
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
        """One frame of streaming: every `factor`-th, from the first on, gives an output (B, W)."""
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
