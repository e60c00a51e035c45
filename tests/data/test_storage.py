"""A storage outage is retried, then reported in one sentence; it never counts as bad audio."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_exp.data import recordings, storage
from speech_exp.data.audio import AudioError
from speech_exp.data.corpus import readers
from speech_exp.data.digits import Digits
from speech_exp.data.gigaspeech.data_set import GigaSpeech
from speech_exp.data.storage import StorageError, with_retries

Make = Callable[..., GigaSpeech]
OUTAGES = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.ENOTCONN)


@pytest.fixture
def waited_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace pauses by a list of their lengths."""
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    return pauses


class Failing:
    """A reader that raises an OSError `times` times, then succeeds."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times = number, times

    def __call__(self, *_: object) -> str:
        self.times -= 1
        if self.times >= 0:
            raise OSError(self.number, os.strerror(self.number))
        return "read"


@pytest.mark.parametrize("number", OUTAGES)
def test_a_short_outage_is_waited_for_longer_each_time(number: int, waited_s: list[float]) -> None:
    assert with_retries(Failing(number, 3), "x.wav") == "read"
    assert waited_s == sorted(set(waited_s))
    assert len(waited_s) == 3


@pytest.mark.parametrize("number", OUTAGES)
def test_a_long_outage_is_reported_in_one_sentence_with_reason_and_remedy(number: int, waited_s: list[float]) -> None:
    with pytest.raises(StorageError) as caught:
        with_retries(Failing(number, 4), "x.wav", "check dataset.root")
    assert str(caught.value) == (
        f"x.wav cannot be read ({os.strerror(number)}, 4 tries in {sum(waited_s):g} s): check dataset.root, then repeat the command"
    )


def test_an_error_of_the_file_is_not_waited_for(waited_s: list[float]) -> None:
    def bad() -> None:
        raise AudioError("x.wav is empty")

    with pytest.raises(AudioError):
        with_retries(bad, "x.wav")
    assert waited_s == []


@pytest.fixture
def release(small_release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_release, tmp_path / "release"))


def test_a_missing_recording_does_not_count_as_bad_audio(
    release: Path, tmp_path: Path, gigaspeech: Make, waited_s: list[float]
) -> None:
    loaded = gigaspeech(root=str(release), prepared=str(tmp_path / "prepared")).corpus
    expected_N = loaded.readers["train"](0)
    again = gigaspeech(root=str(release), prepared=str(tmp_path / "prepared")).corpus.readers["train"]
    (release / "audio").rename(release / "elsewhere")
    with pytest.raises(StorageError, match=r"AUD0000000001\.opus cannot be read \(No such file or directory, 4 tries"):
        again(0)
    assert len(waited_s) == 3
    (release / "elsewhere").rename(release / "audio")
    np.testing.assert_array_equal(again(0), expected_N)


@pytest.mark.parametrize("storage_kind", ["audio", "shar"])
def test_a_disk_that_fails_for_a_moment_changes_nothing(
    release: Path,
    tmp_path: Path,
    gigaspeech: Make,
    waited_s: list[float],
    monkeypatch: pytest.MonkeyPatch,
    storage_kind: str,
) -> None:
    reader = gigaspeech(root=str(release), prepared=str(tmp_path), storage=storage_kind).corpus.readers["train"]
    expected_N = reader(0)
    failing = Failing(errno.EIO, 2)
    pread, read = os.pread, soundfile.SoundFile.read

    def pread_or_fail(*arguments: int) -> bytes:
        failing()
        return pread(*arguments)

    def read_or_fail(file: soundfile.SoundFile, *arguments: object, **more: object) -> np.ndarray:
        failing()
        return read(file, *arguments, **more)

    monkeypatch.setattr(os, "pread", pread_or_fail)
    monkeypatch.setattr(soundfile.SoundFile, "read", read_or_fail)
    np.testing.assert_array_equal(reader(0), expected_N)
    assert failing.times < 0
    assert len(waited_s) == 2


def test_what_libsndfile_takes_for_bad_audio_is_an_outage_where_the_file_cannot_be_read_through(
    release: Path, tmp_path: Path, gigaspeech: Make, waited_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = gigaspeech(root=str(release), prepared=str(tmp_path)).corpus.readers["train"]
    reader(0)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: np.zeros((3, 1), dtype=np.float32))
    with pytest.raises(AudioError, match=r"contains only \d+ of the segment's"):
        reader(0)
    assert waited_s == []
    monkeypatch.setattr(readers, "read_through", Failing(errno.EIO, 4))
    with pytest.raises(StorageError, match=r"cannot be read \(Input/output error, 4 tries"):
        reader(0)


def test_bytes_of_a_shard_that_changed_are_no_bad_audio(release: Path, tmp_path: Path, gigaspeech: Make) -> None:
    loaded = gigaspeech(root=str(release), prepared=str(tmp_path), storage="shar").corpus
    reader = loaded.readers["train"]
    path = loaded.folder / "xs-shar/shards/recording.000000.tar"
    content = bytearray(path.read_bytes())
    content[int(reader.starts_U[1]) + 100] ^= 1
    path.write_bytes(content)
    assert len(reader(0)) == reader.table.samples_U[0]
    with pytest.raises(
        StorageError, match=r"recording\.000000\.tar was damaged after it was written: remove .*xs-shar and"
    ):
        reader(1)


def test_a_folder_of_digits_that_disappears_is_reported_in_one_sentence(
    tiny_digits: Callable[..., Digits], waited_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = recordings.index_recordings

    def index_then_lose(folder: Path) -> object:
        found = index(folder)
        (folder / "0_anna_0.wav").unlink()
        return found

    monkeypatch.setattr("speech_exp.data.digits.index_recordings", index_then_lose)
    with pytest.raises(StorageError, match=r"0_anna_0\.wav cannot be read \(No such file or directory, 4 tries"):
        _ = tiny_digits().recorded
    assert len(waited_s) == 3


def test_a_fifo_folder_or_huge_file_among_the_digits_is_left_out_and_counted(
    tiny_digits: Callable[..., Digits], tiny_root: Path
) -> None:
    os.mkfifo(tiny_root / "recordings" / "0_anna_7.wav")
    (tiny_root / "recordings" / "0_anna_8.wav").mkdir()
    with (tiny_root / "recordings" / "0_anna_9.wav").open("wb") as file:
        file.truncate(2**40)
    loaded = tiny_digits().recorded
    reason = "a folder, FIFO or device in place of a file"
    huge = "of 1,099,511,627,776 bytes, expected a recording of at most 67,108,864"
    assert [(item.id[:8], item.reason) for item in loaded.dropped] == [
        ("0_anna_7", reason),
        ("0_anna_8", reason),
        ("0_anna_9", huge),
    ]
    assert len(loaded.recordings) == 54
