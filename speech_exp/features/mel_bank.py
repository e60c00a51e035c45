"""Banks of triangular filters on the mel scale, from settings that are checked first."""

from __future__ import annotations

import warnings
from typing import Literal

import torch


def mel_bank(
    sample_rate_hz: int,
    n_fft: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float | None,
    mel_scale: Literal["htk", "slaney"],
) -> torch.Tensor:
    """Return torchaudio's bank (frequency bins, mel bands); `f_max_hz` None is half of the sample rate.

    Raises ValueError if the frequencies are out of order or above half of the sample rate, or if a band contains no bin.
    """
    from torchaudio.functional import melscale_fbanks

    nyquist_hz = sample_rate_hz / 2
    top_hz = nyquist_hz if f_max_hz is None else f_max_hz
    if not 0 <= f_min_hz < top_hz <= nyquist_hz:
        raise ValueError(
            f"features.extractor.f_min_hz={f_min_hz} and f_max_hz={f_max_hz}: expected 0 <= f_min_hz < f_max_hz <= "
            f"{nyquist_hz:g}, half of the sample rate, change features.extractor.f_max_hz"
        )
    with warnings.catch_warnings():  # torchaudio warns of empty bands, which are an error here
        warnings.simplefilter("ignore", UserWarning)
        bank_KM = melscale_fbanks(n_fft // 2 + 1, f_min_hz, top_hz, n_mels, sample_rate_hz, mel_scale=mel_scale)
    if empty := int((bank_KM == 0).all(0).sum()):
        raise ValueError(
            f"features.extractor.n_mels={n_mels} leaves {empty} bands between the bins of n_fft={n_fft}: "
            f"lower features.extractor.n_mels or raise features.extractor.n_fft"
        )
    return bank_KM
