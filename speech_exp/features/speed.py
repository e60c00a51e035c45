"""Speed perturbation of waveforms in a batch: tempo and pitch change together (Ko et al. 2015)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

_Samples = TypeVar("_Samples", torch.Tensor, np.ndarray)

_STEPS = 100  # speeds are multiples of 1 / _STEPS


def check_speeds(speeds: object) -> tuple[float, ...]:
    """Return the speeds of `augment.speeds`, or 1.0 alone if there are none; ValueError for anything but supported speeds."""
    listed = [] if speeds is None else speeds
    if not isinstance(listed, list | tuple) or not all(map(_is_supported, listed)):
        raise ValueError(
            f"augment.speeds={speeds}: expected null or a list of numbers from 0.5 to 2 with at most two decimals, change "
            f"augment.speeds"
        )
    return tuple(listed) or (1.0,)


def _is_supported(speed: object) -> bool:
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        return False
    return 0.5 <= speed <= 2 and abs(speed * _STEPS - round(speed * _STEPS)) <= 1e-6


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
