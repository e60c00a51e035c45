"""Mel-frequency cepstral coefficients of one waveform.

Shape letters: N samples, T frames, K frequency bins, M mel bands, F features.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from speech_exp.bounds import AtLeast, NonNegativeFloat, Odd, PositiveFloat, PositiveInt
from speech_exp.features.extractor import FeatureExtractor
from speech_exp.features.mel_bank import mel_bank


class TorchMfcc(FeatureExtractor):
    """torchaudio's MFCC: mel power in decibels (HTK mel scale), orthonormal DCT-II."""

    pad_mode = "reflect"

    def __init__(
        self,
        sample_rate_hz: PositiveInt,
        window_s: PositiveFloat,
        hop_s: PositiveFloat,
        n_fft: PositiveInt,
        n_mels: PositiveInt,
        n_mfcc: PositiveInt,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        _check_coefficients(n_mfcc, n_mels)
        from torchaudio.transforms import MFCC

        self.feature_names = [f"c{number}" for number in range(n_mfcc)]
        self._mfcc = MFCC(
            sample_rate_hz,
            n_mfcc,
            melkwargs={"n_fft": n_fft, "win_length": self.window, "hop_length": self.hop, "n_mels": n_mels},
        )

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mel_MT = self._mfcc.MelSpectrogram.mel_scale(torch.from_numpy(power_TK).T)
            return (self._mfcc.amplitude_to_DB(mel_MT).T @ self._mfcc.dct_mat).numpy()


class LibrosaMfcc(FeatureExtractor):
    """librosa's MFCC (Slaney mel scale) with first and second differences over time."""

    pad_mode = "constant"

    def __init__(
        self,
        sample_rate_hz: PositiveInt,
        window_s: PositiveFloat,
        hop_s: PositiveFloat,
        n_fft: PositiveInt,
        n_mels: PositiveInt,
        n_mfcc: PositiveInt,
        delta_window: Annotated[int, AtLeast(3), Odd()],
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        _check_coefficients(n_mfcc, n_mels)
        self.n_mels, self.n_mfcc, self.delta_window = n_mels, n_mfcc, delta_window
        self.feature_names = [f"{prefix}c{number}" for prefix in ("", "Δ", "ΔΔ") for number in range(n_mfcc)]

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        import librosa

        mel_MT = librosa.feature.melspectrogram(S=power_TK.T, sr=self.sample_rate_hz, n_mels=self.n_mels)
        coefficients_FT = librosa.feature.mfcc(S=librosa.power_to_db(mel_MT), n_mfcc=self.n_mfcc)
        frames = coefficients_FT.shape[1]
        # The slope is fitted over delta_window frames; a shorter recording repeats its last frame until there are enough.
        padded_FT = np.pad(coefficients_FT, ((0, 0), (0, max(0, self.delta_window - frames))), mode="edge")
        deltas = [librosa.feature.delta(padded_FT, width=self.delta_window, order=order) for order in (1, 2)]
        return np.concatenate([padded_FT, *deltas])[:, :frames].T.astype(np.float32, order="C")


class DynamicRangeMfcc(FeatureExtractor):
    """MFCC with a limited dynamic range: anything more than `range_db` below the loudest frame counts as silence.

    This largely removes differences in noise floor and recording level between speakers and microphones.
    """

    pad_mode = "reflect"

    def __init__(
        self,
        sample_rate_hz: PositiveInt,
        window_s: PositiveFloat,
        hop_s: PositiveFloat,
        n_fft: PositiveInt,
        n_mels: PositiveInt,
        n_mfcc: PositiveInt,
        f_min_hz: NonNegativeFloat,
        f_max_hz: float,
        range_db: PositiveFloat,
    ) -> None:
        super().__init__(sample_rate_hz, window_s, hop_s, n_fft)
        _check_coefficients(n_mfcc, n_mels)
        from torchaudio.functional import create_dct

        self.feature_names = [f"c{number}" for number in range(n_mfcc)]
        bank_KM = mel_bank(sample_rate_hz, n_fft, n_mels, f_min_hz, f_max_hz, "htk")
        self.bank_KM = (bank_KM / bank_KM.sum(0)).numpy()
        self.dct_MF = create_dct(n_mfcc, n_mels, "ortho").numpy()
        self.floor = 10 ** (-range_db / 10) / n_mels

    def from_power(self, power_TK: np.ndarray) -> np.ndarray:
        mel_TM = power_TK @ self.bank_KM
        loudest = max(
            float(mel_TM.sum(1).max()), float(np.finfo(np.float32).tiny)
        )  # keeps the logarithm of silence finite
        return (np.log(mel_TM + self.floor * loudest) @ self.dct_MF).astype(np.float32)


def _check_coefficients(n_mfcc: int, n_mels: int) -> None:
    if n_mfcc > n_mels:
        raise ValueError(
            f"features.extractor.n_mfcc={n_mfcc}: expected at most features.extractor.n_mels={n_mels}, change "
            f"features.extractor.n_mfcc"
        )
