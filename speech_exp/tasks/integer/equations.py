"""The networks' float equations with the points at which integers are rounded, shared by calibration and training.

Calibration evaluates them exactly and records the ranges at the points; quantisation-aware training evaluates them
rounded. They step frame by frame wherever the integer engine does.

Shape letters: B batch, T frames, F features, D layer input, C memory channels, M memory order, H hidden, V classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeGuard

import torch
from torch import nn

from speech_exp.models.encoder import CompactEncoder, ConvolutionFront
from speech_exp.models.layer import Bidirectional, RecurrentLayer, frame_at, reverse_by_length
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer.cells import HIDDEN_SCALE
from speech_exp.tasks.integer.rules import (
    INT8_LIMIT,
    INT16_LIMIT,
    SIGMOID_INPUT_BITS,
    TANH_INPUT_BITS,
    UNIT_BITS,
)

Scale = torch.Tensor | float
Product = Callable[[torch.Tensor], torch.Tensor]

_SIGMOID_SCALE, _TANH_SCALE, _UNIT_SCALE = 2.0**-SIGMOID_INPUT_BITS, 2.0**-TANH_INPUT_BITS, 2.0**-UNIT_BITS


class Rounding(Protocol):
    """What is computed at each rounding point. A scale is that of the codes there, and has the name of the range behind it."""

    def watch(self, name: str, x: torch.Tensor) -> None:
        """Receive values (..., X) at a point, without padding."""

    def codes(self, x: torch.Tensor, scale: Scale, limit: int) -> torch.Tensor:
        """Return `x` as represented by its codes: rounded, and saturated at `limit` codes."""

    def product(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, scale_I: Scale, common: bool = False
    ) -> Product:
        """Return the linear layer with int8 rows, for inputs with scales `scale_I`; `common`: one scale for all rows."""

    def narrow_scale(self, name: str) -> Scale: ...

    def state_scale(self, name: str) -> Scale: ...

    def common_scale(self, name: str) -> Scale:
        """Return the state scale of the largest feature."""

    def cell_scale(self, name: str) -> Scale: ...

    def state_matrices(self, layer: LMU) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B."""


def has_integer_parts_only(network: Network) -> TypeGuard[ClassificationNetwork]:
    """Whether every part of the network has an integer form: true for classifiers over the compact encoder."""
    return isinstance(network, ClassificationNetwork) and isinstance(network.encoder, CompactEncoder)


def states(
    layer: RecurrentLayer, name: str, inputs_BTD: torch.Tensor, lengths_B: torch.Tensor, rounding: Rounding
) -> torch.Tensor:
    """Return the states (B, T, H) of one recurrent layer between parts that compute in float."""
    valid_BT = torch.arange(inputs_BTD.shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)
    rounding.watch(f"{name}.input", inputs_BTD[valid_BT])
    scale = rounding.narrow_scale(f"{name}.input")
    codes_BTD = rounding.codes(inputs_BTD, scale, INT8_LIMIT)
    return _layer(layer, name, codes_BTD, lengths_B, valid_BT, scale, rounding)


def logits(
    network: ClassificationNetwork, features_BTF: torch.Tensor, lengths_B: torch.Tensor, rounding: Rounding
) -> torch.Tensor:
    """Return the logits (B, V)."""
    encoder = network.encoder
    assert isinstance(encoder, CompactEncoder), "others are rounded in their recurrent layers alone"
    valid_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)
    rounding.watch("input", features_BTF[valid_BT])
    scale = rounding.narrow_scale("input")
    states_BTH = rounding.codes(features_BTF, scale, INT8_LIMIT)
    if encoder.front is not None:
        states_BTH = _front(encoder.front, states_BTH, valid_BT, scale, rounding)
        rounding.watch("front", states_BTH[valid_BT])
        scale = rounding.narrow_scale("front")
        states_BTH = rounding.codes(states_BTH, scale, INT8_LIMIT)
    for number, layer in enumerate(encoder.recurrent_layers):
        name = f"layers.{number}"
        if number:
            scale = rounding.narrow_scale(f"layers.{number - 1}.output")
            states_BTH = encoder.dropout(rounding.codes(states_BTH, scale, INT8_LIMIT))
        states_BTH = _layer(layer, name, states_BTH, lengths_B, valid_BT, scale, rounding)
        rounding.watch(f"{name}.output", states_BTH[valid_BT])
    if network.pooling == "last":
        pooled_BH = frame_at(states_BTH, lengths_B - 1)
        if isinstance(layer, Bidirectional):  # the backward layer has read everything at the first frame
            split = layer.forward_layer.output_size
            pooled_BH = torch.cat([pooled_BH[:, :split], states_BTH[:, 0, split:]], 1)
    else:
        weights_BT = valid_BT / lengths_B.unsqueeze(1)
        if network.score is not None:
            scale = rounding.narrow_scale(f"{name}.output")
            score = rounding.product(network.score.weight, network.score.bias, scale)
            score_BT = score(rounding.codes(states_BTH, scale, INT8_LIMIT)).squeeze(-1)
            weights_BT = score_BT.masked_fill(~valid_BT, -torch.inf).softmax(1)
        pooled_BH = torch.einsum("bth,bt->bh", states_BTH, weights_BT)
    rounding.watch("pooled", pooled_BH)
    scale = rounding.narrow_scale("pooled")
    output = rounding.product(network.output.weight, network.output.bias, scale, common=True)
    return output(network.dropout(rounding.codes(pooled_BH, scale, INT8_LIMIT)))


