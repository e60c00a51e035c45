"""Variants of a recording that imitate other voices, rooms and microphones, computed once into the feature cache.

They modify the power spectrogram, so they work with any extractor.

Shape letters: N samples, T frames, K frequency bins.
"""

from __future__ import annotations

import numpy as np

from speech_exp.bounds import NonNegativeFloat, PositiveInt, Proportion
from speech_exp.features.extractor import FeatureExtractor


class Variants:
    """Random distortions of a recording; variant 0 is always the recording itself.

    Args:
        count: number of variants, including the recording itself; each training epoch draws one of them.
        vocal_tract: largest relative stretch of the frequency axis, as the logarithm of the factor (vocal tract length
            perturbation, Jaitly & Hinton 2013).
        formant_bend: largest relative shift of the middle frequencies against the outer ones.
        tempo: largest change of tempo, as the logarithm of the factor.
        noise_share: share of the variants that get coloured noise.
        snr_db: lowest and highest signal-to-noise ratio of that noise.
        equalizer_db: deviation of the tilt of a random frequency response.
        crop_s: most that is cut off at each end.
    """

    def __init__(
        self,
        count: PositiveInt,
        vocal_tract: Proportion,
        formant_bend: Proportion,
        tempo: Proportion,
        noise_share: Proportion,
        snr_db: list[float],
        equalizer_db: NonNegativeFloat,
        crop_s: NonNegativeFloat,
    ) -> None:
        if len(snr_db) != 2 or snr_db[0] > snr_db[1]:
            raise ValueError(
                f"augment.variants.snr_db={snr_db}: expected the lowest and the highest ratio, change augment.variants.snr_db"
            )
        self.count = count
        self.vocal_tract, self.formant_bend, self.tempo = vocal_tract, formant_bend, tempo
        self.noise_share, self.snr_db, self.equalizer_db, self.crop_s = noise_share, snr_db, equalizer_db, crop_s

    def features(
        self, extractor: FeatureExtractor, waveform_N: np.ndarray, number: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the features (T, F) of variant `number`."""
        if number == 0:
            return extractor(waveform_N)
        hop = max(1, round(extractor.hop * np.exp(generator.uniform(-self.tempo, self.tempo))))
        power_TK = extractor.power(self._crop(waveform_N, extractor.sample_rate_hz, generator), hop)
        power_TK = power_TK + self._noise(power_TK, generator)
        power_TK = power_TK * self._equalizer(power_TK.shape[1], generator)
        return extractor.from_power(self._warp(power_TK, generator).astype(np.float32))

    def _crop(self, waveform_N: np.ndarray, sample_rate_hz: int, generator: np.random.Generator) -> np.ndarray:
        start, end = (generator.uniform(0, self.crop_s, 2) * generator.integers(0, 2, 2) * sample_rate_hz).astype(int)
        cropped_N = waveform_N[start : len(waveform_N) - end]
        return cropped_N if len(cropped_N) > len(waveform_N) // 2 else waveform_N

    def _noise(self, power_TK: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the power of noise with a smooth random spectrum, exponentially distributed like that of Gaussian noise."""
        present = generator.random() < self.noise_share
        snr_db = generator.uniform(self.snr_db[0], self.snr_db[1])
        place_K = np.linspace(0, 1, power_TK.shape[1])
        level_db_K = 10 * generator.uniform(-3, 0.5) * place_K
        level_db_K += 3 * generator.normal() * np.cos(np.pi * place_K * generator.uniform(1, 4))
        colour_K = 10 ** (level_db_K / 10)
        loud = np.percentile(power_TK.sum(1), 90)
        frames_TK = generator.exponential(size=power_TK.shape)
        return present * loud * 10 ** (-snr_db / 10) * colour_K / colour_K.sum() * frames_TK

    def _equalizer(self, bins: int, generator: np.random.Generator) -> np.ndarray:
        place_K = np.linspace(0, 1, bins)
        gain_db_K = generator.normal() * self.equalizer_db * (2 * place_K - 1)
        for waves in range(1, 5):
            height = 0.6 * generator.normal() * self.equalizer_db
            gain_db_K = gain_db_K + height * np.cos(np.pi * waves * place_K + generator.uniform(0, 2 * np.pi))
        return 10 ** (gain_db_K / 10)

    def _warp(self, power_TK: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Warp the frequency axis: f -> a f up to a knee, then linear up to the Nyquist frequency."""
        factor = np.exp(generator.uniform(-self.vocal_tract, self.vocal_tract))
        bend = generator.uniform(-self.formant_bend, self.formant_bend)
        place_K = np.linspace(0, 1, power_TK.shape[1])
        knee = 0.8 * min(1.0, 1.0 / factor)
        above_K = 1 - (1 - factor * knee) / (1 - knee) * (1 - place_K)
        read_K = np.where(place_K <= knee, factor * place_K, above_K)
        read_K = np.clip(read_K * (1 + bend * np.sin(np.pi * read_K)), 0, 1) * (len(place_K) - 1)
        low_K = np.minimum(read_K.astype(int), len(place_K) - 2)
        share_K = read_K - low_K
        return power_TK[:, low_K] * (1 - share_K) + power_TK[:, low_K + 1] * share_K
