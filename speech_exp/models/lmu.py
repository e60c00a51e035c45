"""The Legendre memory unit (LMU), in its parallel and its original form.

Shape letters: B batch, T frames, D layer input, C memory channels, M memory order, H hidden, Z = H + C * M.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from speech_exp.bounds import PositiveFloat, PositiveInt
from speech_exp.models.layer import RecurrentLayer, State, frame_at
from speech_exp.models.linear_memory import Algorithm, LinearMemory


def linear(x: torch.Tensor) -> torch.Tensor:
    return x


Activation = Literal["linear", "relu", "tanh"]
ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": linear,
    "relu": torch.relu,
    "tanh": torch.tanh,
}

# Proportions of a layer without given channels and order: they had the best validation results at budgets of 2 to 36 kB
# (benchmarks/RESULTS.md).
HIDDEN_PER_CHANNEL = 3
FRAMES_PER_POLYNOMIAL = 4


class LMU(RecurrentLayer):
    """A layer that remembers the last `theta` frames of `memory_channels` learned signals, with `order` numbers for each.

    Parallel form (Chilkuri & Eliasmith 2021): its only recurrence is linear, so all frames are computed at once.
        u_t = f(U x_t + b_u),  m_t = A m_{t-1} + B u_t (each channel),  h_t = g(W_m m_t + W_x x_t + b_h).
    Original form (`feedback`; Voelker, Kajic, Eliasmith 2019): computed frame by frame, without biases.
        u_t = e_x x_t + e_h h_{t-1} + e_m m_{t-1},  m_t = A m_{t-1} + B u_t,  h_t = g(W_x x_t + W_h h_{t-1} + W_m m_t).

    With D inputs, H hidden, order M and c channels, the parallel form has c(D+1) + H(cM+D+1) parameters and the original
    form (c+H)(D+H+cM); A and B add M² + M numbers.

    If `memory_channels` is None, there is one channel for every HIDDEN_PER_CHANNEL of the hidden size. If `order` is None,
    there is one polynomial for every FRAMES_PER_POLYNOMIAL frames of theta, but at most the hidden size, so A never
    dominates. The hidden size then determines the size of the layer, and its proportions stay the same.

    `theta` is in frames at this layer's input; `input_activation` is f, which the original form ignores; `activation` is g.
    """

    name: ClassVar[str] = "lmu"

    def __init__(
        self,
        input_size: int,
        hidden_size: PositiveInt,
        order: PositiveInt | None,
        theta: PositiveFloat,
        memory_channels: PositiveInt | None = 1,
        feedback: bool = False,
        algorithm: Algorithm = "auto",
        input_activation: Activation = "linear",
        activation: Activation = "tanh",
    ) -> None:
        super().__init__(input_size, hidden_size)
        self._by_rule = (memory_channels is None, order is None)
        if memory_channels is None:
            memory_channels = math.ceil(hidden_size / HIDDEN_PER_CHANNEL)
        if order is None:
            order = min(hidden_size, math.ceil(theta / FRAMES_PER_POLYNOMIAL))
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
        """Initialise as in Voelker et al. 2019: encoders LeCun uniform, e_m zero, kernels Xavier normal, biases zero.

        The numbers of the Legendre memory stay in the range of its signal, so no further gain is needed.
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
        """Return a zero state: the memory (B, C, M); with feedback the previous output (B, H) comes first."""
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

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "memory_channels": self.memory_channels, "order": self.memory.order}

    def sizes_text(self) -> str:
        channels_follow, order_follows = self._by_rule
        channels = f" (one for every {HIDDEN_PER_CHANNEL} of it)" if channels_follow else ""
        bound = f", at most {self.hidden_size}" if self.memory.order == self.hidden_size else ""
        order = f" (one for every {FRAMES_PER_POLYNOMIAL} frames of theta{bound})" if order_follows else ""
        return f"{super().sizes_text()}, {self.memory_channels} memory channels{channels}, order {self.memory.order}{order}"

    def window_frames(self) -> float:
        return self.memory.theta

    def _signal(self, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the signals that the parallel form remembers, (B, T, C): zero in the padding, which products may include."""
        signal_BTC = self.input_activation(self.signal_from_input(inputs_BTD))
        frames_T = torch.arange(inputs_BTD.shape[1], device=inputs_BTD.device)
        return signal_BTC.masked_fill((frames_T >= lengths_B.unsqueeze(1)).unsqueeze(2), 0.0)

    @torch.compiler.disable  # the compiler would unroll the frames
    def _forward_feedback(self, inputs_BTD: torch.Tensor) -> torch.Tensor:
        """Compute the original form with one matrix product per frame.

        With z = [h, m], inserting the equations into each other gives z_t = [g, 1](R z_{t-1} + d_t). The drive d of all
        frames and the matrix R = [[W_h + W_m B e_h, W_m (A + B e_m)], [B e_h, A + B e_m]] are computed once.
        """
        dtype = torch.promote_types(inputs_BTD.dtype, torch.float32)  # rounding errors accumulate over frames
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
