"""Recordings for the tests: the real ones where this machine has them, and a few made of sine waves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from speech_exp.data.digits import Digits
from speech_exp.data.gigaspeech import GigaSpeech, LoadedCuts
from speech_exp.data.selection import Limits

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, and processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


SAMPLE_RATE_HZ = 8000

# No deadline: the machine is shared. Derandomized: a test that passed here passes elsewhere.
settings.register_profile("speech_exp", deadline=None, derandomize=True, database=None)
settings.load_profile("speech_exp")


@pytest.fixture(scope="session")
def fsdd_root() -> Path:
    """Root of the real FSDD."""
    shared = os.environ.get("SPEECH_EXP_DATA")
    if not shared:
        pytest.skip("needs the real FSDD: set SPEECH_EXP_DATA to the folder that holds fsdd/recordings")
    root = Path(shared) / "fsdd"
    if not (root / "recordings").is_dir():
        pytest.skip(f"needs the real FSDD, but {root / 'recordings'} is no folder: change SPEECH_EXP_DATA")
    return root


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """`recordings/` in FSDD's naming: digits 0-2, three speakers, indices 0-5, tones of 0.1 to 0.3 s at 8 kHz."""
    root = tmp_path / "tiny"
    folder = root / "recordings"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for digit in range(3):
        for pitch_hz, speaker in ((110, "anna"), (160, "bert"), (220, "cleo")):
            for index in range(6):
                time_s = np.arange(generator.integers(800, 2400)) / SAMPLE_RATE_HZ
                tone = 0.3 * np.sin(2 * np.pi * pitch_hz * (digit + 2) * time_s)
                waveform = tone + 0.01 * generator.standard_normal(len(time_s))
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", waveform, SAMPLE_RATE_HZ)
    return root


@pytest.fixture
def tiny_digits(tiny_root: Path) -> Callable[..., Digits]:
    """Data set over `tiny_root` (test index 0, validation 1, train 2-5); keyword arguments change its constructor's."""

    def make(**changes: Any) -> Digits:
        arguments: dict[str, Any] = {
            "name": "tiny",
            "bundled": False,
            "root": str(tiny_root),
            "folder": "recordings",
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "split": "official",
            "index_ranges": {"test": [0, 0], "validation": [1, 1], "train": [2, 5], "unseen_validation": [0, 1]},
            "shares": {"test": 0.1, "validation": 0.1},
            "split_seed": 0,
            "test_speaker": None,
            "validation_speaker": None,
            "synthetic_voices": 0,
            "download": None,
        }
        return Digits(**{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def gigaspeech_root() -> Path:
    """Root of GigaSpeech's miniature; never written to."""
    root = Path(os.environ.get("SPEECH_EXP_DATA", "")) / "gigaspeech-mini"
    if not (root / "GigaSpeech.json").exists():
        pytest.skip(f"needs gigaspeech-mini: {root} holds no GigaSpeech.json, set SPEECH_EXP_DATA")
    return root


@pytest.fixture(scope="session")
def gigaspeech(gigaspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GigaSpeech]:
    """Data set over the miniature with one prepared folder; keyword arguments change its constructor's."""
    prepared = tmp_path_factory.mktemp("prepared")

    def make(**changes: Any) -> GigaSpeech:
        arguments: dict[str, Any] = {
            "name": "gigaspeech-mini",
            "root": str(gigaspeech_root),
            "prepared": str(prepared),
            "subset": "xs",
            "storage": "audio",
            "password": None,
            "host": "tsinghua",
            "sample_rate_hz": 16000,
            "workers": 1,
            "limits": Limits(0.5, 20.0, None),
        }
        return GigaSpeech(**{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def loaded_cuts(gigaspeech: Callable[..., GigaSpeech]) -> LoadedCuts:
    """The miniature's subset XS, DEV and TEST, read from its recordings."""
    return gigaspeech().load()


@pytest.fixture(scope="session")
def small_release(gigaspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Release of one recording for each part, a few segments each; a test that changes it takes a copy."""
    root = tmp_path_factory.mktemp("small")
    release = json.loads((gigaspeech_root / "GigaSpeech.json").read_text())
    chosen = ("AUD0000000001", "POD0000000002", "YOU0000000002")
    release["audios"] = [audio for audio in release["audios"] if audio["aid"] in chosen]
    for audio in release["audios"]:
        (root / audio["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / audio["path"]).write_bytes((gigaspeech_root / audio["path"]).read_bytes())
    (root / "GigaSpeech.json").write_text(json.dumps(release))
    return root
