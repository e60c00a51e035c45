"""Bytes of a deployed model as it lies in a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from speech_exp.objectives.objective import Network

FLOAT_BITS = 32


@dataclass(frozen=True)
class Stored:
    """`recurrent_layer_bytes` are those that a budget counts; `packed` are of the densest form that the task allows."""

    recurrent_layer_bytes: list[int]
    model_bytes: int
    bits_per_weight: float
    packed_bytes: int
    packed_layer_bytes: list[int]


def float_bytes(network: Network) -> int:
    """What a checkpoint keeps as floats: parameters, the LMU's A and B, statistics of batch normalisation."""
    numbers = sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())
    return numbers * FLOAT_BITS // 8


def stored_in_float(network: Network) -> Stored:
    layers = [layer.size().bytes() for layer in network.encoder.recurrent_layers]
    total = float_bytes(network)
    return Stored(layers, total, float(FLOAT_BITS), total, layers)


def stored_in_codes(
    network: Network,
    in_scope: Mapping[str, torch.Tensor],
    code_bits: Callable[[Mapping[str, torch.Tensor]], int],
    matrix_bits: int,
) -> Stored:
    """The parameters `in_scope` as code words, the LMU's A and B in `matrix_bits` a number, all else in float32.

    Each recurrent layer has a code of its own, and the rest one: `code_bits` gives the bits of one such group.
    """
    layers = network.encoder.recurrent_layers
    owner = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    groups: list[dict[str, torch.Tensor]] = [{} for _ in range(len(layers) + 1)]
    for name, weight in in_scope.items():
        groups[owner.get(id(weight), len(layers))][name] = weight
    coded_bits = [code_bits(group) if group else 0 for group in groups]
    coded = [sum(weight.numel() for weight in group.values()) for group in groups]
    sizes = [layer.size() for layer in layers]
    layer_bits = [
        bits + FLOAT_BITS * (size.parameters - count) + matrix_bits * size.fixed
        for bits, count, size in zip(coded_bits, coded, sizes, strict=False)
    ]
    elsewhere = float_bytes(network) * 8 // FLOAT_BITS - sum(size.numbers for size in sizes)
    total_bits = sum(layer_bits) + coded_bits[-1] + FLOAT_BITS * (elsewhere - coded[-1])
    return Stored(
        [size.bytes() for size in sizes],
        float_bytes(network),
        sum(coded_bits) / sum(coded),
        -(-total_bits // 8),
        [-(-bits // 8) for bits in layer_bits],
    )
