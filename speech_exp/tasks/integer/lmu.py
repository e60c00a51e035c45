"""The Legendre memory unit in integers, in its parallel and its original form.

Shape letters: B batch, T frames, D layer input, C memory channels, M memory order, X = C * M, H hidden.
"""

from __future__ import annotations

import torch

from speech_exp.models.layer import RecurrentLayer, frame_at
from speech_exp.models.lmu import ACTIVATIONS, LMU
from speech_exp.tasks.integer import rules, scheme
from speech_exp.tasks.integer.cells import IntegerLayer, Ranges
from speech_exp.tasks.integer.parts import IntegerLinear, Requantization
from speech_exp.tasks.integer.rules import TANH_INPUT_BITS, UNIT_BITS, saturate8, saturate16, shift_rounded, tanh_code
from speech_exp.tasks.state_space import spectral_radius


class IntegerLMU(IntegerLayer):
    """An LMU whose signal u and memory m of a channel are int16 with one scale; A and B are int16 with scale 2^-a.

    Parallel form, where f and g are the activations and each product of a weight (U, W, e) is a requantised part:
        u_t = f(saturate16(U x_t + b_u)),  m_t = saturate16(shift_rounded(A m_{t-1} + B u_t, a)) (each channel),
        h_t = g(saturate16(W_m m_t + (W_x x_t + b_h))).
    Original form, with the int8 form h' = saturate8(requantize(h)) of the previous state:
        u_t = saturate16(e_x x_t + e_h h'_{t-1} + e_m m_{t-1}),  m_t as above,
        h_t = g(saturate16(W_x x_t + W_h h'_{t-1} + W_m m_t)).
    `linear` keeps codes, `relu` is max(0, x), and `tanh` is tanh_code, with input scale 2^-12 and output scale 2^-15; if f is
    tanh, u = saturate16(requantize(f(...))) converts it to the scale of its channel.

    A m + B u of 16 by 16 bits fits int32, because a is the largest number with
    32767 (sum_j |A_ij| + |B_i|) 2^a + 2^(a-1) < 2^31 in every row i: the rows of a Legendre memory sum to 2.5 at order 8 and
    to 7 at order 192, which leaves a = 14 and 13.
    """

    A: torch.Tensor
    B: torch.Tensor
    state_bits: torch.Tensor  # a

    def __init__(self, layer: LMU) -> None:
        """Build the layer; `layer` provides the topology, and with it the constants A and B."""
        super().__init__()
        order, channels, inputs, hidden = layer.memory.order, layer.memory_channels, layer.input_size, layer.hidden_size
        self.output_size, self.channels, self.feedback = hidden, channels, layer.feedback
        names = {function: name for name, function in ACTIVATIONS.items()}
        self.activation = names[layer.activation]
        self.input_activation = "linear" if layer.feedback else names[layer.input_activation]
        self.uses_tanh_table = "tanh" in (self.activation, self.input_activation)
        A_MM, B_M, state_bits = scheme.state_matrices(layer.memory.A.cpu(), layer.memory.B.cpu())
        self.register_buffer("A", A_MM)
        self.register_buffer("B", B_M)
        self.register_buffer("state_bits", torch.tensor(state_bits, dtype=torch.int8))
        wide = rules.INT16_LIMIT
        self.signal_from_input = IntegerLinear(inputs, channels, bias=not layer.feedback)
        self.hidden_from_input = IntegerLinear(inputs, hidden, bias=not layer.feedback)
        self.hidden_from_memory = IntegerLinear(channels * order, hidden, bias=False, input_limit=wide)
        if self.input_activation == "tanh":
            self.signal_rescale = Requantization(channels)
        if layer.feedback:
            self.narrowing = Requantization(hidden)
            self.signal_from_hidden = IntegerLinear(hidden, channels, bias=False)
            self.signal_from_memory = IntegerLinear(channels * order, channels, bias=False, input_limit=wide)
            self.hidden_from_hidden = IntegerLinear(hidden, hidden, bias=False)

    def forward(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        signal_BTC, drive_BTH = self.signal_from_input(codes_BTD), self.hidden_from_input(codes_BTD)
        if self.feedback:
            return self._forward_feedback(signal_BTC, drive_BTH)
        return self._outputs(drive_BTH, self._memories(self.signal(signal_BTC)))

    def final(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        if self.feedback:
            return super().final(codes_BTD, lengths_B)
        last = lengths_B - 1
        memory_BX = frame_at(self._memories(self.signal(self.signal_from_input(codes_BTD))), last)
        return self._outputs(self.hidden_from_input(frame_at(codes_BTD, last)), memory_BX)

    def signal(self, part_BTC: torch.Tensor) -> torch.Tensor:
        """Return u of the parallel form, int16, from its part."""
        if self.input_activation != "tanh":
            return _activated(self.input_activation, part_BTC)
        return saturate16(self.signal_rescale(_activated("tanh", part_BTC)))

    def memory_step(self, memory_BCM: torch.Tensor, signal_BC: torch.Tensor, state_bits: int) -> torch.Tensor:
        """Return m_t (int16) from m_{t-1} and u_t, both int16."""
        added_BCM = signal_BC.int().unsqueeze(2) * self.B
        return saturate16(shift_rounded(rules.product(memory_BCM, self.A) + added_BCM, state_bits))

    def _memories(self, signal_BTC: torch.Tensor) -> torch.Tensor:
        """Return the memories of all frames, int16 (B, T, X)."""
        state_bits = int(self.state_bits)
        memory_BCM = self._first_memory(signal_BTC)
        memories = []
        for signal_BC in signal_BTC.unbind(1):
            memory_BCM = self.memory_step(memory_BCM, signal_BC, state_bits)
            memories.append(memory_BCM)
        return torch.stack(memories, 1).flatten(2)

    def _forward_feedback(self, signal_BTC: torch.Tensor, drive_BTH: torch.Tensor) -> torch.Tensor:
        state_bits = int(self.state_bits)
        memory_BCM = self._first_memory(signal_BTC)
        hidden_BH = drive_BTH.new_zeros(len(drive_BTH), self.output_size, dtype=torch.int16)
        states = []
        for signal_BC, drive_BH in zip(signal_BTC.unbind(1), drive_BTH.unbind(1), strict=True):
            previous_BH = saturate8(self.narrowing(hidden_BH))
            from_state_BC = self.signal_from_hidden(previous_BH) + self.signal_from_memory(memory_BCM.flatten(1))
            memory_BCM = self.memory_step(memory_BCM, saturate16(signal_BC + from_state_BC), state_bits)
            hidden_BH = self._outputs(drive_BH + self.hidden_from_hidden(previous_BH), memory_BCM.flatten(1))
            states.append(hidden_BH)
        return torch.stack(states, 1)

    def _outputs(self, part_H: torch.Tensor, memory_X: torch.Tensor) -> torch.Tensor:
        return _activated(self.activation, part_H + self.hidden_from_memory(memory_X))

    def _first_memory(self, signal_BTC: torch.Tensor) -> torch.Tensor:
        return signal_BTC.new_zeros(len(signal_BTC), self.channels, len(self.B), dtype=torch.int16)

    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges, scale_D: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, LMU)
        memory_C = scheme.state_scale(ranges[f"{name}.memory"])
        memory_X = memory_C.repeat_interleave(len(self.B))
        signal_C = memory_C
        if self.input_activation == "tanh":
            signal_C = torch.full_like(memory_C, 2.0**-TANH_INPUT_BITS)
            self.signal_rescale.load(torch.full_like(memory_C, 2.0**-UNIT_BITS), memory_C)
        sum_H, output_H = output_scales(self.activation, ranges[f"{name}.output"])
        self.signal_from_input.load(layer.signal_from_input.weight, layer.signal_from_input.bias, scale_D, signal_C)
        self.hidden_from_input.load(layer.hidden_from_input.weight, layer.hidden_from_input.bias, scale_D, sum_H)
        self.hidden_from_memory.load(layer.hidden_from_memory.weight, None, memory_X, sum_H)
        if self.feedback:
            narrow_H = scheme.code_scale(ranges[f"{name}.output"], rules.INT8_LIMIT)
            self.narrowing.load(output_H, narrow_H)
            self.signal_from_hidden.load(layer.signal_from_hidden.weight, None, narrow_H, memory_C)
            self.signal_from_memory.load(layer.signal_from_memory.weight, None, memory_X, memory_C)
            self.hidden_from_hidden.load(layer.hidden_from_hidden.weight, None, narrow_H, sum_H)
        return output_H

    def is_within_rules(self) -> bool:
        return 1 <= int(self.state_bits) <= 15

    def accumulator_bounds(self) -> dict[str, int]:
        linear = {name: part for name, part in self.named_children() if isinstance(part, IntegerLinear)}
        bounds = {name: part.product.bound() for name, part in linear.items()}
        return bounds | {"memory": scheme.state_bound(self.A, self.B, int(self.state_bits))}

    def state_bytes(self) -> int:
        return 2 * (self.channels * len(self.B) + (self.output_size if self.feedback else 0))

    def spectral_radii(self) -> dict[str, float]:
        A_MM = self.A.double() / 2 ** int(self.state_bits)
        return {"memory": spectral_radius(A_MM)}


def output_scales(activation: str, range_H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of an output's sum and of the output itself."""
    if activation == "tanh":
        full = torch.ones_like(range_H, dtype=torch.float64)
        return full * 2.0**-TANH_INPUT_BITS, full * 2.0**-UNIT_BITS
    scale_H = scheme.state_scale(range_H.max().expand_as(range_H))
    return scale_H, scale_H


def _activated(name: str, part: torch.Tensor) -> torch.Tensor:
    """Return int16 codes from int32 parts."""
    codes = saturate16(part)
    if name == "tanh":
        return tanh_code(codes)
    return codes.clamp(min=0) if name == "relu" else codes
