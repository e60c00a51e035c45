"""The interface of every recurrent layer: outputs of a sequence, last output only, a streaming step, and its size.

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
    """The count of numbers that a device must store for one layer, in all directions."""

    weights: int  # trained, in matrices
    biases: int  # trained, in vectors
    fixed: int = 0  # constants, such as the LMU's A and B

    @property
    def parameters(self) -> int:
        return self.weights + self.biases

    @property
    def numbers(self) -> int:
        return self.parameters + self.fixed

    def bytes(self) -> int:
        """Return the bytes of all numbers in float32."""
        return 4 * self.numbers

    def __add__(self, other: LayerSize) -> LayerSize:
        return LayerSize(self.weights + other.weights, self.biases + other.biases, self.fixed + other.fixed)


class RecurrentLayer(nn.Module, ABC):
    """One recurrent layer; `lengths_B` is int64, in frames, at least 1 for each utterance.

    Outputs in the padding are unspecified; outputs within an utterance never depend on the padding.
    """

    name: ClassVar[str]
    input_size: int
    hidden_size: int
    output_size: int

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size

    @abstractmethod
    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all frames (B, T, output_size)."""

    def final(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the output at each utterance's last frame (B, output_size); a layer may override it with a faster way."""
        return frame_at(self(inputs_BTD, lengths_B), lengths_B - 1)

    def forward_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of two layers, each on its inputs; a layer may override it if computing both at once is faster."""
        return self(inputs_BTD, lengths_B), partner(partner_inputs_BTD, lengths_B)

    def final_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last outputs of two layers, each on its inputs."""
        return self.final(inputs_BTD, lengths_B), partner.final(partner_inputs_BTD, lengths_B)

    @abstractmethod
    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        """Return the state before the first frame, on the device and in the dtype of `like`."""

    @abstractmethod
    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Process one frame of a stream; return the output (B, output_size) and the next state."""

    def size(self) -> LayerSize:
        """Return the count of numbers stored for the layer: matrices, vectors, and buffers, which are never trained."""
        return LayerSize(
            weights=sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1),
            biases=sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 1),
            fixed=sum(buffer.numel() for buffer in self.buffers()),
        )

    def sizes(self) -> dict[str, int]:
        """Return the constructor arguments that determine the size of the layer."""
        return {"hidden_size": self.hidden_size}

    def sizes_text(self) -> str:
        """Return the `sizes` in words, with the rule for those that are derived from another."""
        return f"hidden size {self.hidden_size}"

    def state_numbers(self) -> int:
        """Return the count of numbers kept between frames, in all directions."""
        return sum(part.numel() for part in self.initial_state(1, next(self.parameters())))

    def window_frames(self) -> float | None:
        """Return the length of the layer's explicit memory window in frames, or None if it has none."""
        return None


class Bidirectional(RecurrentLayer):
    """A pair of layers of the same type, one reading forwards and one backwards; their outputs are concatenated.

    For the backward layer each utterance is reversed within its length, so padding stays at the end and packed sequences
    are not needed.
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
        """Return each direction's output after the whole utterance: forward at the last frame, backward at the first."""
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

    def sizes(self) -> dict[str, int]:
        return self.forward_layer.sizes()

    def sizes_text(self) -> str:
        return self.forward_layer.sizes_text()

    def state_numbers(self) -> int:
        return self.forward_layer.state_numbers() + self.backward_layer.state_numbers()

    def window_frames(self) -> float | None:
        return self.forward_layer.window_frames()


def frame_at(sequence_BTH: torch.Tensor, index_B: torch.Tensor) -> torch.Tensor:
    """Return the frame with index `index_B` of each utterance, (B, H)."""
    index_B1H = index_B.view(-1, 1, 1).expand(-1, 1, sequence_BTH.shape[-1])
    return sequence_BTH.gather(1, index_B1H).squeeze(1)


def reverse_by_length(sequence_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Reverse the valid frames of each utterance; padding stays in place. Applied twice it changes nothing."""
    frames_T = torch.arange(sequence_BTD.shape[1], device=sequence_BTD.device)
    reversed_BT = lengths_B.unsqueeze(1) - 1 - frames_T
    index_BT = torch.where(reversed_BT >= 0, reversed_BT, frames_T)
    return sequence_BTD.gather(1, index_BT.unsqueeze(-1).expand_as(sequence_BTD))
