"""Speed perturbation of waveforms in a batch: tempo and pitch change together (Ko et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

_Samples = TypeVar("_Samples", torch.Tensor, np.ndarray)

_STEPS = 100  # speeds are multiples of 1 / _STEPS


def check_speeds(speeds: Sequence[float]) -> tuple[float, ...]:
    """Return the speeds of `augment.speeds`, or 1.0 alone if there are none; ValueError for speeds that are not supported."""
    for speed in speeds:
        if not 0.5 <= speed <= 2 or abs(speed * _STEPS - round(speed * _STEPS)) > 1e-6:
            raise ValueError(
                f"augment.speeds={list(speeds)}: expected numbers from 0.5 to 2 with two digits behind the point, change augment.speeds"
            )
    return tuple(speeds) or (1.0,)


def change_speed(waveform_BN: torch.Tensor, lengths_B: torch.Tensor, speed: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return waveforms (B, N) and their samples (B,) as if played `speed` times as fast, resampled with a windowed sinc."""
    if speed == 1:
        return waveform_BN, lengths_B
    from torchaudio.functional import resample

    faster = round(speed * _STEPS)
    return resample(waveform_BN, faster, _STEPS), samples_after(lengths_B, speed)


def samples_after(samples: _Samples, speed: float) -> _Samples:
    """Return the number of samples after `change_speed`: samples / speed, rounded up."""
    faster = round(speed * _STEPS)
    return -(-samples * _STEPS // faster)
