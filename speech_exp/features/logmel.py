"""Log-mel features of batches on the device, of single waveforms, and of a waveform that arrives in pieces.

Frames are centred on their times: a waveform of N samples has 1 + N // hop frames, frame t covers the samples around
t * hop, and the waveform is surrounded by silence. A frame therefore never depends on the padding of the batch.

Shape letters: B batch, N samples, T frames, W window, K frequency bins, F mel bands.
"""

from __future__ import annotations

import numpy as np
import torch

from speech_exp.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from speech_exp.features.extractor import BatchTransform, FeatureExtractor
from speech_exp.features.mel_bank import mel_bank


class LogMelTransform(BatchTransform):
    """A module that computes the natural logarithm of (mel band power + `floor`) of padded waveforms."""

    window: torch.Tensor
    bank_KF: torch.Tensor

    def __init__(
        self, window: torch.Tensor, hop: int, n_fft: PositiveInt, bank_KF: torch.Tensor, floor: PositiveFloat
    ) -> None:
        super().__init__()
        self.hop, self.n_fft, self.floor = hop, n_fft, floor
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bank_KF", bank_KF, persistent=False)

    @torch.no_grad()
    def forward(self, waveform_BN: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames_B = 1 + lengths_B // self.hop
        sample_N = torch.arange(waveform_BN.shape[1], device=waveform_BN.device)
        waveform_BN = waveform_BN.where(sample_N < lengths_B.unsqueeze(1), 0.0)
        with torch.autocast(waveform_BN.device.type, enabled=False):  # half precision cannot represent power
            features_BTF = self.from_power(self.power(waveform_BN, self.hop))
        frame_T = torch.arange(features_BTF.shape[1], device=waveform_BN.device)
        return features_BTF.where((frame_T < frames_B.unsqueeze(1)).unsqueeze(-1), 0.0), frames_B

    def power(self, waveform_BN: torch.Tensor, hop: int) -> torch.Tensor:
        """Return the power spectrogram (B, T, K) with a frame every `hop` samples."""
        spectrum_BKT = torch.stft(
            waveform_BN, self.n_fft, hop, len(self.window), self.window, pad_mode="constant", return_complex=True
        )
        return spectrum_BKT.abs().square().transpose(1, 2)

    def from_power(self, power_BTK: torch.Tensor) -> torch.Tensor:
        return (power_BTK @ self.bank_KF + self.floor).log()


class LogMel(FeatureExtractor):
    """Log-mel features with triangular filters on Slaney's mel scale, which leaves no band empty where they are narrow.

    Args:
        f_max_hz: upper edge of the highest band; None: half the sample rate.
        floor: added to each band's power, where full scale is 1. With a window of 200 samples, 1e-6 is the power of white
            noise at -79 dB full scale in a band one bin wide: below the background of recordings, above 16-bit rounding.
    """

    pad_mode = "constant"

    def __init__(
        self,
        sample_rate_hz: PositiveInt,
        window_s: PositiveFloat,
        hop_s: PositiveFloat,
        n_fft: PositiveInt,
        n_mels: PositiveInt,
        f_min_hz: NonNegativeFloat,
        f_max_hz: float | None,
        floor: PositiveFloat,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        bank_KF = mel_bank(sample_rate_hz, n_fft, n_mels, f_min_hz, f_max_hz, "slaney")
        self.feature_names = [f"m{number}" for number in range(n_mels)]
        self.batch_transform: LogMelTransform = LogMelTransform(
            torch.hann_window(self.window), self.hop, n_fft, bank_KF, floor
        )

    def stream(self) -> StreamingLogMel:
        return StreamingLogMel(self)

    def power(self, waveform_N: np.ndarray, hop: int) -> np.ndarray:
        """Return the power spectrogram (T, K) with a frame every `hop` samples; a waveform of any length is allowed."""
        waveform_BN = torch.from_numpy(waveform_N.astype(np.float32)).unsqueeze(0)
        return self.batch_transform.power(waveform_BN, hop)[0].numpy()

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        return self.batch_transform.from_power(torch.from_numpy(power_TK)).numpy()


class StreamingLogMel:
    """A streaming `LogMel` that returns each frame as soon as its window is complete: half a window after t * hop.

    It stores less than one window of the waveform. The result equals `LogMel` up to rounding, because the zeros that pad a
    window to n_fft only shift the phase.
    """

    def __init__(self, extractor: LogMel) -> None:
        self.extractor = extractor
        self._samples = self._frames = 0
        # Silence before the first sample, as much as the window of frame 0 covers.
        before = extractor.n_fft // 2 - (extractor.n_fft - extractor.window) // 2
        self._waiting_N = torch.zeros(before)

    def push(self, samples_N: np.ndarray) -> torch.Tensor:
        """Add any number of samples and return the features (T, F) of the frames that they complete."""
        self.extractor.check_level(samples_N)
        self._samples += len(samples_N)
        return self._complete(torch.from_numpy(samples_N.astype(np.float32)))

    def finish(self) -> torch.Tensor:
        """Return the features (T, F) of the last frames, with silence after the last sample; ends the stream."""
        missing = self.extractor.batch_transform.num_frames(self._samples) - self._frames
        needed = self.extractor.window + (missing - 1) * self.extractor.hop if missing else 0
        return self._complete(torch.zeros(max(0, needed - len(self._waiting_N))))

    def _complete(self, samples_N: torch.Tensor) -> torch.Tensor:
        window, hop = self.extractor.window, self.extractor.hop
        waiting_N = torch.cat([self._waiting_N, samples_N])
        frames = max(0, 1 + (len(waiting_N) - window) // hop)
        self._frames += frames
        self._waiting_N = waiting_N[frames * hop :].clone()
        if not frames:
            return torch.zeros(0, self.extractor.num_features)
        framed_TW = waiting_N.unfold(0, window, hop) * self.extractor.batch_transform.window
        power_TK = torch.fft.rfft(framed_TW, self.extractor.n_fft).abs().square()
        return self.extractor.batch_transform.from_power(power_TK)
