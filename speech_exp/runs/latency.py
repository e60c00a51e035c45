"""Measure the time of one utterance through the network at batch size 1."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from speech_exp.data.batches import Utterances
from speech_exp.objectives.objective import device_of

_UTTERANCES = 100
_WARM_UP = 10


@torch.no_grad()
def latency_ms(network: nn.Module, part: Utterances) -> dict[str, float | str]:
    """Return mean and 95th percentile over up to 100 utterances, for the network alone on its device, without features."""
    network.eval()
    device = device_of(network)
    part = part.to(device)
    batches = [batch for batch, _ in zip(part.in_order(1), range(_UTTERANCES), strict=False)]
    times_ms = []
    for batch in batches[:_WARM_UP] + batches:
        _wait(device)
        started = time.perf_counter()
        network(batch.features_BTF, batch.lengths_B)
        _wait(device)
        times_ms.append(1000 * (time.perf_counter() - started))
    times_ms = times_ms[-len(batches) :]
    return {
        "mean": float(np.mean(times_ms)),
        "p95": float(np.percentile(times_ms, 95)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
