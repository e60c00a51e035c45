"""Integer-only inference of a classification network: encoder, pooling and output layer.

Shape letters: B batch, T frames, F features, D layer input, H encoder output, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from speech_exp.data.batches import Batch
from speech_exp.models.encoder import CompactEncoder, ConvolutionFront
from speech_exp.models.layer import Bidirectional, RecurrentLayer
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.tasks.integer import rules, scheme
from speech_exp.tasks.integer.calibration import observe
from speech_exp.tasks.integer.cells import IntegerBidirectional, IntegerGRU, IntegerLayer, IntegerLSTM, Ranges
from speech_exp.tasks.integer.equations import folded_front, windows
from speech_exp.tasks.integer.lmu import IntegerLMU
from speech_exp.tasks.integer.parts import IntegerLinear, IntegerProduct, Requantization
from speech_exp.tasks.integer.pooling import IntegerPooling
from speech_exp.tasks.integer.rules import INT8_LIMIT, saturate8


class IntegerFront(nn.Module):
    """Convolution, batch normalisation folded into it, and ReLU: int8 codes to int8 codes, 0 behind an utterance."""

    def __init__(self, front: ConvolutionFront) -> None:
        """`front` gives the topology only."""
        super().__init__()
        channels, inputs, self.width = front.convolution.weight.shape
        self.filters = IntegerLinear(inputs * self.width, channels, bias=True)

    def forward(self, codes_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        valid_BT1 = (torch.arange(codes_BTF.shape[1]) < lengths_B.unsqueeze(1)).unsqueeze(2)
        codes_BTC = saturate8(self.filters(windows(codes_BTF * valid_BT1, self.width)).clamp(min=0))
        return codes_BTC * valid_BT1

    def load(self, front: ConvolutionFront, scale_F: torch.Tensor, scale_C: torch.Tensor) -> None:
        weight_CFW, bias_C = folded_front(front)
        self.filters.load(weight_CFW.flatten(1), bias_C, scale_F.repeat_interleave(self.width), scale_C)


class IntegerNetwork(nn.Module):
    """int8 feature codes to int32 logits of one common scale; runs on the CPU, whatever device features come from.

    Every layer's int16 states become int8 codes, by requantisation and saturate8, where the next layer's product reads
    them; pooling works on int16 states and its result becomes int8 for the output layer.
    """

    input_scale: torch.Tensor
    output_scale: torch.Tensor

    def __init__(self, network: ClassificationNetwork) -> None:
        """`network` gives the topology only; all codes are 0 until `load` or `load_state_dict`."""
        super().__init__()
        encoder = network.encoder
        if not isinstance(encoder, CompactEncoder):
            raise ValueError(
                f"the integer engine covers the compact encoder, this network has a {type(encoder).__name__}: "
                "set encoder=compact"
            )
        layers = [_integer_layer(layer) for layer in encoder.recurrent_layers]
        self.register_buffer("input_scale", torch.ones(encoder.input_size))
        self.register_buffer("output_scale", torch.ones(()))
        self.front = None if encoder.front is None else IntegerFront(encoder.front)
        self.layers = nn.ModuleList(layers)
        self.narrowings = nn.ModuleList([Requantization(layer.output_size) for layer in layers[:-1]])
        self.pooling = IntegerPooling(network.pooling, encoder.output_size)
        self.pooled = Requantization(encoder.output_size)
        self.output = IntegerProduct(encoder.output_size, network.output.out_features, bias=True)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> IntegerNetwork:
        """Stays as it is: `.to(...)` and `.half()` concern float networks."""
        return self

    def quantize(self, features_BTF: torch.Tensor) -> torch.Tensor:
        """int8 codes: saturate8 of the nearest integer of feature / scale, one scale a feature."""
        return saturate8(scheme.rounded(features_BTF.cpu().float() / self.input_scale))

    def integer_logits(self, codes_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """int8 codes and int64 lengths, at least 1, to int32 logits (B, V)."""
        codes = codes_BTF if self.front is None else self.front(codes_BTF, lengths_B)
        for layer, narrowing in zip(self.recurrent_layers, self.narrowings, strict=False):
            codes = saturate8(narrowing(layer(codes, lengths_B)))
        last = self.recurrent_layers[-1]
        if self.pooling.takes_last:
            pooled_BH = last.final(codes, lengths_B)
        else:
            pooled_BH = self.pooling(last(codes, lengths_B), lengths_B)
        return self.output.accumulate(saturate8(self.pooled(pooled_BH)))

    def forward(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """float32 logits (B, V) on the device of the features."""
        logits_BV = self.integer_logits(self.quantize(features_BTF), lengths_B.cpu())
        return (logits_BV * self.output_scale).to(features_BTF.device)

    @property
    def recurrent_layers(self) -> list[IntegerLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def recurrent_layer_bytes(self) -> list[int]:
        """Bytes of each recurrent layer, all its directions: weights 1, biases 4, LMU's A and B 2, without scales."""
        return [layer.stored_bytes() for layer in self.recurrent_layers]

    def model_bytes(self) -> int:
        """Everything a device stores: weights, biases, multipliers, shifts, scales and the tables in use."""
        stored = sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
        if any(layer.uses_tanh_table for layer in self.recurrent_layers):
            stored += rules.TANH_TABLE.numel() * rules.TANH_TABLE.element_size()
        if self.pooling.score is not None:
            stored += rules.EXP2_TABLE.numel() * rules.EXP2_TABLE.element_size()
        return stored

    def accumulator_bounds(self) -> dict[str, int]:
        """Proven largest magnitude of each int32 accumulator, rounding terms included."""
        bounds = {} if self.front is None else {"front": self.front.filters.product.bound()}
        for number, layer in enumerate(self.recurrent_layers):
            bounds |= {f"layers.{number}.{name}": bound for name, bound in layer.accumulator_bounds().items()}
        bounds |= {f"pooling.{name}": bound for name, bound in self.pooling.accumulator_bounds().items()}
        return bounds | {"output": self.output.bound()}

    def spectral_radii(self) -> dict[str, float]:
        """Of each linear memory as rounded, by its layer's name."""
        return {
            f"layers.{number}.{name}": radius
            for number, layer in enumerate(self.recurrent_layers)
            for name, radius in layer.spectral_radii().items()
        }

    def covered(self) -> list[str]:
        """The parts computed in integers."""
        front = [] if self.front is None else ["front"]
        return [*front, *(f"layers.{number}" for number in range(len(self.layers))), "pooling", "output"]

    def float_parts(self) -> list[str]:
        """The parts that stay float: none."""
        return []

    def check(self) -> None:
        """That no accumulator can overflow, no memory grows, and every requantisation is within the rules."""
        for name, module in self.named_modules():
            if isinstance(module, Requantization | IntegerLSTM | IntegerLMU) and not module.is_within_rules():
                raise ValueError(f"{name} of the integer model holds a multiplier or a shift outside the integer rules")
        for name in ("input_scale", "output_scale"):
            scale = self.get_buffer(name)
            if not (torch.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"{name} of the integer model is not positive")
        for name, bound in self.accumulator_bounds().items():
            if bound > rules.ACCUMULATOR_LIMIT:
                raise ValueError(f"the accumulator {name} may reach {bound}, int32 ends at {rules.ACCUMULATOR_LIMIT}")
        for name, radius in self.spectral_radii().items():
            if not radius < 1:
                raise ValueError(f"{name} has spectral radius {radius:.4f} in int16: change model.order or model.theta")

    def load(self, network: ClassificationNetwork, ranges: Ranges) -> None:
        """Takes over a float network of the same topology whose values have these ranges."""
        encoder = network.encoder
        scale = scheme.code_scale(ranges["input"], INT8_LIMIT).float().double()  # as it is stored
        self.input_scale.copy_(scale)
        if self.front is not None and encoder.front is not None:
            front_scale = scheme.code_scale(ranges["front"], INT8_LIMIT)
            self.front.load(encoder.front, scale, front_scale)
            scale = front_scale
        for number, (layer, trained) in enumerate(zip(self.recurrent_layers, encoder.recurrent_layers, strict=True)):
            state_scale = layer.load(trained, f"layers.{number}", ranges, scale)
            scale = scheme.code_scale(ranges[f"layers.{number}.output"], INT8_LIMIT)
            if number < len(self.narrowings):
                self.narrowings[number].load(state_scale, scale)  # type: ignore[operator]
        self.pooling.load(network.score, state_scale, scale)
        scale = scheme.code_scale(ranges["pooled"], INT8_LIMIT)
        self.pooled.load(state_scale, scale)
        weight_VH, bias_V = network.output.weight.double().cpu() * scale, network.output.bias.double().cpu()
        scale_V = scheme.row_scale(weight_VH, bias_V, common=True)
        self.output.load(weight_VH, bias_V, scale_V)
        self.output_scale.copy_(scale_V[0])


