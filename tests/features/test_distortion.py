"""Variants of recordings: the first equals the recording, the others are repeatable, bounded and different."""

from __future__ import annotations

import numpy as np
import pytest

from speech_exp.features.distortion import Variants
from speech_exp.features.extractor import FeatureExtractor
from speech_exp.features.mfcc import DynamicRangeMfcc, LibrosaMfcc, TorchMfcc

FRAMING = {"sample_rate_hz": 8000, "window_s": 0.032, "hop_s": 0.016, "n_fft": 256}
STILL = {"vocal_tract": 0.0, "formant_bend": 0.0, "tempo": 0.0, "noise_share": 0.0, "equalizer_db": 0.0, "crop_s": 0.0}
EXTRACTORS: list[FeatureExtractor] = [
    TorchMfcc(**FRAMING, n_mels=40, n_mfcc=20),
    LibrosaMfcc(**FRAMING, n_mels=40, n_mfcc=13, delta_window=9),
    DynamicRangeMfcc(**FRAMING, n_mels=24, n_mfcc=13, f_min_hz=60.0, f_max_hz=3800.0, range_db=25.0),
]


def variants(**changes: float) -> Variants:
    return Variants(count=4, snr_db=[5, 40], **(STILL | changes))  # type: ignore[arg-type]


def tone(frequency_hz: float, samples: int = 4000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(samples) / 8000)).astype(np.float32)


def peak_hz(distortion: Variants, waveform_N: np.ndarray, seed: int) -> float:
    power_TK = EXTRACTORS[0].power(waveform_N, 128)
    warped_TK = distortion._warp(power_TK, np.random.default_rng(seed))
    return float(warped_TK.mean(0).argmax() * 8000 / 256)


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda extractor: type(extractor).__name__)
def test_variants_of_every_extractor(extractor):
    waveform_N = tone(500) + 0.05 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    strong = variants(vocal_tract=0.2, tempo=0.3, noise_share=1.0, equalizer_db=3.0, crop_s=0.05, formant_bend=0.05)

    def features(number: int, seed: int) -> np.ndarray:
        return strong.features(extractor, waveform_N, number, np.random.default_rng(seed))

    np.testing.assert_array_equal(features(0, 1), extractor(waveform_N))
    np.testing.assert_array_equal(features(1, 5), features(1, 5))
    assert features(1, 5).shape != features(1, 6).shape or not np.allclose(features(1, 5), features(1, 6))
    for seed in range(20):
        assert np.isfinite(features(1, seed)).all()
        assert features(1, seed).shape[1] == extractor.num_features
        assert 0.6 < len(features(1, seed)) / len(extractor(waveform_N)) < 1.5


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda extractor: type(extractor).__name__)
def test_no_distortion_gives_the_recording(extractor):
    waveform_N = tone(700)
    still = variants().features(extractor, waveform_N, 1, np.random.default_rng(0))
    np.testing.assert_allclose(still, extractor(waveform_N), atol=1e-4)


def test_the_warp_moves_a_tone_by_its_factor_and_not_further():
    stretched = [peak_hz(variants(vocal_tract=0.2), tone(1000), seed) for seed in range(40)]
    # The spectrum is read at a f, so a tone of f0 appears at f0 / a; half a bin is 16 Hz.
    assert min(stretched) >= 1000 / np.exp(0.2) - 32
    assert max(stretched) <= 1000 * np.exp(0.2) + 32
    assert min(stretched) < 900
    assert max(stretched) > 1100
    assert {peak_hz(variants(), tone(1000), seed) for seed in range(5)} == {1000.0}


def test_the_noise_has_the_drawn_level():
    power_TK = EXTRACTORS[0].power(tone(1000, 16000), 128)
    noisy = Variants(count=2, snr_db=[10, 10], **(STILL | {"noise_share": 1.0}))  # type: ignore[arg-type]
    loud = np.percentile(power_TK.sum(1), 90)
    levels = [noisy._noise(power_TK, np.random.default_rng(seed)).sum(1).mean() / loud for seed in range(50)]
    assert 10 * np.log10(np.mean(levels)) == pytest.approx(-10, abs=0.5)
    assert not variants()._noise(power_TK, np.random.default_rng(0)).any()


def test_tempo_changes_the_number_of_frames_alone():
    counts = [
        len(variants(tempo=0.25).features(EXTRACTORS[0], tone(500, 8000), 1, np.random.default_rng(seed)))
        for seed in range(30)
    ]
    assert min(counts) < 60 < 66 < max(counts)  # the recording itself has 63 frames
    assert np.exp(-0.26) < min(counts) / 63
    assert max(counts) / 63 < np.exp(0.26)


def test_a_dynamic_range_hides_what_is_far_below_the_loudest():
    extractor = EXTRACTORS[2]
    waveform_N = tone(500, 8000)
    hiss_N = 1e-4 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    np.testing.assert_allclose(extractor(waveform_N), extractor(waveform_N + hiss_N), atol=0.05)
    np.testing.assert_allclose(extractor(waveform_N)[:, 1:], extractor(0.01 * waveform_N)[:, 1:], atol=1e-3)
    assert np.isfinite(extractor(np.zeros(2000, np.float32))).all()
