"""GRU and LSTM layers in integers, and bidirectional layers of any kind.

Gates add two parts, from the input and from the hidden state, each requantised to the scale that sigmoid_code (2^-11) or
tanh_code (2^-12) reads. The hidden state h is int16 with scale 2^-15; its int8 form, which enters the product, is
saturate8(shift_rounded(h, 8)) with scale 2^-7.

Shape letters: B batch, T frames, D layer input, H hidden, G gates times H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from speech_exp.models.layer import Bidirectional, RecurrentLayer, frame_at, reverse_by_length
from speech_exp.tasks.integer import rules, scheme
from speech_exp.tasks.integer.parts import IntegerLinear, Requantization
from speech_exp.tasks.integer.rules import (
    SIGMOID_INPUT_BITS,
    TANH_INPUT_BITS,
    UNIT_BITS,
    saturate8,
    saturate16,
    shift_rounded,
    sigmoid_code,
    tanh_code,
)

Ranges = dict[str, torch.Tensor]  # largest magnitude of each feature at each named point of a network
NARROWING_BITS = 8  # from int16 with scale 2^-15 to int8 with scale 2^-7
HIDDEN_SCALE = 2.0 ** (NARROWING_BITS - UNIT_BITS)


class IntegerLayer(nn.Module, ABC):
    """One recurrent layer: int8 input codes (B, T, D) to int16 states (B, T, output_size)."""

    output_size: int
    uses_tanh_table: bool

    @abstractmethod
    def forward(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor: ...

    def final(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return the state after each utterance's last frame, int16 (B, output_size)."""
        return frame_at(self(codes_BTD, lengths_B), lengths_B - 1)

    @abstractmethod
    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges, scale_D: torch.Tensor) -> torch.Tensor:
        """Load a float layer that calibration calls `name`; return the scale of each output."""

    @abstractmethod
    def accumulator_bounds(self) -> dict[str, int]: ...

    def stored_bytes(self) -> int:
        """Return the bytes of everything between the int8 input codes and the int16 states, in the dtypes that a device reads.

        Weights take 1 byte, biases 4, requantisation 4 (multiplier) and 1 (shift) per row, the LMU's A and B 2. Making the
        input codes and reading the states happens outside the layer, and all layers share the tables of tanh and sigmoid:
        both are counted with the model.
        """
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @abstractmethod
    def state_bytes(self) -> int:
        """Return the bytes kept between frames, as int16 numbers."""

    def requantised_rows(self) -> int:
        """Return the number of multipliers in the layer, which equals the number of shifts."""
        return sum(module.multiplier.numel() for module in self.modules() if isinstance(module, Requantization))

    def spectral_radii(self) -> dict[str, float]:
        """Return the spectral radii of the layer's linear memories, as rounded."""
        return {}


