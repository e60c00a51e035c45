"""Integer-only inference of a classification network: encoder, pooling and output layer.

Shape letters: B batch, T frames, F features, D layer input, H encoder output, V classes.
"""

from __future__ import annotations

import torch
from torch import nn

from speech_exp.models.encoder import ConvolutionFront
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer import rules, scheme
from speech_exp.tasks.integer.cells import IntegerLayer, Ranges
from speech_exp.tasks.integer.equations import folded_front, has_integer_parts_only, windows
from speech_exp.tasks.integer.form import IntegerForm, IntegerPart, integer_layer
from speech_exp.tasks.integer.parts import IntegerLinear, IntegerProduct, Requantization
from speech_exp.tasks.integer.pooling import IntegerPooling
from speech_exp.tasks.integer.rules import INT8_LIMIT, saturate8


class IntegerFront(nn.Module):
    """Convolution with batch normalisation folded in, then ReLU: int8 codes to int8 codes, 0 in the padding."""

    def __init__(self, front: ConvolutionFront) -> None:
        """Build the front; `front` only provides the topology."""
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


class IntegerNetwork(IntegerForm):
    """A classifier over the compact encoder: int8 feature codes to int32 logits with one common scale.

    Between layers, int16 states are converted to int8 codes by requantisation and saturate8. Pooling works on int16 states, and
    its result is converted to int8 for the output layer.
    """

    constrained = ("convolution", "recurrent", "pooling", "linear")
    promise = "INT8 weights, integers only from input codes to logits"
    input_scale: torch.Tensor
    output_scale: torch.Tensor

    def __init__(self, network: Network) -> None:
        """Build the form; `network` only provides the topology, and all codes are 0 until `load` or `load_state_dict`."""
        super().__init__()
        assert has_integer_parts_only(network), "others are a MixedNetwork"
        encoder = network.encoder
        layers = [integer_layer(layer) for layer in encoder.recurrent_layers]
        self.register_buffer("input_scale", torch.ones(encoder.input_size))
        self.register_buffer("output_scale", torch.ones(()))
        self.front = None if encoder.front is None else IntegerFront(encoder.front)
        self.layers = nn.ModuleList(layers)
        self.narrowings = nn.ModuleList([Requantization(layer.output_size) for layer in layers[:-1]])
        self.pooling = IntegerPooling(network.pooling, encoder.output_size)
        self.pooled = Requantization(encoder.output_size)
        self.output = IntegerProduct(encoder.output_size, network.output.out_features, bias=True)

    def quantize(self, features_BTF: torch.Tensor) -> torch.Tensor:
        """Return int8 codes: saturate8 of the nearest integer to feature / scale, with one scale per feature."""
        return scheme.quantized(features_BTF.cpu(), self.input_scale)

    def integer_logits(self, codes_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return int32 logits (B, V) from int8 codes and int64 lengths of at least 1."""
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
        """Return float32 logits (B, V) on the device of the features."""
        logits_BV = self.integer_logits(self.quantize(features_BTF), lengths_B.cpu())
        return (logits_BV * self.output_scale).to(features_BTF.device)

    def integer_layers(self) -> dict[str, IntegerLayer]:
        return {f"layers.{number}": layer for number, layer in enumerate(self.recurrent_layers)}

    @property
    def recurrent_layers(self) -> list[IntegerLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def integer_parts(self) -> dict[str, IntegerPart]:
        return {"network": IntegerPart(self.integer_logits, self.input_scale.numel())}

    def tables(self) -> tuple[torch.Tensor, ...]:
        return super().tables() + ((rules.EXP2_TABLE,) if self.pooling.score is not None else ())

    def accumulator_bounds(self) -> dict[str, int]:
        front = {} if self.front is None else {"front": self.front.filters.product.bound()}
        pooling = {f"pooling.{name}": bound for name, bound in self.pooling.accumulator_bounds().items()}
        return {**front, **super().accumulator_bounds(), **pooling, "output": self.output.bound()}

    def covered(self) -> list[str]:
        front = [] if self.front is None else ["front"]
        return [*front, *self.integer_layers(), "pooling", "output"]

    def float_parts(self) -> list[str]:
        return []

    def load(self, network: Network, ranges: Ranges) -> None:
        encoder = network.encoder
        scale = scheme.code_scale(ranges["input"], INT8_LIMIT).float().double()  # as stored
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
