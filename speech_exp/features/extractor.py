"""The base class of all feature extractors, and the interfaces of their batch and streaming forms.

All extractors use the same framing: a Hann window of `window_s` every `hop_s`, with frames centred on their times, so N
samples give 1 + N // hop frames.

Shape letters: B batch, N samples, T frames, K frequency bins, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from torch import nn

from speech_exp.bounds import PositiveFloat, PositiveInt

_MAX_LEVEL = 1e9  # far above this the power in float32 is infinite


class BatchTransform(nn.Module, ABC):
    """A module that computes the features of a batch of waveforms on its device; `hop` is in samples."""

    hop: int

    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a waveform with this many samples."""
        return 1 + samples // self.hop

    @abstractmethod
    def forward(self, waveform_BN: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map waveforms (B, N) float32 and their samples (B,) to features (B, T, F), zero in the padding, and frames (B,).

        The content of the padding in `waveform_BN` has no influence.
        """


class ExtractorStream(Protocol):
    """The features of one waveform that arrives in pieces, equal to those of the whole waveform up to rounding."""

    def push(self, samples_N: np.ndarray) -> torch.Tensor:
        """Add any number of samples and return the features (T, F) of the frames that they complete."""

    def finish(self) -> torch.Tensor:
        """Return the features (T, F) of the last frames; ends the stream."""


class FeatureExtractor(ABC):
    """A callable that turns a waveform into features; `feature_names` label them in figures."""

    feature_names: list[str]
    pad_mode: str  # how the waveform is extended for the frames at its ends
    batch_transform: BatchTransform | None = None  # the same features for batches, where the extractor has this form

    def __init__(
        self, sample_rate_hz: PositiveInt, window_s: PositiveFloat, hop_s: PositiveFloat, n_fft: PositiveInt
    ) -> None:
        self.sample_rate_hz, self.hop_s, self.n_fft = sample_rate_hz, hop_s, n_fft
        self.window, self.hop = round(window_s * sample_rate_hz), round(hop_s * sample_rate_hz)
        if not 0 < self.hop <= self.window:
            raise ValueError(
                f"features.extractor.window_s={window_s} and features.extractor.hop_s={hop_s} give a window of {self.window} "
                f"and a hop of {self.hop} samples: expected 0 < hop <= window, change features.extractor.hop_s"
            )
        if n_fft < self.window:
            raise ValueError(
                f"features.extractor.n_fft={n_fft} is less than the window of {self.window} samples: "
                f"expected at least that many, change features.extractor.n_fft"
            )

    @property
    def num_features(self) -> int:
        return len(self.feature_names)

    def __call__(self, waveform_N: np.ndarray) -> np.ndarray:
        """Return features (T, F) float32; a waveform shorter than a window is extended with silence."""
        self.check_level(waveform_N)
        return self.from_power(self.power(waveform_N, self.hop))

    def stream(self) -> ExtractorStream:
        """Start a stream; ValueError if these features need the whole utterance."""
        raise ValueError(
            f"the features of {type(self).__name__} need the whole utterance and cannot stream: leave streaming out, or train "
            f"with features=logmel40"
        )

    def check_level(self, waveform_N: np.ndarray) -> None:
        """Raise a ValueError if samples are NaN or far beyond full scale."""
        loudest = np.abs(waveform_N).max(initial=0)
        if not loudest <= _MAX_LEVEL:  # written this way to reject NaN too
            raise ValueError(
                f"the waveform reaches {loudest:g}, beyond the range of any microphone: expected at most {_MAX_LEVEL:g}, "
                f"where 1 is full scale, replace or remove the recording"
            )

    def power(self, waveform_N: np.ndarray, hop: int) -> np.ndarray:
        """Return the power spectrogram (T, K) with a frame every `hop` samples."""
        missing = max(0, max(self.window, self.n_fft // 2) + 1 - len(waveform_N))
        padded_N = torch.from_numpy(np.pad(waveform_N, (0, missing)).astype(np.float32))
        window = torch.hann_window(self.window)
        spectrum_KT = torch.stft(
            padded_N, self.n_fft, hop, self.window, window, pad_mode=self.pad_mode, return_complex=True
        )
        return spectrum_KT.abs().square().T.contiguous().numpy()

    @abstractmethod
    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        """Return the features (T, F) float32 of a power spectrogram."""
