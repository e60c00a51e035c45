"""Sizes of a network as reports state them."""

from __future__ import annotations

from typing import Any

from speech_exp.objectives.classification import ClassificationNetwork

_FLOAT_BYTES = 4


def network_size(network: ClassificationNetwork, budget_bytes: int | None) -> dict[str, Any]:
    """`size` of results.json for a network stored in float32."""
    layers = network.encoder.recurrent_layers
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # What a checkpoint keeps as floats: parameters, the LMU's A and B, statistics of batch normalisation.
    stored = sum(value.numel() for value in network.state_dict().values() if value.is_floating_point())
    model_bytes = _FLOAT_BYTES * stored
    return {
        "hidden_size": layers[0].hidden_size,
        "parameters": parameters,
        "recurrent_layer_bytes": [layer.size().bytes(_FLOAT_BYTES) for layer in layers],
        "budget_bytes": budget_bytes,
        "model_bytes": model_bytes,
        "bits_per_weight": 8.0 * _FLOAT_BYTES,
        "packed_bytes": model_bytes,
    }


def window_text(network: ClassificationNetwork, hop_s: float) -> str:
    """What of the past an output can depend on, in ms."""
    frames = network.encoder.window_frames()
    if frames is None:
        return "whole recording (a recurrent state has no fixed window)"
    return f"{1000 * frames * hop_s:g} ms (theta {frames:g} frames of {1000 * hop_s:g} ms)"