class IntegerGRU(IntegerLayer):
    """A GRU with x and h in int8 and rows r, z, n.

    With the parts p = requantize(W_i x + b_i) and q = requantize(W_h h + b_h):

    r = sigmoid_code(saturate16(p_r + q_r)), z = sigmoid_code(saturate16(p_z + q_z)),
    n = tanh_code(saturate16(p_n + shift_rounded(r * saturate16(q_n), 15))),
    h' = saturate16(n + shift_rounded(z * (h - n), 15)).
    """

    uses_tanh_table = True

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.input = IntegerLinear(input_size, 3 * hidden_size, bias=True)
        self.recurrent = IntegerLinear(hidden_size, 3 * hidden_size, bias=True)

    def forward(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        hidden_BH = codes_BTD.new_zeros(len(codes_BTD), self.output_size, dtype=torch.int16)
        states = []
        for drive_BG in self.input(codes_BTD).unbind(1):
            hidden_BH = self.step(drive_BG, hidden_BH)
            states.append(hidden_BH)
        return torch.stack(states, 1)

    def step(self, drive_BG: torch.Tensor, hidden_BH: torch.Tensor) -> torch.Tensor:
        """Return the next int16 state from the input parts (int32) and the state."""
        sections = (2 * self.output_size, self.output_size)
        drive_gates, drive_candidate = drive_BG.split(sections, 1)
        recurrent_gates, recurrent_candidate = self.recurrent(narrowed(hidden_BH)).split(sections, 1)
        reset, update = sigmoid_code(saturate16(drive_gates + recurrent_gates)).int().chunk(2, 1)
        remembered = shift_rounded(reset * saturate16(recurrent_candidate), UNIT_BITS)
        candidate = tanh_code(saturate16(drive_candidate + remembered)).int()
        return saturate16(candidate + shift_rounded(update * (hidden_BH.int() - candidate), UNIT_BITS))

    def state_bytes(self) -> int:
        return 2 * self.output_size

    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges, scale_D: torch.Tensor) -> torch.Tensor:
        gate_bits = (SIGMOID_INPUT_BITS, SIGMOID_INPUT_BITS, TANH_INPUT_BITS)
        _load_gates(self.input, self.recurrent, layer, scale_D, gate_bits)
        return torch.full((self.output_size,), 2.0**-UNIT_BITS, dtype=torch.float64)

    def accumulator_bounds(self) -> dict[str, int]:
        half = 1 << (UNIT_BITS - 1)
        return {
            "input": self.input.product.bound(),
            "recurrent": self.recurrent.product.bound(),
            "reset": rules.INT16_LIMIT**2 + half,
            "update": rules.INT16_LIMIT * 2 * rules.INT16_LIMIT + half,
        }


