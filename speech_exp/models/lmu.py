"""The Legendre memory unit, in its parallel and its original form.

Shape letters: B batch, T frames, D layer input, C memory channels, M memory order, H hidden, Z = H + C * M.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from speech_exp.models.layer import RecurrentLayer, State, frame_at
from speech_exp.models.linear_memory import LinearMemory


def linear(x: torch.Tensor) -> torch.Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": linear,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


class LMU(RecurrentLayer):
    """A layer whose memory keeps the last `theta` frames of `memory_channels` learned signals, `order` numbers each.

    Parallel form (Chilkuri & Eliasmith 2021), whose only recurrence is linear, so all frames are computed
    at once:
        u_t = f(U x_t + b_u),  m_t = A m_{t-1} + B u_t (each channel),  h_t = g(W_m m_t + W_x x_t + b_h).
    Original form (`feedback`; Voelker, Kajic, Eliasmith 2019), frame by frame and without biases:
        u_t = e_x x_t + e_h h_{t-1} + e_m m_{t-1},  m_t = A m_{t-1} + B u_t,  h_t = g(W_x x_t + W_h h_{t-1} + W_m m_t).

    With D inputs, H hidden, M order and c channels the parallel form has c(D+1) + H(cM+D+1) parameters, the original
    one (c+H)(D+H+cM); A and B add M² + M numbers.

    `theta` is in frames at this layer's input; `input_activation` is f, which the original form does not have and passes over;
    `activation` is g.
    """

    name: ClassVar[str] = "lmu"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        order: int,
        theta: float,
        memory_channels: int = 1,
        feedback: bool = False,
        algorithm: str = "auto",
        input_activation: str = "linear",
        activation: str = "tanh",
    ) -> None:
        super().__init__(input_size, hidden_size)
        if memory_channels < 1:
            raise ValueError(
                f"the LMU was given {memory_channels} memory channels, needs at least 1: change model.memory_channels"
            )
        for key, value in (("input_activation", input_activation), ("activation", activation)):
            if value not in ACTIVATIONS:
                raise ValueError(
                    f"unknown {key} {value!r}, expected one of {', '.join(ACTIVATIONS)}: change model.{key}"
                )
        self.memory_channels = memory_channels
        self.feedback = feedback
        self.input_activation = ACTIVATIONS[input_activation]
        self.activation = ACTIVATIONS[activation]
        self.memory = LinearMemory(order, theta, algorithm)
        memory_size = memory_channels * order
        self.signal_from_input = nn.Linear(input_size, memory_channels, bias=not feedback)
        self.hidden_from_input = nn.Linear(input_size, hidden_size, bias=not feedback)
        self.hidden_from_memory = nn.Linear(memory_size, hidden_size, bias=False)
        if feedback:
            self.signal_from_hidden = nn.Linear(hidden_size, memory_channels, bias=False)
            self.signal_from_memory = nn.Linear(memory_size, memory_channels, bias=False)
            self.hidden_from_hidden = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """After Voelker et al. 2019: encoders LeCun uniform, e_m zero, kernels Xavier normal; biases zero.

        The Legendre memory scales itself: its numbers stay of the order of its signal's, so no further gain is needed.
        """
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _lecun_uniform(self.signal_from_input.weight)
        if self.feedback:
            _lecun_uniform(self.signal_from_hidden.weight)
            nn.init.zeros_(self.signal_from_memory.weight)

    def forward(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self.feedback:
            return self._forward_feedback(inputs_BTD)
        projected_BTH = self.memory.project(self._signal(inputs_BTD, lengths_B), self.hidden_from_memory.weight)
        return self.activation(projected_BTH + self.hidden_from_input(inputs_BTD))

    def final(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self.feedback:
            return super().final(inputs_BTD, lengths_B)
        memory_BCM = self.memory.final(self._signal(inputs_BTD, lengths_B), lengths_B)
        last_BD = frame_at(inputs_BTD, lengths_B - 1)
        return self.activation(self.hidden_from_memory(memory_BCM.flatten(1)) + self.hidden_from_input(last_BD))

    def initial_state(self, batch_size: int, like: torch.Tensor) -> State:
        """The memory (B, C, M), after the previous output (B, H) in the form with feedback; all zero."""
        memory_BCM = like.new_zeros(batch_size, self.memory_channels, self.memory.order)
        return (like.new_zeros(batch_size, self.hidden_size), memory_BCM) if self.feedback else (memory_BCM,)

    def step(self, inputs_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        signal_BC = self.signal_from_input(inputs_BD)
        hidden_BH = self.hidden_from_input(inputs_BD)
        if self.feedback:
            previous_BH, memory_BCM = state
            signal_BC = (
                signal_BC + self.signal_from_hidden(previous_BH) + self.signal_from_memory(memory_BCM.flatten(1))
            )
            hidden_BH = hidden_BH + self.hidden_from_hidden(previous_BH)
        else:
            (memory_BCM,) = state
            signal_BC = self.input_activation(signal_BC)
        memory_BCM = self.memory.step(signal_BC, memory_BCM)
        output_BH = self.activation(hidden_BH + self.hidden_from_memory(memory_BCM.flatten(1)))
        return output_BH, (output_BH, memory_BCM) if self.feedback else (memory_BCM,)

    def window_frames(self) -> float:
        return self.memory.theta

    def _signal(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """What the parallel form remembers, (B, T, C); zero in the padding, which block products would mix in."""
        signal_BTC = self.input_activation(self.signal_from_input(inputs_BTD))
        frames_T = torch.arange(inputs_BTD.shape[1], device=inputs_BTD.device)
        return signal_BTC.masked_fill((frames_T >= lengths_B.unsqueeze(1)).unsqueeze(2), 0.0)

    @torch.compiler.disable  # the compiler would unroll the frames
    def _forward_feedback(self, inputs_BTD: torch.Tensor) -> torch.Tensor:
        """The original form as one product a frame.

        With z = [h, m], both equations substituted into each other read z_t = [g, 1](R z_{t-1} + d_t), where the
        drive d of all frames and the matrix R = [[W_h + W_m B e_h, W_m (A + B e_m)], [B e_h, A + B e_m]] are computed
        once.
        """
        dtype = torch.promote_types(inputs_BTD.dtype, torch.float32)  # a loop over frames adds rounding up
        with torch.autocast(inputs_BTD.device.type, enabled=False):
            encode_MC = torch.block_diag(
                *[self.memory.tables.input_vector(inputs_BTD, dtype).unsqueeze(1)] * self.memory_channels
            )
            decay_MM = torch.block_diag(*[self.memory.tables.matrix(1, inputs_BTD, dtype).T] * self.memory_channels)
            read_HM = self.hidden_from_memory.weight.to(dtype)
            memory_MZ = encode_MC @ torch.cat([self.signal_from_hidden.weight, self.signal_from_memory.weight], 1).to(
                dtype
            )
            memory_MZ = memory_MZ + F.pad(decay_MM, (self.hidden_size, 0))
            hidden_HZ = read_HM @ memory_MZ + F.pad(self.hidden_from_hidden.weight.to(dtype), (0, decay_MM.shape[1]))
            recurrent_ZZ = torch.cat([hidden_HZ, memory_MZ]).T
            input_MD = encode_MC @ self.signal_from_input.weight.to(dtype)
            input_ZD = torch.cat([self.hidden_from_input.weight.to(dtype) + read_HM @ input_MD, input_MD])
            drive_BTZ = F.linear(inputs_BTD.to(dtype), input_ZD)
            state_BZ = torch.zeros_like(drive_BTZ[:, 0])
            outputs = []
            for drive_BZ in drive_BTZ.unbind(1):
                hidden_BH, memory_BM = torch.addmm(drive_BZ, state_BZ, recurrent_ZZ).tensor_split(
                    (self.hidden_size,), 1
                )
                hidden_BH = self.activation(hidden_BH)
                state_BZ = torch.cat([hidden_BH, memory_BM], 1)
                outputs.append(hidden_BH)
            return torch.stack(outputs, 1).to(inputs_BTD.dtype)


def _lecun_uniform(weight_XD: torch.Tensor) -> None:
    bound = (3 / weight_XD.shape[1]) ** 0.5
    nn.init.uniform_(weight_XD, -bound, bound)