@torch.no_grad()
def convert(network: ClassificationNetwork, batches: Iterable[Batch]) -> IntegerNetwork:
    """The integer form of a trained network, its ranges calibrated on these training batches; `network` is unchanged."""
    converted = IntegerNetwork(network)
    converted.load(network, observe(network, batches))
    converted.check()
    return converted


def from_state(network: ClassificationNetwork, state: Mapping[str, torch.Tensor]) -> IntegerNetwork:
    """The integer network whose `state_dict()` is `state`; `network` gives its topology only."""
    built = IntegerNetwork(network)
    expected = built.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"the integer model lacks {', '.join(missing)}")
    if unknown := sorted(state.keys() - expected.keys()):
        raise ValueError(f"the integer model holds unknown entries {', '.join(unknown)}")
    for name, wanted in expected.items():
        given: Any = state[name]
        if not isinstance(given, torch.Tensor) or given.dtype != wanted.dtype or given.shape != wanted.shape:
            found = f"{given.dtype} {list(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
            raise ValueError(f"{name} of the integer model is {found}, expected {wanted.dtype} {list(wanted.shape)}")
    built.load_state_dict(dict(state))
    built.check()
    return built


def _integer_layer(layer: RecurrentLayer) -> IntegerLayer:
    if isinstance(layer, Bidirectional):
        return IntegerBidirectional(_integer_layer(layer.forward_layer), _integer_layer(layer.backward_layer))
    if isinstance(layer, GRU):
        return IntegerGRU(layer.input_size, layer.hidden_size)
    if isinstance(layer, LSTM):
        return IntegerLSTM(layer.input_size, layer.hidden_size)
    if isinstance(layer, LMU):
        return IntegerLMU(layer)
    raise ValueError(f"the integer engine knows gru, lstm and lmu, not {layer.name!r}: change model")
