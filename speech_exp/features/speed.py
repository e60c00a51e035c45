"""Speed of waveforms in the batch: tempo and pitch change together (Ko et al. 2015)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

_Samples = TypeVar("_Samples", torch.Tensor, np.ndarray)

_STEPS = 100  # speeds are multiples of 1 / _STEPS


def check_speeds(speeds: list[float] | None) -> list[float]:
    """The speeds of `augment.speeds`; 1 alone where there are none."""
    for speed in speeds or ():
        if not 0.5 <= speed <= 2 or abs(speed * _STEPS - round(speed * _STEPS)) > 1e-6:
            raise ValueError(
                f"augment.speeds={speeds}: expected numbers from 0.5 to 2 with two digits behind the point, change augment.speeds"
            )
    return list(speeds or [1.0])


def change_speed(waveform_BN: torch.Tensor, lengths_B: torch.Tensor, speed: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms (B, N) and samples (B,) as if spoken `speed` times as fast, resampled by a windowed sinc."""
    if speed == 1:
        return waveform_BN, lengths_B
    from torchaudio.functional import resample

    faster = round(speed * _STEPS)
    return resample(waveform_BN, faster, _STEPS), samples_after(lengths_B, speed)


def samples_after(samples: _Samples, speed: float) -> _Samples:
    """Samples that `change_speed` leaves: samples / speed, rounded up."""
    faster = round(speed * _STEPS)
    return -(-samples * _STEPS // faster)
