"""Calibration: the largest magnitudes in a float network on training batches, which determine the scales of all codes."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from speech_exp.data.batches import Utterances
from speech_exp.features.batch import Batch
from speech_exp.models.lmu import LMU
from speech_exp.objectives.objective import Network
from speech_exp.tasks.integer.cells import Ranges
from speech_exp.tasks.integer.equations import Product, Scale
from speech_exp.tasks.integer.rounded import rounded

CALIBRATION_BATCH = 256


def calibration_batches(train: Utterances) -> Iterable[Batch]:
    """Return batches of the original training recordings, without augmentation."""
    return train.sample(CALIBRATION_BATCH)


class RangeRecorder:
    """Rounds nothing and records the largest magnitude of each feature at each point."""

    def __init__(self) -> None:
        self.ranges: Ranges = {}

    def watch(self, name: str, x: torch.Tensor) -> None:
        found_X = x.detach().abs().amax(0)
        self.ranges[name] = torch.maximum(self.ranges[name], found_X) if name in self.ranges else found_X

    def codes(self, x: torch.Tensor, scale: Scale, limit: int) -> torch.Tensor:
        return x

    def product(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, scale_I: Scale, common: bool = False
    ) -> Product:
        return lambda x: F.linear(x, weight_OI, bias_O)

    def narrow_scale(self, name: str) -> Scale:
        return 1.0

    state_scale = common_scale = cell_scale = narrow_scale

    def state_matrices(self, layer: LMU) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.memory.A, layer.memory.B


@torch.no_grad()
def observe(network: Network, batches: Iterable[Batch]) -> Ranges:
    """Return the ranges at the named points, float32 on the CPU; the network is unchanged."""
    still = copy.deepcopy(network).float().eval()
    recorder = RangeRecorder()
    device, watched = still.output.weight.device, rounded(still, recorder)
    for batch in batches:
        watched(batch.features_BTF.to(device), batch.lengths_B.to(device))
    if not recorder.ranges:
        raise ValueError("calibration got no batch: give at least one training batch")
    return {name: range_X.cpu() for name, range_X in recorder.ranges.items()}