class IntegerLSTM(IntegerLayer):
    """An LSTM with x and h in int8 and rows i, f, g, o.

    With the parts p = requantize(W_i x + b_i) and q = requantize(W_h h + b_h):

    i = sigmoid_code(saturate16(p_i + q_i)), likewise f and o, g = tanh_code(saturate16(p_g + q_g)),
    c' = saturate16(shift_rounded(f * c, 15) + shift_rounded(i * g, 30 - k)), c int16 with scale 2^-k, 0 <= k <= 12,
    h' = shift_rounded(o * tanh_code(saturate16(c' << (12 - k))), 15).
    """

    uses_tanh_table = True
    cell_bits: torch.Tensor  # k

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.input = IntegerLinear(input_size, 4 * hidden_size, bias=True)
        self.recurrent = IntegerLinear(hidden_size, 4 * hidden_size, bias=True)
        self.register_buffer("cell_bits", torch.zeros((), dtype=torch.int8))

    def forward(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        cell_bits = int(self.cell_bits)
        hidden_BH = codes_BTD.new_zeros(len(codes_BTD), self.output_size, dtype=torch.int16)
        cell_BH = hidden_BH
        states = []
        for drive_BG in self.input(codes_BTD).unbind(1):
            hidden_BH, cell_BH = self.step(drive_BG, hidden_BH, cell_BH, cell_bits)
            states.append(hidden_BH)
        return torch.stack(states, 1)

    def step(
        self, drive_BG: torch.Tensor, hidden_BH: torch.Tensor, cell_BH: torch.Tensor, cell_bits: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next int16 hidden and cell states from the input parts (int32) and the states."""
        size = self.output_size
        gates_BG = saturate16(drive_BG + self.recurrent(narrowed(hidden_BH)))
        input_gate, forget = sigmoid_code(gates_BG[:, : 2 * size]).int().chunk(2, 1)
        candidate = tanh_code(gates_BG[:, 2 * size : 3 * size])
        output = sigmoid_code(gates_BG[:, 3 * size :]).int()
        kept = shift_rounded(forget * cell_BH, UNIT_BITS)
        cell_BH = saturate16(kept + shift_rounded(input_gate * candidate, 2 * UNIT_BITS - cell_bits))
        squashed = tanh_code(saturate16(cell_BH.int() << (TANH_INPUT_BITS - cell_bits)))
        return shift_rounded(output * squashed, UNIT_BITS).to(torch.int16), cell_BH

    def state_bytes(self) -> int:
        return 2 * 2 * self.output_size  # the hidden state and the cell

    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges, scale_D: torch.Tensor) -> torch.Tensor:
        gate_bits = (SIGMOID_INPUT_BITS, SIGMOID_INPUT_BITS, TANH_INPUT_BITS, SIGMOID_INPUT_BITS)
        _load_gates(self.input, self.recurrent, layer, scale_D, gate_bits)
        self.cell_bits.fill_(scheme.cell_bits(ranges[f"{name}.cell"], TANH_INPUT_BITS))
        return torch.full((self.output_size,), 2.0**-UNIT_BITS, dtype=torch.float64)

    def is_within_rules(self) -> bool:
        return 0 <= int(self.cell_bits) <= TANH_INPUT_BITS

    def accumulator_bounds(self) -> dict[str, int]:
        square, bits = rules.INT16_LIMIT**2, int(self.cell_bits)
        return {
            "input": self.input.product.bound(),
            "recurrent": self.recurrent.product.bound(),
            "cell": square + (1 << (2 * UNIT_BITS - bits - 1)),
            "squash": rules.INT16_LIMIT << (TANH_INPUT_BITS - bits),
            "output": square + (1 << (UNIT_BITS - 1)),
        }


class IntegerBidirectional(IntegerLayer):
    """Two layers, the second over each utterance reversed within its own length; their outputs are concatenated."""

    def __init__(self, forward_layer: IntegerLayer, backward_layer: IntegerLayer) -> None:
        super().__init__()
        self.forward_layer, self.backward_layer = forward_layer, backward_layer
        self.output_size = forward_layer.output_size + backward_layer.output_size
        self.uses_tanh_table = forward_layer.uses_tanh_table or backward_layer.uses_tanh_table

    def state_bytes(self) -> int:
        return self.forward_layer.state_bytes() + self.backward_layer.state_bytes()

    def forward(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        backwards_BTH = self.backward_layer(reverse_by_length(codes_BTD, lengths_B), lengths_B)
        return torch.cat([self.forward_layer(codes_BTD, lengths_B), reverse_by_length(backwards_BTH, lengths_B)], 2)

    def final(self, codes_BTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        backwards_BH = self.backward_layer.final(reverse_by_length(codes_BTD, lengths_B), lengths_B)
        return torch.cat([self.forward_layer.final(codes_BTD, lengths_B), backwards_BH], 1)

    def load(self, layer: RecurrentLayer, name: str, ranges: Ranges, scale_D: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, Bidirectional)
        return torch.cat(
            [
                self.forward_layer.load(layer.forward_layer, f"{name}.forward_layer", ranges, scale_D),
                self.backward_layer.load(layer.backward_layer, f"{name}.backward_layer", ranges, scale_D),
            ]
        )

    def accumulator_bounds(self) -> dict[str, int]:
        both = (("forward_layer", self.forward_layer), ("backward_layer", self.backward_layer))
        return {f"{name}.{key}": bound for name, layer in both for key, bound in layer.accumulator_bounds().items()}

    def spectral_radii(self) -> dict[str, float]:
        both = (("forward_layer", self.forward_layer), ("backward_layer", self.backward_layer))
        return {f"{name}.{key}": radius for name, layer in both for key, radius in layer.spectral_radii().items()}


def narrowed(hidden_BH: torch.Tensor) -> torch.Tensor:
    """Return the int8 form of an int16 hidden state."""
    return saturate8(shift_rounded(hidden_BH.int(), NARROWING_BITS))


def _load_gates(
    into_input: IntegerLinear,
    into_recurrent: IntegerLinear,
    layer: RecurrentLayer,
    scale_D: torch.Tensor,
    gate_bits: tuple[int, ...],
) -> None:
    """Load weights and biases in torch's layout; `gate_bits` are the fraction bits of each gate's sum."""
    cell = layer.cell
    assert isinstance(cell, nn.GRU | nn.LSTM)
    scale_G = torch.tensor([2.0**-bits for bits in gate_bits], dtype=torch.float64).repeat_interleave(layer.hidden_size)
    scale_H = torch.full((layer.hidden_size,), HIDDEN_SCALE, dtype=torch.float64)
    weight_ih, weight_hh, bias_ih, bias_hh = cell.all_weights[0]
    into_input.load(weight_ih, bias_ih, scale_D, scale_G)
    into_recurrent.load(weight_hh, bias_hh, scale_H, scale_G)
