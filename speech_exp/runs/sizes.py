"""The sizes of a network that results.json and the terminal show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from speech_exp.objectives.objective import Network
from speech_exp.tasks.storage import Stored


def parameters(network: Network) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def run_size(network: Network, budget_bytes: int | None, stored: Stored) -> dict[str, Any]:
    """Return `size` for results.json; `network` is the float form, `stored` the sizes of the deployable one."""
    return {
        **network.encoder.recurrent_layers[0].sizes(),
        "parameters": parameters(network),
        "budget_bytes": budget_bytes,
        **asdict(stored),
    }


def window_text(network: Network, hop_s: float) -> str:
    """Describe how much of the past an output can depend on, in ms."""
    frames = network.encoder.window_frames()
    if frames is None:
        return "whole recording (a recurrent state has no fixed window)"
    return f"{1000 * frames * hop_s:g} ms (theta {frames:g} frames of {1000 * hop_s:g} ms)"
