"""Sizes of a network as reports state them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from speech_exp.objectives.objective import Network
from speech_exp.tasks.task import Task


def run_size(network: Network, task: Task, deployed: nn.Module) -> dict[str, Any]:
    """`size` of results.json: `network` is the float form, `deployed` what the task made of it."""
    stored = task.stored(deployed)
    return {
        "hidden_size": network.encoder.recurrent_layers[0].hidden_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "budget_bytes": task.budget_bytes,
        **asdict(stored),
    }


def window_text(network: Network, hop_s: float) -> str:
    """What of the past an output can depend on, in ms."""
    frames = network.encoder.window_frames()
    if frames is None:
        return "whole recording (a recurrent state has no fixed window)"
    return f"{1000 * frames * hop_s:g} ms (theta {frames:g} frames of {1000 * hop_s:g} ms)"
