"""Recordings for tests: real ones, if this machine has them, and a few made of sine waves."""

from __future__ import annotations

import os

# Set this before torch is imported; processes started by tests inherit it. Two test processes share the machine, and tiny
# networks are faster with one thread.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from speech_exp.data.corpus.prepared import CorpusTables
from speech_exp.data.corpus.selection import Limits
from speech_exp.data.digits import BUNDLED, Digits
from speech_exp.data.gigaspeech.data_set import GigaSpeech

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # set by shells for background jobs, and inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)


SAMPLE_RATE_HZ = 8000


# No deadline, because the machine is shared. By default, examples are the same everywhere; CI also looks for new ones
# (pytest --hypothesis-profile=explore).
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, derandomize=False, database=None, print_blob=True)
settings.load_profile("same")


LONGEST = ("test_ranks.py", "test_composition.py", "test_compilation.py", "test_extending.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, with those of actions: one begun last leaves the other test process idle."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def fsdd_root() -> Path:
    """Return the root of the real FSDD; skip the test if this machine lacks it."""
    shared = os.environ.get("SPEECH_EXP_DATA")
    if not shared:
        pytest.skip("needs the real FSDD: set SPEECH_EXP_DATA to the folder that holds fsdd/recordings")
    root = Path(shared) / "fsdd"
    if not (root / "recordings").is_dir():
        pytest.skip(f"needs the real FSDD, but {root / 'recordings'} is no folder: change SPEECH_EXP_DATA")
    return root


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Write a tiny data set with FSDD's file names: digits 0-2, three speakers, indices 0-5, tones of 0.1 to 0.3 s at 8 kHz."""
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
    """Return a builder of the data set in `tiny_root` (test index 0, validation 1, train 2-5); keywords override arguments."""

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
            "max_dropped_share": 0.1,
            "download": None,
        }
        return Digits(**{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of 240 of the 1,200 bundled recordings: all digits of three voices, indices 0 to 7."""
    root = tmp_path_factory.mktemp("few")
    folder = root / "digits_demo"
    folder.mkdir()
    for speaker in ("arthur", "emil", "fern"):
        for path in (BUNDLED / "digits_demo").glob(f"?_{speaker}_[0-7].flac"):
            shutil.copyfile(path, folder / path.name)
    return root


@pytest.fixture(scope="session")
def gigaspeech_root() -> Path:
    """Return the root of the miniature GigaSpeech, to which tests must not write."""
    root = Path(os.environ.get("SPEECH_EXP_DATA", "")) / "gigaspeech-mini"
    if not (root / "GigaSpeech.json").exists():
        pytest.skip(f"needs gigaspeech-mini: {root} holds no GigaSpeech.json, set SPEECH_EXP_DATA")
    return root


@pytest.fixture(scope="session")
def gigaspeech(gigaspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GigaSpeech]:
    """Return a builder of the miniature data set with a shared `prepared` folder; keywords override arguments."""
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
            "max_dropped_share": 0.01,
        }
        return GigaSpeech(**{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def loaded_cuts(gigaspeech: Callable[..., GigaSpeech]) -> CorpusTables:
    """Return the subsets XS, DEV and TEST of the miniature, read from its recordings."""
    return gigaspeech().corpus


@pytest.fixture(scope="session")
def small_release(gigaspeech_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a release with one recording of a few segments per part; tests that change it must copy it first."""
    root = tmp_path_factory.mktemp("small")
    release = json.loads((gigaspeech_root / "GigaSpeech.json").read_text())
    chosen = ("AUD0000000001", "POD0000000002", "YOU0000000002")
    release["audios"] = [audio for audio in release["audios"] if audio["aid"] in chosen]
    for audio in release["audios"]:
        (root / audio["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / audio["path"]).write_bytes((gigaspeech_root / audio["path"]).read_bytes())
    (root / "GigaSpeech.json").write_text(json.dumps(release))
    return root
