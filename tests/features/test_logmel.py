"""Log-mel features: torchaudio's numbers, the stated number of frames, and no influence of padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.features.logmel import LogMel


def logmel(**changes: Any) -> LogMel:
    arguments: dict[str, Any] = {
        "sample_rate_hz": 8000,
        "window_s": 0.025,
        "hop_s": 0.01,
        "n_fft": 256,
        "n_mels": 40,
        "f_min_hz": 20.0,
        "f_max_hz": None,
        "floor": 1e-6,
    }
    return LogMel(**{**arguments, **changes})


def logmel80() -> LogMel:
    return logmel(sample_rate_hz=16000, n_fft=512, n_mels=80)


def noise(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("extractor", [logmel(), logmel80()], ids=["logmel40", "logmel80"])
def test_it_is_the_logarithm_of_torchaudios_mel_spectrogram(extractor: LogMel) -> None:
    from torchaudio.transforms import MelSpectrogram

    transform = MelSpectrogram(
        extractor.sample_rate_hz, extractor.n_fft, extractor.window, extractor.hop, f_min=20.0, pad_mode="constant",
        n_mels=extractor.num_features, mel_scale="slaney",
    )  # fmt: skip
    waveform_N = noise(12345)
    expected_FT = (transform(torch.from_numpy(waveform_N)) + 1e-6).log()
    found_TF = extractor(waveform_N)
    assert found_TF.dtype == np.float32 and found_TF.flags["C_CONTIGUOUS"]
    torch.testing.assert_close(torch.from_numpy(found_TF), expected_FT.T, atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(0, 500))
def test_a_padded_batch_is_its_waveforms_one_by_one(lengths: list[int], more: int) -> None:
    extractor = logmel()
    waveforms = [noise(length, seed) for seed, length in enumerate(lengths)]
    padded_BN = torch.full((len(lengths), max(lengths) + more), 0.7)  # any content in the padding
    for row, waveform_N in enumerate(waveforms):
        padded_BN[row, : len(waveform_N)] = torch.from_numpy(waveform_N)
    features_BTF, frames_B = extractor.batch_transform(padded_BN, torch.tensor(lengths))
    assert features_BTF.dtype == torch.float32 and frames_B.dtype == torch.int64
    assert frames_B.tolist() == [1 + length // 80 for length in lengths]
    assert features_BTF.shape == (len(lengths), 1 + padded_BN.shape[1] // 80, 40)
    for row, waveform_N in enumerate(waveforms):
        frames = int(frames_B[row])
        assert frames == extractor.batch_transform.num_frames(len(waveform_N))
        alone_TF = torch.from_numpy(extractor(waveform_N))
        torch.testing.assert_close(features_BTF[row, :frames], alone_TF, atol=1e-5, rtol=0)
        assert not features_BTF[row, frames:].any()


def test_frames_are_centred_on_their_times() -> None:
    waveform_N = np.zeros(8000, dtype=np.float32)
    waveform_N[4000] = 1.0
    features_TF = logmel()(waveform_N)
    assert int(features_TF.sum(1).argmax()) == 50
    # the click is inside windows of 200 samples around 80 t
    frames = np.flatnonzero((features_TF > math.log(1e-6) + 1e-3).any(1))
    assert frames.tolist() == [49, 50, 51]


def test_silence_is_the_floor() -> None:
    for samples in (1, 80, 5000):
        features_TF = logmel(floor=1e-3)(np.zeros(samples, dtype=np.float32))
        np.testing.assert_allclose(features_TF, math.log(1e-3), rtol=1e-6)


def test_a_tone_has_its_energy_in_its_band() -> None:
    extractor = logmel()
    time_s = np.arange(8000) / 8000
    peaks = [
        int(extractor((0.5 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32))[50].argmax())
        for hz in (300, 1000, 2500, 3800)
    ]
    assert peaks == sorted(peaks) and len(set(peaks)) == 4
    centre_hz = (extractor.batch_transform.bank_KF[:, peaks[1]] * torch.linspace(0, 4000, 129)).sum() / (
        extractor.batch_transform.bank_KF[:, peaks[1]].sum()
    )
    assert abs(float(centre_hz) - 1000) < 60


def test_half_precision_around_it_changes_nothing() -> None:
    extractor, waveform_BN = logmel(), torch.from_numpy(noise(4000)).unsqueeze(0)
    lengths_B = torch.tensor([4000])
    expected, _ = extractor.batch_transform(waveform_BN, lengths_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = extractor.batch_transform(waveform_BN, lengths_B)
    assert torch.equal(found, expected)


def test_it_offers_what_figures_and_other_hops_need() -> None:
    extractor = logmel80()
    assert extractor.num_features == len(set(extractor.feature_names)) == 80
    assert (extractor.sample_rate_hz, extractor.hop_s, extractor.hop) == (16000, 0.01, 160)
    assert extractor.from_power(extractor.power(noise(1600), 100)).shape == (17, 80)
    assert not list(extractor.batch_transform.parameters()) and not extractor.batch_transform.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_mels": 256}, "features.extractor.n_mels=256 leaves .* bands between the bins of n_fft=256"),
        ({"f_max_hz": 5000.0}, "features.extractor.f_min_hz=20.0 and f_max_hz=5000.0: expected .* 4000"),
        ({"f_min_hz": 4000.0}, "features.extractor.f_min_hz=4000.0"),
        ({"n_fft": 128}, "features.extractor.n_fft=128 is less than the window of 200 samples"),
        ({"hop_s": 0.03}, "features.extractor.hop_s"),
    ],
)
def test_settings_without_meaning_are_reported_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logmel(**changes)


def test_implausible_samples_are_refused() -> None:
    waveform_N = noise(1000)
    waveform_N[3] = np.nan
    with pytest.raises(ValueError, match="beyond the range of any microphone"):
        logmel()(waveform_N)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_numbers() -> None:
    extractor, waveform_BN = logmel(), torch.from_numpy(np.stack([noise(4000), noise(4000, 1)]))
    lengths_B = torch.tensor([4000, 2500])
    expected, frames_B = extractor.batch_transform(waveform_BN, lengths_B)
    found, on_gpu_B = logmel().batch_transform.cuda()(waveform_BN.cuda(), lengths_B.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)
    assert torch.equal(on_gpu_B.cpu(), frames_B)
