"""Synthetic voices are pure functions of voice, digit and seed; takes differ; a missing synthesiser is one error."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_exp.data
from speech_exp.data.synthetic.espeak import SynthesiserError, language_file
from speech_exp.data.synthetic.synthesize import fingerprint, main, synthesize_set, synthesize_voice
from speech_exp.data.synthetic.voices import ACCENTS, DEMO_VOICES, VoiceSpec, random_voice_specs

DEMO_FOLDER = Path(speech_exp.data.__file__).parent / "digits_demo"


def spoken(spec: VoiceSpec, digit: int, seed: int, sample_rate_hz: int = 8000) -> np.ndarray:
    return synthesize_voice(spec, digit, np.random.default_rng(seed), sample_rate_hz)


@pytest.mark.parametrize("spec", [*DEMO_VOICES, *random_voice_specs(3, seed=5)], ids=lambda spec: spec.name)
def test_a_word_never_depends_on_what_was_spoken_before(spec: VoiceSpec) -> None:
    first = spoken(spec, 7, seed=1)
    for digit, other in zip((8, 1, 6), random_voice_specs(3, seed=9), strict=True):
        spoken(other, digit, seed=2)
    np.testing.assert_array_equal(spoken(spec, 7, seed=1), first)


def test_another_process_makes_the_same_set(tmp_path: Path) -> None:
    options = ["--voices", "2", "--takes", "1", "--seed", "3"]
    assert main(["--out", str(tmp_path / "here"), *options]) == 0
    command = [sys.executable, "-m", "speech_exp.data.synthetic.synthesize", "--out", str(tmp_path / "there"), *options]
    subprocess.run(command, check=True, capture_output=True)
    assert fingerprint(tmp_path / "here") == fingerprint(tmp_path / "there")
    assert len(list((tmp_path / "here").glob("*.flac"))) == 20


def test_a_recording_does_not_depend_on_the_others_of_its_set() -> None:
    both = dict(itertools.islice(synthesize_set(list(DEMO_VOICES[:2]), takes=1, seed=4), 20))
    alone = dict(synthesize_set([DEMO_VOICES[1]], takes=1, seed=4))
    for name, waveform in alone.items():
        np.testing.assert_array_equal(both[name], waveform)


@pytest.mark.skipif(
    sys.platform != "linux", reason="other platforms round and draw noise differently (digits_demo/README.md)"
)
def test_the_bundled_recordings_come_from_this_code() -> None:
    for spec in DEMO_VOICES:
        name, waveform = next(synthesize_set([spec], takes=1, seed=0))
        bundled, _ = soundfile.read(DEMO_FOLDER / f"{name}.flac", dtype="int16")
        made = np.round(waveform * 32767.0)
        # Other processors round the Fourier transforms differently: two steps of 32768 are far below the noise.
        np.testing.assert_allclose(made, bundled, rtol=0, atol=2)


def test_takes_seeds_digits_and_voices_all_differ() -> None:
    spec, other = random_voice_specs(2, seed=0)
    rng = np.random.default_rng(0)
    waveforms = [
        synthesize_voice(spec, 3, rng),
        synthesize_voice(spec, 3, rng),
        spoken(spec, 3, seed=1),
        spoken(spec, 4, seed=1),
        spoken(other, 3, seed=1),
    ]
    assert len({waveform.tobytes() for waveform in waveforms}) == len(waveforms)


@pytest.mark.parametrize("accent", ACCENTS)
def test_every_accent_says_every_digit(accent: str) -> None:
    spec = VoiceSpec("tester", accent)
    for digit in range(10):
        waveform = spoken(spec, digit, seed=digit)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert np.isfinite(waveform).all()
        assert 0.01 < np.abs(waveform).max() < 1.0
        assert 0.12 <= waveform.size / 8000 <= 1.0
    assert len(ACCENTS[accent]) == 10


def test_pitch_is_the_requested_one() -> None:
    """The vocal tract is scaled by resampling, which must not change the pitch of the voice."""
    for tract_scale in (0.85, 1.0, 1.25):
        steady = VoiceSpec(
            "tester", "en-US", pitch_hz=150, pitch_range=0.02, flutter=0, tract_scale=tract_scale, snr_db=60
        )
        dry = replace(steady, room_db=-60)
        found_hz = [_pitch_hz(spoken(dry, 1, seed)) for seed in range(5)]
        assert np.median(found_hz) == pytest.approx(150, rel=0.12)


def _pitch_hz(waveform: np.ndarray) -> float:
    """Return the strongest pitch between 90 and 250 Hz in the middle of the word."""
    middle = waveform[waveform.size // 2 - 300 : waveform.size // 2 + 300]
    correlation = np.correlate(middle, middle, "full")[middle.size - 1 :]
    return 8000 / (32 + int(np.argmax(correlation[32:89])))


def test_sample_rate_changes_the_samples_not_the_duration() -> None:
    low, high = (spoken(DEMO_VOICES[0], 0, 3, rate).size / rate for rate in (8000, 16000))
    assert high == pytest.approx(low, abs=0.1)


def test_random_voices_have_unique_names_and_a_stable_order() -> None:
    many = random_voice_specs(300, seed=1)
    assert len({spec.name for spec in many}) == 300
    assert many[:10] == random_voice_specs(10, seed=1)
    assert many[:10] != random_voice_specs(10, seed=2)


def test_a_missing_synthesiser_is_reported_in_one_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(SynthesiserError, match=r"eSpeak NG.* was not found.*pip install -e"):
        spoken(VoiceSpec("tester"), 0, seed=0)
    assert main(["--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_wrong_arguments_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="voice name 'two_words'"):
        VoiceSpec("two_words")
    with pytest.raises(ValueError, match="accent 'xx': expected one of en, "):
        VoiceSpec("tester", "xx")
    with pytest.raises(ValueError, match="digit 10: expected 0-9"):
        spoken(VoiceSpec("tester"), 10, seed=0)
    with pytest.raises(SynthesiserError, match="no language 'xx'"):
        language_file("xx")
    (tmp_path / "old.flac").touch()
    assert main(["--out", str(tmp_path)]) == 1
    assert "already contains FLAC files" in capsys.readouterr().err
