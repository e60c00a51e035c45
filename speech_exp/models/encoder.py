"""Encoders: the stack between features and objective.

Shape letters: B batch, T frames, F features, H output of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from speech_exp.models.layer import Bidirectional, RecurrentLayer, State

Cell = Callable[[int], RecurrentLayer]  # input size -> one layer of one direction


class CompactEncoder(nn.Module):
    """Recurrent layers one after the other, dropout between them: the encoder of devices with a few kilobytes.

    `encoder(features_BTF, lengths_B) -> (states_BTH, lengths_B)`; states behind an utterance's length are unspecified.
    """

    def __init__(self, input_size: int, cell: Cell, bidirectional: bool, num_layers: int, dropout: float) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"encoder.num_layers={num_layers}: expected at least 1, change encoder.num_layers")
        self.input_size = input_size
        layers: list[RecurrentLayer] = []
        for _ in range(num_layers):
            width = layers[-1].output_size if layers else input_size
            layers.append(Bidirectional(cell(width), cell(width)) if bidirectional else cell(width))
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)

    @property
    def recurrent_layers(self) -> list[RecurrentLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def output_size(self) -> int:
        return self.recurrent_layers[-1].output_size

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states_BTH = self._below_last(features_BTF, lengths_B)
        return self.layers[-1](states_BTH, lengths_B), lengths_B

    def final(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """The last layer's output at each utterance's last frame (B, H), cheaper than all of them where the layer can."""
        return self.recurrent_layers[-1].final(self._below_last(features_BTF, lengths_B), lengths_B)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> list[State]:
        return [layer.initial_state(batch_size, like) for layer in self.recurrent_layers]

    def step(self, features_BF: torch.Tensor, states: list[State]) -> tuple[torch.Tensor, list[State]]:
        """One frame of streaming: output (B, H) and the next state of each layer."""
        output_BH, next_states = features_BF, []
        for number, (layer, state) in enumerate(zip(self.recurrent_layers, states, strict=True)):
            output_BH, next_state = layer.step(output_BH if number == 0 else self.dropout(output_BH), state)
            next_states.append(next_state)
        return output_BH, next_states

    def window_frames(self) -> float | None:
        """Frames within the explicit memory of the stack (LMU's theta, added over layers), or None where it has none."""
        windows = [layer.window_frames() for layer in self.recurrent_layers]
        known = [window for window in windows if window is not None]
        return sum(known) if known else None

    def _below_last(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        states_BTH = features_BTF
        for layer in self.layers[:-1]:
            states_BTH = self.dropout(layer(states_BTH, lengths_B))
        return states_BTH
