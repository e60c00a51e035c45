"""Log-mel features of a stream equal those of the whole waveform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.features.logmel import LogMel, StreamingLogMel

# Odd windows, an FFT longer than the window, and a hop as long as it.
SETTINGS = {
    "logmel40": (8000, 0.025, 0.01, 256),
    "logmel80": (16000, 0.025, 0.01, 512),
    "odd window": (1000, 0.025, 0.01, 32),
    "hop of a window": (1000, 0.016, 0.016, 16),
}


def logmel(setting: str) -> LogMel:
    sample_rate_hz, window_s, hop_s, n_fft = SETTINGS[setting]
    bands = {256: 40, 512: 80}.get(n_fft, 4)
    return LogMel(sample_rate_hz, window_s, hop_s, n_fft, bands, 0.0, None, 1e-6)


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


@given(st.sampled_from(sorted(SETTINGS)), st.lists(st.integers(0, 900), max_size=8))
@settings(max_examples=40)
def test_any_pieces_give_the_frames_of_the_whole(setting: str, pieces: list[int]) -> None:
    extractor = logmel(setting)
    waveform_N = noise(sum(pieces))
    stream = StreamingLogMel(extractor)
    found = [stream.push(piece_N) for piece_N in np.split(waveform_N, np.cumsum(pieces)[:-1])] if pieces else []
    streamed_TF = torch.cat([*found, stream.finish()])
    # float32 rounding of powers up to about 1, over a floor of 1e-6, in another order of the same sums
    torch.testing.assert_close(streamed_TF, torch.from_numpy(extractor(waveform_N)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_frame_is_complete_with_the_last_sample_of_its_window(setting: str) -> None:
    extractor, waveform_N = logmel(setting), noise(2000)
    stream = StreamingLogMel(extractor)
    came_with = [n for n in range(2000) for _ in stream.push(waveform_N[n : n + 1])]
    ahead = [sample - frame * extractor.hop for frame, sample in enumerate(came_with)]
    assert set(ahead) == {extractor.window - 1 - len(StreamingLogMel(extractor)._waiting_N)}
    assert ahead[0] <= extractor.window // 2


def test_implausible_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond the range of any microphone"):
        StreamingLogMel(logmel("logmel40")).push(np.array([0.0, np.nan], dtype=np.float32))
