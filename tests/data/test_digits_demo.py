"""The bundled recordings match their README."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_exp.data
from speech_exp.data.synthetic.synthesize import fingerprint

FOLDER = Path(speech_exp.data.__file__).parent / "digits_demo"
VOICES = ("arthur", "bella", "craig", "daisy", "emil", "fern")
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def recordings() -> dict[str, tuple[np.ndarray, int]]:
    """Return the int16 samples and the rate in Hz of each file, by name."""
    return {path.name: soundfile.read(path, dtype="int16") for path in sorted(FOLDER.glob("*.flac"))}


def test_each_digit_voice_and_index_is_there_exactly_once(recordings: dict[str, tuple[np.ndarray, int]]) -> None:
    expected = {
        f"{digit}_{voice}_{index}.flac" for digit, voice, index in itertools.product(range(10), VOICES, range(20))
    }
    assert set(recordings) == expected
    assert len(expected) == 1200


def test_every_recording_is_8_khz_mono_16_bit_of_a_plausible_length(
    recordings: dict[str, tuple[np.ndarray, int]],
) -> None:
    for name, (samples, rate_hz) in recordings.items():
        assert (rate_hz, samples.ndim) == (8000, 1), name
        assert soundfile.info(FOLDER / name).subtype == "PCM_16", name
        assert 0.15 <= len(samples) / rate_hz <= 1.0, name


def test_no_recording_clips_is_silent_or_has_a_large_offset(recordings: dict[str, tuple[np.ndarray, int]]) -> None:
    for name, (samples, _) in recordings.items():
        peak = np.abs(samples.astype(int)).max()
        assert 0.03 * 32768 < peak < 0.99 * 32768, name
        assert abs(samples.mean()) < 0.05 * peak, name


def test_no_two_recordings_have_the_same_content(recordings: dict[str, tuple[np.ndarray, int]]) -> None:
    hashes = {hashlib.sha256(samples.tobytes()).hexdigest() for samples, _ in recordings.values()}
    assert len(hashes) == len(recordings)


def test_duration_alone_does_not_tell_the_digit(recordings: dict[str, tuple[np.ndarray, int]]) -> None:
    durations = np.array([len(samples) for samples, _ in recordings.values()])
    digits = np.array([int(name[0]) for name in recordings])
    # Best single guess in each of 20 equally filled bins of duration: an optimistic bound.
    bins = np.digitize(durations, np.quantile(durations, np.linspace(0, 1, 21)[1:-1]))
    right = sum(np.bincount(digits[bins == each]).max() for each in range(20))
    assert right / len(digits) < 0.4


def test_the_package_grows_by_at_most_6_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_readme_names_licence_and_the_hash_of_these_files() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\b[0-9a-f]{64}\b", text) == [fingerprint(FOLDER)]
    assert "MIT" in text
    assert "GPL" in text