def folded_front(front: ConvolutionFront) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (C, F, width) and bias (C) of the convolution with the running normalisation folded in."""
    normalization = front.normalization
    assert normalization.running_var is not None
    assert normalization.running_mean is not None
    gain_C = normalization.weight * (normalization.running_var + normalization.eps).rsqrt()
    return front.convolution.weight * gain_C.view(-1, 1, 1), normalization.bias - normalization.running_mean * gain_C


def windows(frames_BTF: torch.Tensor, width: int) -> torch.Tensor:
    """Return each frame's window of `width` frames, zero-padded, (B, T, F * width) in the order of a convolution's weight."""
    batch, frames, features = frames_BTF.shape
    padded_BTF = frames_BTF.new_zeros(batch, frames + width - 1, features)
    padded_BTF[:, width // 2 : width // 2 + frames] = frames_BTF
    return padded_BTF.unfold(1, width, 1).flatten(2)


def _front(
    front: ConvolutionFront, frames_BTF: torch.Tensor, valid_BT: torch.Tensor, scale: Scale, rounding: Rounding
) -> torch.Tensor:
    weight_CFW, bias_C = folded_front(front)
    width = weight_CFW.shape[2]
    scale_X = scale.repeat_interleave(width) if isinstance(scale, torch.Tensor) else scale
    product = rounding.product(weight_CFW.flatten(1), bias_C, scale_X)
    return product(windows(frames_BTF * valid_BT.unsqueeze(2), width)).relu()


def _layer(
    layer: RecurrentLayer,
    name: str,
    inputs_BTD: torch.Tensor,
    lengths_B: torch.Tensor,
    valid_BT: torch.Tensor,
    scale: Scale,
    rounding: Rounding,
) -> torch.Tensor:
    if isinstance(layer, Bidirectional):
        reversed_BTD = reverse_by_length(inputs_BTD, lengths_B)
        two = (
            ("forward_layer", layer.forward_layer, inputs_BTD),
            ("backward_layer", layer.backward_layer, reversed_BTD),
        )
        forwards_BTH, backwards_BTH = (
            _layer(one, f"{name}.{direction}", inputs, lengths_B, valid_BT, scale, rounding)
            for direction, one, inputs in two
        )
        return torch.cat([forwards_BTH, reverse_by_length(backwards_BTH, lengths_B)], 2)
    if isinstance(layer, GRU):
        return _gru(layer.cell, inputs_BTD, scale, rounding)
    if isinstance(layer, LSTM):
        states_BTH, cells_BTH = _lstm(layer.cell, name, inputs_BTD, scale, rounding)
        rounding.watch(f"{name}.cell", cells_BTH[valid_BT])
        return states_BTH
    assert isinstance(layer, LMU)
    states_BTH, memories_BTC = _lmu(layer, name, inputs_BTD, scale, rounding)
    rounding.watch(f"{name}.memory", memories_BTC[valid_BT])
    rounding.watch(f"{name}.output", states_BTH[valid_BT])
    return states_BTH


def _gru(cell: nn.GRU, inputs_BTD: torch.Tensor, scale: Scale, rounding: Rounding) -> torch.Tensor:
    weight_ih, weight_hh, bias_ih, bias_hh = cell.all_weights[0]
    drive_BTG = rounding.product(weight_ih, bias_ih, scale)(inputs_BTD)
    recurrent = rounding.product(weight_hh, bias_hh, HIDDEN_SCALE)
    size = cell.hidden_size
    hidden_BH = inputs_BTD.new_zeros(len(inputs_BTD), size)
    states = []
    for drive_BG in drive_BTG.unbind(1):
        drive_gates, drive_candidate = drive_BG.split((2 * size, size), 1)
        narrow_BH = rounding.codes(hidden_BH, HIDDEN_SCALE, INT8_LIMIT)
        recurrent_gates, recurrent_candidate = recurrent(narrow_BH).split((2 * size, size), 1)
        gates = rounding.codes(drive_gates + recurrent_gates, _SIGMOID_SCALE, INT16_LIMIT)
        reset, update = gates.sigmoid().chunk(2, 1)
        remembered = reset * rounding.codes(recurrent_candidate, _TANH_SCALE, INT16_LIMIT)
        candidate = rounding.codes(drive_candidate + remembered, _TANH_SCALE, INT16_LIMIT).tanh()
        hidden_BH = rounding.codes(torch.lerp(candidate, hidden_BH, update), _UNIT_SCALE, INT16_LIMIT)
        states.append(hidden_BH)
    return torch.stack(states, 1)


def _lstm(
    cell: nn.LSTM, name: str, inputs_BTD: torch.Tensor, scale: Scale, rounding: Rounding
) -> tuple[torch.Tensor, torch.Tensor]:
    weight_ih, weight_hh, bias_ih, bias_hh = cell.all_weights[0]
    drive_BTG = rounding.product(weight_ih, bias_ih, scale)(inputs_BTD)
    recurrent = rounding.product(weight_hh, bias_hh, HIDDEN_SCALE)
    cell_scale = rounding.cell_scale(f"{name}.cell")
    hidden_BH = inputs_BTD.new_zeros(len(inputs_BTD), cell.hidden_size)
    cell_BH = hidden_BH
    states, cells = [], []
    for drive_BG in drive_BTG.unbind(1):
        sums_BG = drive_BG + recurrent(rounding.codes(hidden_BH, HIDDEN_SCALE, INT8_LIMIT))
        input_gate, forget, candidate, output = sums_BG.chunk(4, 1)
        input_gate, forget, output = (
            rounding.codes(gate, _SIGMOID_SCALE, INT16_LIMIT).sigmoid() for gate in (input_gate, forget, output)
        )
        candidate = rounding.codes(candidate, _TANH_SCALE, INT16_LIMIT).tanh()
        cell_BH = rounding.codes(forget * cell_BH + input_gate * candidate, cell_scale, INT16_LIMIT)
        squashed = rounding.codes(cell_BH, _TANH_SCALE, INT16_LIMIT).tanh()
        hidden_BH = rounding.codes(output * squashed, _UNIT_SCALE, INT16_LIMIT)
        states.append(hidden_BH)
        cells.append(cell_BH)
    return torch.stack(states, 1), torch.stack(cells, 1)


def _lmu(
    layer: LMU, name: str, inputs_BTD: torch.Tensor, scale: Scale, rounding: Rounding
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (B, T, H) and the largest magnitude of each channel's signal and memory (B, T, C)."""
    order, memory_C = layer.memory.order, rounding.state_scale(f"{name}.memory")
    memory_C1 = memory_C.unsqueeze(1) if isinstance(memory_C, torch.Tensor) else memory_C
    memory_X = memory_C.repeat_interleave(order) if isinstance(memory_C, torch.Tensor) else memory_C
    bounded = layer.activation is torch.tanh
    sum_scale = _TANH_SCALE if bounded else rounding.common_scale(f"{name}.output")
    A_MM, B_M = rounding.state_matrices(layer)
    drive_BTC = rounding.product(layer.signal_from_input.weight, layer.signal_from_input.bias, scale)(inputs_BTD)
    drive_BTH = rounding.product(layer.hidden_from_input.weight, layer.hidden_from_input.bias, scale)(inputs_BTD)
    read = rounding.product(layer.hidden_from_memory.weight, None, memory_X)
    if layer.feedback:
        narrow_scale = rounding.narrow_scale(f"{name}.output")
        signal_from_hidden = rounding.product(layer.signal_from_hidden.weight, None, narrow_scale)
        signal_from_memory = rounding.product(layer.signal_from_memory.weight, None, memory_X)
        hidden_from_hidden = rounding.product(layer.hidden_from_hidden.weight, None, narrow_scale)
    hidden_BH = torch.zeros_like(drive_BTH[:, 0])
    memory_BCM = hidden_BH.new_zeros(len(hidden_BH), layer.memory_channels, order)
    states, magnitudes = [], []
    for signal_BC, sum_BH in zip(drive_BTC.unbind(1), drive_BTH.unbind(1), strict=True):
        if layer.feedback:
            narrow_BH = rounding.codes(hidden_BH, narrow_scale, INT8_LIMIT)
            signal_BC = signal_BC + signal_from_hidden(narrow_BH) + signal_from_memory(memory_BCM.flatten(1))
            sum_BH = sum_BH + hidden_from_hidden(narrow_BH)
        else:
            if layer.input_activation is torch.tanh:
                signal_BC = rounding.codes(signal_BC, _TANH_SCALE, INT16_LIMIT)
            signal_BC = layer.input_activation(signal_BC)
        signal_BC = rounding.codes(signal_BC, memory_C, INT16_LIMIT)
        memory_BCM = rounding.codes(memory_BCM @ A_MM.T + signal_BC.unsqueeze(2) * B_M, memory_C1, INT16_LIMIT)
        sum_BH = rounding.codes(sum_BH + read(memory_BCM.flatten(1)), sum_scale, INT16_LIMIT)
        hidden_BH = layer.activation(sum_BH)
        if bounded:
            hidden_BH = rounding.codes(hidden_BH, _UNIT_SCALE, INT16_LIMIT)
        states.append(hidden_BH)
        magnitudes.append(torch.maximum(signal_BC.abs(), memory_BCM.abs().amax(2)))
    return torch.stack(states, 1), torch.stack(magnitudes, 1)
