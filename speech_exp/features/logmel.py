"""Logarithm of mel band power, on the device for batches of waveforms, and of one waveform for prediction and figures.

Frames are centred on their times: a waveform of N samples has 1 + N // hop frames, frame t covers the samples around
t * hop, and silence surrounds the waveform. So a frame never depends on how far a batch is padded.

Shape letters: B batch, N samples, T frames, K frequency bins, F mel bands.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from speech_exp.features.mfcc import FeatureExtractor


class LogMelTransform(nn.Module):
    """Natural logarithm of (mel band power + `floor`) of padded waveforms."""

    window: torch.Tensor
    bank_KF: torch.Tensor

    def __init__(self, window: torch.Tensor, hop: int, n_fft: int, bank_KF: torch.Tensor, floor: float) -> None:
        super().__init__()
        self.hop, self.n_fft, self.floor = hop, n_fft, floor
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bank_KF", bank_KF, persistent=False)

    def num_frames(self, samples: int) -> int:
        """Frames of a waveform of this many samples."""
        return 1 + samples // self.hop

    @torch.no_grad()
    def forward(self, waveform_BN: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms (B, N) float32 and their samples (B,) to features (B, T, F), zero behind each length, and frames (B,).

        What lies behind a waveform's length in `waveform_BN` has no influence.
        """
        frames_B = 1 + lengths_B // self.hop
        sample_N = torch.arange(waveform_BN.shape[1], device=waveform_BN.device)
        waveform_BN = waveform_BN.where(sample_N < lengths_B.unsqueeze(1), 0.0)
        with torch.autocast(waveform_BN.device.type, enabled=False):  # half precision would not hold a power spectrum
            features_BTF = self.from_power(self.power(waveform_BN, self.hop))
        frame_T = torch.arange(features_BTF.shape[1], device=waveform_BN.device)
        return features_BTF.where((frame_T < frames_B.unsqueeze(1)).unsqueeze(-1), 0.0), frames_B

    def power(self, waveform_BN: torch.Tensor, hop: int) -> torch.Tensor:
        """Power spectrogram (B, T, K) with a frame every `hop` samples."""
        spectrum_BKT = torch.stft(
            waveform_BN, self.n_fft, hop, len(self.window), self.window, pad_mode="constant", return_complex=True
        )
        return spectrum_BKT.abs().square().transpose(1, 2)

    def from_power(self, power_BTK: torch.Tensor) -> torch.Tensor:
        return (power_BTK @ self.bank_KF + self.floor).log()


class LogMel(FeatureExtractor):
    """Log-mel features with triangles on Slaney's mel scale, which leaves no band empty where they are narrow.

    Args:
        f_max_hz: upper edge of the highest band; None: half of the sample rate.
        floor: added to each band's power, where full scale is 1. With a window of 200 samples, 1e-6 is the power of white
            noise 79 dB below full scale in a band one bin wide: below the background of recordings, above rounding to 16 bit.
    """

    pad_mode = "constant"

    def __init__(
        self,
        sample_rate_hz: int,
        window_s: float,
        hop_s: float,
        n_fft: int,
        n_mels: int,
        f_min_hz: float,
        f_max_hz: float | None,
        floor: float,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        from torchaudio.functional import melscale_fbanks

        nyquist_hz = sample_rate_hz / 2
        top_hz = nyquist_hz if f_max_hz is None else f_max_hz
        if not 0 <= f_min_hz < top_hz <= nyquist_hz:
            raise ValueError(
                f"features.extractor.f_min_hz={f_min_hz} and f_max_hz={f_max_hz}: expected 0 <= f_min_hz < f_max_hz <= "
                f"{nyquist_hz:g}, half of the sample rate, change features.extractor.f_max_hz"
            )
        if not (floor > 0 and math.isfinite(floor)):
            raise ValueError(
                f"features.extractor.floor={floor}: expected a number above 0, change features.extractor.floor"
            )
        bank_KF = melscale_fbanks(n_fft // 2 + 1, f_min_hz, top_hz, n_mels, sample_rate_hz, mel_scale="slaney")
        if empty := int((bank_KF == 0).all(0).sum()):
            raise ValueError(
                f"features.extractor.n_mels={n_mels} leaves {empty} bands between the bins of n_fft={n_fft}: "
                f"lower features.extractor.n_mels or raise features.extractor.n_fft"
            )
        self.feature_names = [f"m{number}" for number in range(n_mels)]
        self.transform = LogMelTransform(torch.hann_window(self.window), self.hop, n_fft, bank_KF, floor)

    def power(self, waveform_N: np.ndarray, hop: int) -> np.ndarray:
        """Power spectrogram (T, K) with a frame every `hop` samples; silence surrounds a waveform of any length."""
        waveform_BN = torch.from_numpy(waveform_N.astype(np.float32)).unsqueeze(0)
        return self.transform.power(waveform_BN, hop)[0].numpy()

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        return self.transform.from_power(torch.from_numpy(power_TK)).numpy()
