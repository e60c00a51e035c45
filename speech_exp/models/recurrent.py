"""GRU and LSTM layers based on torch's modules, with the same parameter layout.

Both are causal, so padding never affects the valid frames of an utterance and packed sequences are not needed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from speech_exp.bounds import PositiveInt
from speech_exp.models.fused_gru import fused_gru
from speech_exp.models.layer import RecurrentLayer, State, frame_at

# On CPUs without bfloat16 support oneDNN's LSTM fails in bfloat16, but torch's kernel works.
_ONEDNN_HAS_BF16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()


class GRU(RecurrentLayer):
    """A `torch.nn.GRU` with one layer and one direction: 3H(D + H + 2) parameters."""

    name: ClassVar[str] = "gru"

    def __init__(self, input_size: int, hidden_size: PositiveInt) -> None:
        super().__init__(input_size, hidden_size)
        self.cell = nn.GRU(input_size, hidden_size, batch_first=True)

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self._trains_on_cpu(inputs_BTD):
            return fused_gru([self.cell], inputs_BTD.unsqueeze(0))[0]
        return self.cell(inputs_BTD)[0]

    def forward_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(partner, GRU) and self._trains_on_cpu(inputs_BTD):
            both = fused_gru([self.cell, partner.cell], torch.stack([inputs_BTD, partner_inputs_BTD]))
            forwards_BTH, backwards_BTH = both.unbind(0)
            return forwards_BTH, backwards_BTH
        return super().forward_pair(inputs_BTD, partner, partner_inputs_BTD, lengths_B)

    def final_pair(
        self,
        inputs_BTD: torch.Tensor,
        partner: RecurrentLayer,
        partner_inputs_BTD: torch.Tensor,
        lengths_B: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.forward_pair(inputs_BTD, partner, partner_inputs_BTD, lengths_B)
        return frame_at(states[0], lengths_B - 1), frame_at(states[1], lengths_B - 1)

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        return (like.new_zeros(batch_size, self.hidden_size),)

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        hidden_BH = torch.gru_cell(inputs_BD, state[0], *self.cell.all_weights[0])
        return hidden_BH, (hidden_BH,)

    def _trains_on_cpu(self, inputs_BTD: torch.Tensor) -> bool:
        """Return whether the fused form is faster: its gain is in the backward pass, and on a GPU cuDNN is faster."""
        return (
            inputs_BTD.device.type == "cpu"
            and torch.is_grad_enabled()
            and self.training
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
        )


class LSTM(RecurrentLayer):
    """A `torch.nn.LSTM` with one layer and one direction: 4H(D + H + 2) parameters."""

    name: ClassVar[str] = "lstm"

    def __init__(self, input_size: int, hidden_size: PositiveInt) -> None:
        super().__init__(input_size, hidden_size)
        self.cell = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if inputs_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not _ONEDNN_HAS_BF16:
            with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
                return self.cell(inputs_BTD)[0]
        return self.cell(inputs_BTD)[0]

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        zeros_BH = like.new_zeros(batch_size, self.hidden_size)
        return zeros_BH, zeros_BH.clone()

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        hidden_BH, memory_BH = torch.lstm_cell(inputs_BD, state, *self.cell.all_weights[0])
        return hidden_BH, (hidden_BH, memory_BH)
