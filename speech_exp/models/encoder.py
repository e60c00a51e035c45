"""Encoders: the stack of layers between features and objective.

Shape letters: B batch, T frames, F features, H output of the last layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import nn

from speech_exp.bounds import AtLeast, Between, Odd, ProportionBelowOne
from speech_exp.models.layer import Bidirectional, RecurrentLayer, State

Cell = Callable[[int], RecurrentLayer]  # input size -> one layer of one direction


class ConvolutionFront(nn.Module):
    """A convolution over `width` neighbouring frames, with batch normalisation over the valid frames and ReLU."""

    def __init__(self, input_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(input_size, channels, width, padding=width // 2, bias=False)
        self.normalization = nn.BatchNorm1d(channels)

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        valid_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)
        silenced_BFT = (features_BTF * valid_BT.unsqueeze(-1)).transpose(1, 2)
        filtered_BTC = self.convolution(silenced_BFT).transpose(1, 2)
        normalized_NC = self.normalization(filtered_BTC[valid_BT])
        return torch.zeros_like(filtered_BTC).masked_scatter(valid_BT.unsqueeze(-1), normalized_NC.relu())


class Encoder(nn.Module, ABC):
    """A module that maps features (B, T, F) to states (B, T', H) and their lengths; T' may be less than T."""

    input_size: int
    front: ConvolutionFront | None  # no default: a class attribute would hide the submodule with the same name
    frames_per_state: int = 1  # input frames per state, the downsampling factor

    @property
    @abstractmethod
    def recurrent_layers(self) -> list[RecurrentLayer]: ...

    @property
    @abstractmethod
    def output_size(self) -> int: ...

    @abstractmethod
    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states and their lengths; states in the padding are unspecified, the others never depend on the padding."""

    @abstractmethod
    def final(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the state of each utterance's last frame (B, H)."""

    @abstractmethod
    def initial_state(self, batch_size: int, like: torch.Tensor) -> Any:
        """Return the streaming state before the first frame; ValueError if the encoder looks ahead."""

    @abstractmethod
    def step(self, features_BF: torch.Tensor, state: Any) -> tuple[Any, Any]:
        """Process one input frame of a stream; return the output (B, H) and the next state."""

    @abstractmethod
    def window_frames(self) -> float | None:
        """Return how many input frames the stack's explicit memory covers, or None if it has none or it is unlimited."""


class CompactEncoder(Encoder):
    """A stack of recurrent layers with dropout between them, for devices with a few kilobytes of memory.

    With `front_channels` above 0, a `ConvolutionFront` comes first. `encoder(features_BTF, lengths_B)` returns
    (states_BTH, lengths_B).
    """

    def __init__(
        self,
        input_size: int,
        cell: Cell,
        bidirectional: bool,
        num_layers: Annotated[int, Between(1, 1000)],
        dropout: ProportionBelowOne,
        front_channels: Annotated[int, Between(0, 10_000)] = 0,
        front_width: Annotated[int, Odd(), AtLeast(1)] = 5,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.front = ConvolutionFront(input_size, front_channels, front_width) if front_channels else None
        layers: list[RecurrentLayer] = []
        for _ in range(num_layers):
            width = layers[-1].output_size if layers else front_channels or input_size
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
        """Return the last layer's output at each utterance's last frame (B, H); for some layers faster than `forward`."""
        return self.recurrent_layers[-1].final(self._below_last(features_BTF, lengths_B), lengths_B)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> list[State]:
        if self.front is not None:
            raise ValueError("a convolution front looks ahead and cannot stream: set encoder.front_channels=0")
        return [layer.initial_state(batch_size, like) for layer in self.recurrent_layers]

    def step(self, features_BF: torch.Tensor, states: list[State]) -> tuple[torch.Tensor, list[State]]:
        """Process one frame of a stream; return the output (B, H) and the next state of each layer."""
        output_BH, next_states = features_BF, []
        for number, (layer, state) in enumerate(zip(self.recurrent_layers, states, strict=True)):
            output_BH, next_state = layer.step(output_BH if number == 0 else self.dropout(output_BH), state)
            next_states.append(next_state)
        return output_BH, next_states

    def window_frames(self) -> float | None:
        """Return the frames covered by the stack's explicit memory (LMU's theta, summed over layers), or None without one."""
        windows = [layer.window_frames() for layer in self.recurrent_layers]
        known = [window for window in windows if window is not None]
        return sum(known) if known else None

    def _below_last(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        states_BTH = features_BTF if self.front is None else self.front(features_BTF, lengths_B)
        for layer in self.layers[:-1]:
            states_BTH = self.dropout(layer(states_BTH, lengths_B))
        return states_BTH
