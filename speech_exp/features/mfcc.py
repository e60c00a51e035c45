"""Mel-frequency cepstral coefficients of one waveform.

All extractors share framing: a Hann window of `window_s` every `hop_s`, frames centred on their times, so N samples give
1 + N // hop frames. Shape letters: N samples, T frames, K frequency bins, M mel bands,
F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

_MAX_LEVEL = 1e9  # far above it the power in float32 is infinite


class FeatureExtractor(ABC):
    """Turns a waveform into features; `feature_names` label them in figures."""

    feature_names: list[str]
    pad_mode: str  # how the waveform is continued for the frames at its ends

    def __init__(self, sample_rate_hz: int, window_s: float, hop_s: float, n_fft: int) -> None:
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
        """Features (T, F) float32; a waveform shorter than a window is extended by silence."""
        self.refuse_impossible(waveform_N)
        return self.from_power(self.power(waveform_N, self.hop))

    def refuse_impossible(self, waveform_N: np.ndarray) -> None:
        """ValueError for samples that are NaN or far beyond any microphone."""
        loudest = np.abs(waveform_N).max(initial=0)
        if not loudest <= _MAX_LEVEL:  # nor NaN
            raise ValueError(
                f"the waveform reaches {loudest:g}, which no microphone gives: expected at most {_MAX_LEVEL:g}, "
                f"where 1 is full scale, replace or remove the recording"
            )

    def power(self, waveform_N: np.ndarray, hop: int) -> np.ndarray:
        """Power spectrogram (T, K) with a frame every `hop` samples."""
        missing = max(0, max(self.window, self.n_fft // 2) + 1 - len(waveform_N))
        padded_N = torch.from_numpy(np.pad(waveform_N, (0, missing)).astype(np.float32))
        window = torch.hann_window(self.window)
        spectrum_KT = torch.stft(
            padded_N, self.n_fft, hop, self.window, window, pad_mode=self.pad_mode, return_complex=True
        )
        return spectrum_KT.abs().square().T.contiguous().numpy()

    @abstractmethod
    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        """Features (T, F) float32 of a power spectrogram."""


class TorchMfcc(FeatureExtractor):
    """torchaudio's MFCC: mel power in decibel (HTK mel scale), orthonormal DCT-II."""

    pad_mode = "reflect"

    def __init__(
        self, sample_rate_hz: int, window_s: float, hop_s: float, n_fft: int, n_mels: int, n_mfcc: int
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        from torchaudio.transforms import MFCC

        self.feature_names = [f"c{number}" for number in range(n_mfcc)]
        self.transform = MFCC(
            sample_rate_hz,
            n_mfcc,
            melkwargs={"n_fft": n_fft, "win_length": self.window, "hop_length": self.hop, "n_mels": n_mels},
        )

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mel_MT = self.transform.MelSpectrogram.mel_scale(torch.from_numpy(power_TK).T)
            return (self.transform.amplitude_to_DB(mel_MT).T @ self.transform.dct_mat).numpy()


class LibrosaMfcc(FeatureExtractor):
    """librosa's MFCC (Slaney mel scale) with first and second differences over time."""

    pad_mode = "constant"

    def __init__(
        self,
        sample_rate_hz: int,
        window_s: float,
        hop_s: float,
        n_fft: int,
        n_mels: int,
        n_mfcc: int,
        delta_window: int,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        self.n_mels, self.n_mfcc, self.delta_window = n_mels, n_mfcc, delta_window
        self.feature_names = [f"{prefix}c{number}" for prefix in ("", "Δ", "ΔΔ") for number in range(n_mfcc)]

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        import librosa

        mel_MT = librosa.feature.melspectrogram(S=power_TK.T, sr=self.sample_rate_hz, n_mels=self.n_mels)
        coefficients_FT = librosa.feature.mfcc(S=librosa.power_to_db(mel_MT), n_mfcc=self.n_mfcc)
        frames = coefficients_FT.shape[1]
        # The slope is fitted over delta_window frames; a shorter recording holds its last frame until there are enough.
        padded_FT = np.pad(coefficients_FT, ((0, 0), (0, max(0, self.delta_window - frames))), mode="edge")
        deltas = [librosa.feature.delta(padded_FT, width=self.delta_window, order=order) for order in (1, 2)]
        return np.concatenate([padded_FT, *deltas])[:, :frames].T.astype(np.float32, order="C")


class DynamicRangeMfcc(FeatureExtractor):
    """MFCC of what stands out of the loudest frame: all that lies more than `range_db` below it counts as silence.

    Noise floors and the level of a recording then hardly differ between speakers and microphones.
    """

    pad_mode = "reflect"

    def __init__(
        self,
        sample_rate_hz: int,
        window_s: float,
        hop_s: float,
        n_fft: int,
        n_mels: int,
        n_mfcc: int,
        f_min_hz: float,
        f_max_hz: float,
        range_db: float,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        from torchaudio.functional import create_dct, melscale_fbanks

        self.feature_names = [f"c{number}" for number in range(n_mfcc)]
        bank_KM = melscale_fbanks(n_fft // 2 + 1, f_min_hz, f_max_hz, n_mels, sample_rate_hz)
        self.bank_KM = (bank_KM / bank_KM.sum(0)).numpy()
        self.dct_MF = create_dct(n_mfcc, n_mels, "ortho").numpy()
        self.floor = 10 ** (-range_db / 10) / n_mels

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        mel_TM = power_TK @ self.bank_KM
        loudest = max(
            float(mel_TM.sum(1).max()), float(np.finfo(np.float32).tiny)
        )  # of silence the logarithm stays finite
        return (np.log(mel_TM + self.floor * loudest) @ self.dct_MF).astype(np.float32)
