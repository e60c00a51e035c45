"""What every recurrent layer offers: a sequence form, its last output alone, a streaming step, and its own size.

Shape letters: B batch, T frames, D layer input, H hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

State = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class LayerSize:
    """Numbers a device must store for one layer, all its directions."""

    weights: int  # trained, of matrices
    biases: int
    fixed: int = 0  # constants, such as the LMU's A and B

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def numbers(self) -> int:
        return self.parameters + self.fixed

    def bytes(self, weight: int = 4, bias: int = 4, fixed: int = 4) -> int:
        """Bytes at so many bytes for each of its numbers; float32 if none are given."""
        return weight * self.weights + bias * self.biases + fixed * self.fixed

    def __add__(self, other: LayerSize) -> LayerSize:
        return LayerSize(self.weights + other.weights, self.biases + other.biases, self.fixed + other.fixed)


class RecurrentLayer(nn.Module, ABC):
    """One recurrent layer; `lengths_B` are int64 frames, at least 1 each.

    Outputs at frames past an utterance's length are unspecified; outputs within it never depend on the padding.
    """

    name: ClassVar[str]
    input_size: int
    hidden_size: int
    output_size: int

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"model.hidden_size={hidden_size}: expected at least 1, change model.hidden_size")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size

    @abstractmethod
    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Outputs of all frames (B, T, output_size)."""

    def final(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Output at each utterance's last frame (B, output_size); layers override it where that is cheaper."""
        return frame_at(self(inputs_BTD, lengths_B), lengths_B - 1)

    def forward_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of two layers over their own inputs; a layer overrides it where both are cheaper at once."""
        return self(inputs_BTD, lengths_B), partner(partner_inputs_BTD, lengths_B)

    def final_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last outputs of two layers over their own inputs."""
        return self.final(inputs_BTD, lengths_B), partner.final(partner_inputs_BTD, lengths_B)

    @abstractmethod
    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        """State before the first frame, on the device and in the dtype of `like`."""

    @abstractmethod
    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One frame of streaming: output (B, output_size) and the next state."""

    def size(self) -> LayerSize:
        """Numbers stored for the layer: matrices, vectors, and buffers, which are never trained."""
        return LayerSize(
            weights=sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1),
            biases=sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 1),
            fixed=sum(buffer.numel() for buffer in self.buffers()),
        )

    def window_frames(self) -> float | None:
        """Length of the layer's explicit memory window in frames, or None where it has none."""
        return None


class Bidirectional(RecurrentLayer):
    """Two layers of one cell, one reading forwards and one backwards; outputs are concatenated.

    The backward layer reads each utterance reversed within its own length, so padding stays behind it and no packed
    sequence is needed.
    """

    def __init__(self, forward_layer: RecurrentLayer, backward_layer: RecurrentLayer) -> None:
        super().__init__(forward_layer.input_size, forward_layer.hidden_size)
        self.name = forward_layer.name  # type: ignore[misc]  # an instance of this wrapper carries its cell's name
        self.output_size = forward_layer.output_size + backward_layer.output_size
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        reversed_BTD = reverse_by_length(inputs_BTD, lengths_B)
        forwards_BTH, backwards_BTH = self.forward_layer.forward_pair(
            inputs_BTD, self.backward_layer, reversed_BTD, lengths_B
        )
        return torch.cat([forwards_BTH, reverse_by_length(backwards_BTH, lengths_B)], dim=-1)

    def final(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Each direction's output after it has read the whole utterance: forward at the last frame, backward at the first."""
        reversed_BTD = reverse_by_length(inputs_BTD, lengths_B)
        return torch.cat(
            self.forward_layer.final_pair(inputs_BTD, self.backward_layer, reversed_BTD, lengths_B), dim=-1
        )

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        raise ValueError(
            "a bidirectional layer needs the whole utterance and cannot stream: set model.bidirectional=false"
        )

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        raise ValueError(
            "a bidirectional layer needs the whole utterance and cannot stream: set model.bidirectional=false"
        )

    def window_frames(self) -> float | None:
        return self.forward_layer.window_frames()


def frame_at(sequence_BTH: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """The frame `index_B` of each utterance, (B, H)."""
    index_B1H = index_B.view(-1, 1, 1).expand(-1, 1, sequence_BTH.shape[-1])
    return sequence_BTH.gather(1, index_B1H).squeeze(1)


def reverse_by_length(sequence_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Each utterance's valid frames in reverse order; padding stays where it is. Its own inverse."""
    frames_T = torch.arange(sequence_BTD.shape[1], device=sequence_BTD.device)
    reversed_BT = lengths_B.unsqueeze(1) - 1 - frames_T
    index_BT = torch.where(reversed_BT >= 0, reversed_BT, frames_T)
    return sequence_BTD.gather(1, index_BT.unsqueeze(-1).expand_as(sequence_BTD))
