"""Cepstral coefficients against independent computations, and recordings shorter than a window.

Shape letters: N samples, T frames, F features, K frequency bins, M mel bands.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.features.extractor import FeatureExtractor
from speech_exp.features.mfcc import LibrosaMfcc, TorchMfcc

RATE_HZ, WINDOW, HOP, MELS = 8000, 256, 128, 40


def mfcc20() -> TorchMfcc:
    return TorchMfcc(RATE_HZ, window_s=0.032, hop_s=0.016, n_fft=WINDOW, n_mels=MELS, n_mfcc=20)


def mfcc39() -> LibrosaMfcc:
    return LibrosaMfcc(RATE_HZ, window_s=0.032, hop_s=0.016, n_fft=WINDOW, n_mels=MELS, n_mfcc=13, delta_window=9)


@pytest.fixture(scope="module", params=[mfcc20, mfcc39], ids=["mfcc20", "mfcc39"])
def extractor(request: pytest.FixtureRequest) -> FeatureExtractor:
    return request.param()


def speech_like(samples: int, seed: int = 0) -> np.ndarray:
    """Return tones that move and fade over noise, so that all frames differ."""
    time_s = np.arange(samples) / RATE_HZ
    tones = np.sin(2 * np.pi * (300 + 400 * time_s) * time_s) + 0.4 * np.sin(2 * np.pi * 1900 * time_s)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (0.3 * tones * np.exp(-2 * time_s) + 0.02 * noise).astype(np.float32)


# ---- independent computations


def power_spectrum_TK(waveform_N: np.ndarray, padding: str) -> np.ndarray:
    """Return |DFT|² of Hann windows centred on multiples of the hop, by the definition of the DFT."""
    padded_N = np.pad(waveform_N.astype(np.float64), WINDOW // 2, mode=padding)  # type: ignore[call-overload]
    window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic
    frames = 1 + len(waveform_N) // HOP
    framed_TN = np.stack([padded_N[frame * HOP : frame * HOP + WINDOW] * window_N for frame in range(frames)])
    dft_NK = np.exp(-2j * np.pi * np.outer(np.arange(WINDOW), np.arange(WINDOW // 2 + 1)) / WINDOW)
    return np.abs(framed_TN @ dft_NK) ** 2


def htk_mel_filters_KM() -> np.ndarray:
    """Return triangular filters of height 1 on the HTK scale, mel = 2595 log10(1 + f / 700)."""
    highest_mel = 2595 * math.log10(1 + RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, highest_mel, MELS + 2) / 2595) - 1)
    filters_KM = np.zeros((WINDOW // 2 + 1, MELS))
    for band in range(MELS):
        left, middle, right = edges_hz[band : band + 3]
        for bin_ in range(WINDOW // 2 + 1):
            frequency_hz = bin_ * RATE_HZ / WINDOW
            rise, fall = (frequency_hz - left) / (middle - left), (right - frequency_hz) / (right - middle)
            filters_KM[bin_, band] = max(0.0, min(rise, fall))
    return filters_KM


def decibel(power: np.ndarray, top_db: float = 80.0) -> np.ndarray:
    """Return 10 log10 of at least 1e-10, limited to `top_db` below the loudest (torchaudio's and librosa's default)."""
    level_db = 10 * np.log10(np.maximum(power, 1e-10))
    return np.maximum(level_db, level_db.max() - top_db)


def cosine_transform_MF(coefficients: int) -> np.ndarray:
    """Return the orthonormal DCT-II: column 0 is constant 1/sqrt(M), the others sqrt(2/M) cos(pi (m + 1/2) f / M)."""
    matrix_MF = np.sqrt(2 / MELS) * np.cos(np.pi / MELS * np.outer(np.arange(MELS) + 0.5, np.arange(coefficients)))
    matrix_MF[:, 0] /= math.sqrt(2)
    return matrix_MF


def fitted_derivative(values_T: np.ndarray, order: int) -> float:
    """Return the derivative of this order, at the middle, of a polynomial of that degree fitted by least squares."""
    middle = len(values_T) // 2
    polynomial = np.polyfit(np.arange(len(values_T)) - middle, values_T, deg=order)
    return float(polynomial[0] * math.factorial(order))


# ---- values


# float32 in the transform against float64 here: spectra relative to 1e-5, hence levels to 1e-4 dB, and sums of 40
# of them; the faintest bands of noise-free parts lose a digit more.
TOLERANCE_DB = 2e-2


@pytest.mark.parametrize("samples", [300, 2000, 4111])
def test_mfcc20_is_the_definition(samples: int) -> None:
    waveform_N = speech_like(samples)
    mel_TM = power_spectrum_TK(waveform_N, "reflect") @ htk_mel_filters_KM()
    expected_TF = decibel(mel_TM) @ cosine_transform_MF(20)
    np.testing.assert_allclose(mfcc20()(waveform_N), expected_TF, atol=TOLERANCE_DB)


def test_mfcc20_removes_what_is_80_db_below_the_loudest() -> None:
    waveform_N = speech_like(4000)
    waveform_N[2000:] *= 1e-6  # 120 dB down
    mel_TM = power_spectrum_TK(waveform_N, "reflect") @ htk_mel_filters_KM()
    features_TF = mfcc20()(waveform_N)
    np.testing.assert_allclose(features_TF, decibel(mel_TM) @ cosine_transform_MF(20), atol=TOLERANCE_DB)
    assert np.abs(features_TF[-1, 1:]).max() < TOLERANCE_DB  # a flat spectrum at the floor


def test_mfcc39_begins_with_librosas_coefficients() -> None:
    import librosa

    waveform_N = speech_like(4000)
    expected_FT = librosa.feature.mfcc(
        y=waveform_N, sr=RATE_HZ, n_mfcc=13, n_fft=WINDOW, win_length=WINDOW, hop_length=HOP, n_mels=MELS
    )
    # torch and librosa round the spectrum differently, by 1e-7 of values up to about 100 dB.
    np.testing.assert_allclose(mfcc39()(waveform_N)[:, :13], expected_FT.T, atol=TOLERANCE_DB)


def test_mfcc39_has_the_same_framing_and_spectra_as_mfcc20() -> None:
    import librosa

    waveform_N = speech_like(4000)
    # librosa pads the ends by zeros and divides its triangles by their width (Slaney); the rest is the same
    filters_KM = librosa.filters.mel(sr=RATE_HZ, n_fft=WINDOW, n_mels=MELS).T
    expected_TF = decibel(power_spectrum_TK(waveform_N, "constant") @ filters_KM) @ cosine_transform_MF(13)
    np.testing.assert_allclose(mfcc39()(waveform_N)[:, :13], expected_TF, atol=TOLERANCE_DB)


@pytest.mark.parametrize("order", [1, 2])
def test_differences_are_derivatives_of_polynomials_fitted_over_nine_frames(order: int) -> None:
    features_TF = mfcc39()(speech_like(4000)).astype(np.float64)
    differences_TF = features_TF[:, 13 * order : 13 * (order + 1)]
    assert len(features_TF) > 20
    for frame in range(4, len(features_TF) - 4):
        for feature in range(13):
            expected = fitted_derivative(features_TF[frame - 4 : frame + 5, feature], order)
            assert differences_TF[frame, feature] == pytest.approx(expected, abs=1e-3)


def test_first_differences_are_the_regression_formula() -> None:
    # d_t = sum k (c_{t+k} - c_{t-k}) / (2 sum k²), Young et al., The HTK Book, eq. 5.16
    features_TF = mfcc39()(speech_like(4000)).astype(np.float64)
    slopes_TF = sum(
        k * (features_TF[4 + k : len(features_TF) - 4 + k] - features_TF[4 - k : len(features_TF) - 4 - k])
        for k in range(1, 5)
    ) / (2 * sum(k * k for k in range(1, 5)))
    np.testing.assert_allclose(features_TF[4:-4, 13:26], slopes_TF[:, :13], atol=1e-3)


# ---- sizes, and recordings that are short


@settings(max_examples=25)
@given(st.integers(WINDOW + 1, 6000))
def test_n_samples_give_one_frame_and_one_a_hop(extractor: FeatureExtractor, samples: int) -> None:
    features_TF = extractor(speech_like(samples))
    assert features_TF.shape == (1 + samples // HOP, extractor.num_features)
    assert features_TF.dtype == np.float32


def test_the_names_count_the_features() -> None:
    assert mfcc20().num_features == 20
    assert mfcc39().num_features == 39
    names = mfcc39().feature_names
    assert (names[0], names[13], names[26], names[38]) == ("c0", "Δc0", "ΔΔc0", "ΔΔc12")


@pytest.mark.parametrize("samples", [0, 1, 100, WINDOW - 1, WINDOW])
def test_a_recording_shorter_than_a_window_is_extended_by_silence(extractor: FeatureExtractor, samples: int) -> None:
    waveform_N = speech_like(samples)
    extended_N = np.concatenate([waveform_N, np.zeros(WINDOW + 1 - samples, dtype=np.float32)])
    features_TF = extractor(waveform_N)
    assert features_TF.shape == (3, extractor.num_features)
    assert np.isfinite(features_TF).all()
    np.testing.assert_array_equal(features_TF, extractor(extended_N))


@pytest.mark.parametrize("samples", [WINDOW + 1, 600, 8 * HOP - 1])
def test_a_recording_shorter_than_the_difference_window_holds_its_last_frame(samples: int) -> None:
    features_TF = mfcc39()(speech_like(samples)).astype(np.float64)
    frames = 1 + samples // HOP
    assert len(features_TF) == frames < 9
    coefficients_TF = features_TF[:, :13]
    padded_TF = np.concatenate([coefficients_TF, np.repeat(coefficients_TF[-1:], 9 - frames, axis=0)])
    for order in (1, 2):
        # nine frames determine one polynomial, whose derivative of the order of its degree is constant
        expected_F = np.array([fitted_derivative(padded_TF[:, feature], order) for feature in range(13)])
        own_TF = features_TF[:, 13 * order : 13 * (order + 1)]
        np.testing.assert_allclose(own_TF, np.tile(expected_F, (frames, 1)), atol=1e-3)


def test_nine_frames_need_no_padding() -> None:
    assert mfcc39()(speech_like(8 * HOP)).shape == (9, 39)


def test_silence_is_finite(extractor: FeatureExtractor) -> None:
    assert np.isfinite(extractor(np.zeros(2000, dtype=np.float32))).all()


def test_the_same_waveform_gives_the_same_bits(extractor: FeatureExtractor) -> None:
    waveform_N = speech_like(2000)
    np.testing.assert_array_equal(extractor(waveform_N), extractor(waveform_N))


@pytest.mark.parametrize("level", [1e10, 1e30, np.inf, np.nan])
def test_implausible_samples_are_refused(extractor: FeatureExtractor, level: float) -> None:
    waveform_N = speech_like(2000)
    waveform_N[1000] = level
    with pytest.raises(
        ValueError, match=r"^the waveform reaches .*, beyond the range of any microphone: expected at most 1e\+09"
    ):
        extractor(waveform_N)


def test_the_loudest_allowed_samples_give_finite_features(extractor: FeatureExtractor) -> None:
    alternating_N = 1e9 * (-1.0) ** np.arange(2000)
    for waveform_N in (alternating_N, np.full(2000, 1e9), alternating_N * (np.arange(2000) < 1000)):
        assert np.isfinite(extractor(waveform_N)).all()


@pytest.mark.parametrize(("window_s", "hop_s"), [(0.016, 0.032), (0.032, 0.0), (0.0, 0.0), (0.032, -0.016)])
def test_a_hop_that_skips_samples_is_refused(window_s: float, hop_s: float) -> None:
    with pytest.raises(
        ValueError,
        match=f"features.extractor.window_s={window_s} and features.extractor.hop_s={hop_s} give a window of .*"
        "expected 0 < hop <= window, change features.extractor.hop_s",
    ):
        TorchMfcc(RATE_HZ, window_s, hop_s, n_fft=WINDOW, n_mels=MELS, n_mfcc=20)


def test_an_fft_shorter_than_the_window_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"features\.extractor\.n_fft=128 is less than the window of 256 samples: .*change features"
    ):
        TorchMfcc(RATE_HZ, window_s=0.032, hop_s=0.016, n_fft=128, n_mels=MELS, n_mfcc=20)


def test_an_fft_longer_than_a_recording_works() -> None:
    long_fft = TorchMfcc(RATE_HZ, window_s=0.032, hop_s=0.016, n_fft=2048, n_mels=MELS, n_mfcc=20)
    assert np.isfinite(long_fft(speech_like(300))).all()
