"""Bytes of a deployed model: what a budget counts, the size of its packed file, and what it keeps between frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from speech_exp.objectives.objective import Network
from speech_exp.tasks.packed import HEADER, Part, chunks

FLOAT_BITS = 32


@dataclass(frozen=True)
class Stored:
    """Sizes of a deployed model; lists have one item per recurrent layer, over all its directions.

    `recurrent_layer_bytes` is what a budget counts. `recurrent_state_bytes` is kept between frames, in addition to what is
    stored. `model_bytes` counts the numbers that the deployed model computes with. `packed_bytes` is the size of the file of
    `speech_exp.tasks.packed`, `packed_layer_bytes` the share of each recurrent layer in it.
    """

    recurrent_layer_bytes: list[int]
    recurrent_state_bytes: list[int]
    model_bytes: int
    bits_per_weight: float
    packed_bytes: int
    packed_layer_bytes: list[int]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        parts: Sequence[Part],
        recurrent_layer_bytes: list[int],
        recurrent_state_bytes: list[int],
        model_bytes: int,
        bits_per_weight: float,
    ) -> Stored:
        packed = list(map(len, chunks(model.state_dict(), parts)))
        layers = [
            sum(size for size, part in zip(packed, parts, strict=True) if part.layer == layer)
            for layer in range(len(recurrent_layer_bytes))
        ]
        total = HEADER.size + sum(packed)
        return cls(recurrent_layer_bytes, recurrent_state_bytes, model_bytes, bits_per_weight, total, layers)


def float_bytes(network: Network) -> int:
    """Return the bytes of all floats in a checkpoint: parameters, the LMU's A and B, batch normalisation statistics."""
    numbers = sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())
    return numbers * FLOAT_BITS // 8


def float_layer_bytes(network: Network) -> list[int]:
    """Return the bytes of each recurrent layer, over all its directions."""
    return [layer.size().bytes() for layer in network.encoder.recurrent_layers]
