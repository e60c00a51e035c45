"""The cache builds an entry once for any number of processes, and never exposes a partial one."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from speech_exp import files
from speech_exp.features import cache
from speech_exp.features.cache import CachedFeatures, cached_features, code_version
from speech_exp.features.mfcc import TorchMfcc
from speech_exp.files import write_array

IDS = ["a", "b", "c", "d"]
DESCRIPTION = {"n_mfcc": 2, "data": "some data"}


def features_of(position: int) -> np.ndarray:
    """Return position + 1 frames of two features for recording `position`."""
    return np.full((position + 1, 2), position, dtype=np.float32)


class Counted:
    """An extraction that records the positions it was called with."""

    def __init__(self, extract: Callable[[int], np.ndarray] = features_of) -> None:
        self.extract, self.positions = extract, list[int]()

    def __call__(self, position: int) -> np.ndarray:
        self.positions.append(position)
        return self.extract(position)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def assert_whole(cached: CachedFeatures) -> None:
    assert cached.ids == IDS
    assert cached.dropped == {}
    assert cached.lengths_U.dtype == np.int64
    assert cached.lengths_U.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(cached.frames_NF, np.concatenate([features_of(position) for position in range(4)]))


def test_a_hit_extracts_nothing(tmp_path: Path) -> None:
    extract = Counted()
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, extract))
    assert sorted(extract.positions) == [0, 1, 2, 3]
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, extract))
    assert len(extract.positions) == 4
    assert len(entries(tmp_path)) == 1


def test_the_frames_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    for _ in range(2):  # newly built, then cached
        frames_NF = cached_features(tmp_path, DESCRIPTION, IDS, features_of).frames_NF
        assert isinstance(frames_NF, np.memmap)
        assert frames_NF.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            frames_NF[0] = 1


@pytest.mark.parametrize("threads", [2, 4])
def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path, threads: int) -> None:
    """The last bits of a matrix product, such as the mel bands, depend on threads in about a tenth of recordings of 9 to 11 frames."""
    generator = np.random.default_rng(0)
    waveforms = [generator.standard_normal(frames * 128).astype(np.float32) for frames in 40 * [8, 9, 10, 11]]
    extractor = TorchMfcc(8000, window_s=0.032, hop_s=0.016, n_fft=256, n_mels=40, n_mfcc=20)
    ids = list(map(str, range(len(waveforms))))
    found, before = [], torch.get_num_threads()
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            made = cached_features(tmp_path / str(number), {}, ids, lambda at: extractor(waveforms[at]))
            found.append(made.frames_NF)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    "other",
    [{"n_mfcc": 3, "data": "some data"}, {"n_mfcc": 2, "data": "other data"}, {**DESCRIPTION, "code": "new"}],
)
def test_another_description_is_another_entry(tmp_path: Path, other: dict[str, Any]) -> None:
    extract = Counted()
    cached_features(tmp_path, DESCRIPTION, IDS, extract)
    cached_features(tmp_path, other, IDS, extract)
    assert len(extract.positions) == 8
    assert len(entries(tmp_path)) == 2


def test_the_order_of_the_keys_does_not_matter(tmp_path: Path) -> None:
    extract = Counted()
    for description in (DESCRIPTION, dict(reversed(DESCRIPTION.items()))):
        cached_features(tmp_path, description, IDS, extract)
    assert len(extract.positions) == 4


def test_the_code_version_follows_the_source(tmp_path: Path) -> None:
    def module(name: str, source: str) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    first, same, other = module("first", "x = 1\n"), module("same", "x = 1\n"), module("other", "x = 2\n")
    assert code_version(first) == code_version(same) != code_version(other)
    assert code_version(first, other) != code_version(first)


def bad_second(position: int) -> np.ndarray:
    if position == 1:
        raise ValueError("b.wav is empty")
    return features_of(position)


def test_bad_recordings_are_dropped_and_named_from_the_cache_too(tmp_path: Path) -> None:
    extract = Counted(bad_second)
    for _ in range(2):
        cached = cached_features(tmp_path, DESCRIPTION, IDS, extract)
        assert cached.ids == ["a", "c", "d"]
        assert cached.lengths_U.tolist() == [1, 3, 4]
        np.testing.assert_array_equal(cached.frames_NF, np.concatenate([features_of(each) for each in (0, 2, 3)]))
        assert cached.dropped == {"b": "b.wav is empty"}
    assert len(extract.positions) == 4


def test_only_bad_recordings_are_an_error_and_no_entry(tmp_path: Path) -> None:
    def bad(position: int) -> np.ndarray:
        raise ValueError(f"{IDS[position]}.wav is empty")

    with pytest.raises(ValueError, match=r"^no recording could be used, the first because a\.wav is empty$"):
        cached_features(tmp_path, DESCRIPTION, IDS, bad)
    assert entries(tmp_path) == []


def test_a_fault_of_the_code_midway_leaves_no_entry(tmp_path: Path) -> None:
    def broken(position: int) -> np.ndarray:
        if position == 2:
            raise RuntimeError("a fault, not a bad recording")
        return features_of(position)

    with pytest.raises(RuntimeError, match="a fault"):
        cached_features(tmp_path, DESCRIPTION, IDS, broken)
    assert entries(tmp_path) == []
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, features_of))


def test_a_full_disk_leaves_no_entry_and_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: BinaryIO, array: np.ndarray) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            ValueError,
            match=r"the feature cache .* cannot be read or written \(No space left on device\): set cache_dir to another folder",
        ),
    ):
        patch.setattr(cache, "write_array", full)
        cached_features(tmp_path, DESCRIPTION, IDS, features_of)
    assert entries(tmp_path) == []
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, features_of))


def test_an_entry_appears_whole_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def rename(source: Path, target: Path) -> None:
        seen.append((sorted(path.name for path in source.iterdir()), target.exists()))
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(cache.os, "replace", rename)
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, features_of))
    assert seen == [(["frames.npy", "index.json", "sealed.json"], False)]


def test_what_a_killed_build_left_behind_is_not_an_entry(tmp_path: Path) -> None:
    cached_features(tmp_path / "elsewhere", DESCRIPTION, IDS, features_of)
    (key,) = entries(tmp_path / "elsewhere")
    folder = tmp_path / "cache"
    left = folder / f"{key}.part-abc123"
    left.mkdir(parents=True)
    (left / "frames.npy").write_bytes(b"half of it")
    (left / "index.json").write_text("{}")
    (folder / f"{key}.lock").touch()
    extract = Counted()
    assert_whole(cached_features(folder, DESCRIPTION, IDS, extract))
    assert len(extract.positions) == 4


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the feature cache .* cannot be read or written") as caught:
        cached_features(tmp_path / "file" / "cache", DESCRIPTION, IDS, features_of)
    expected = f"the feature cache {tmp_path / 'file' / 'cache'} cannot be read or written (Not a directory): set cache_dir to another folder"
    assert str(caught.value) == expected


def test_an_entry_is_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_features(tmp_path, DESCRIPTION, IDS, features_of)

    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(files, "FileLock", refuse)
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, features_of))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def zero_the_frames(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(40))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeros": lambda entry: zero_the_frames(entry / "frames.npy"),
    "a bit": lambda entry: flip_a_bit(entry / "frames.npy"),
    "cut": lambda entry: os.truncate(entry / "frames.npy", 100),
    "empty": lambda entry: os.truncate(entry / "frames.npy", 0),
    "grown": lambda entry: (entry / "frames.npy").open("ab").write(b"x"),
    "no frames": lambda entry: (entry / "frames.npy").unlink(),
    "no index": lambda entry: (entry / "index.json").unlink(),
    "cut index": lambda entry: os.truncate(entry / "index.json", 90),
    "other lengths": lambda entry: (entry / "index.json").write_text(
        (entry / "index.json").read_text().replace("[1, 2, 3, 4]", "[2, 1, 3, 4]")
    ),
    "no seal": lambda entry: (entry / "sealed.json").unlink(),
    "seal of a list": lambda entry: (entry / "sealed.json").write_text("[1]"),
    "seal of numbers": lambda entry: (entry / "sealed.json").write_text('{"frames.npy": 7}'),
    "cut seal": lambda entry: os.truncate(entry / "sealed.json", 30),
    "binary index": lambda entry: (entry / "index.json").write_bytes(b"\xff" * 200),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_computed_again_with_one_line(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cached_features(tmp_path, DESCRIPTION, IDS, features_of)
    (name,) = entries(tmp_path)
    DAMAGES[damage](tmp_path / name)
    capfd.readouterr()
    extract = Counted()
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, extract))
    assert len(extract.positions) == 4
    told = [line for line in capfd.readouterr().err.splitlines() if "computed again" in line]
    assert len(told) == 1
    assert told[0].startswith(f"the features in {tmp_path / name} are computed again: ")
    assert_whole(cached_features(tmp_path, DESCRIPTION, IDS, extract))
    assert len(extract.positions) == 4


def test_an_entry_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".part-")[0])
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        happened.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    cached_features(tmp_path, DESCRIPTION, IDS, features_of)
    (name,) = entries(tmp_path)
    assert sorted(happened[:3]) == ["frames.npy", "index.json", "sealed.json"]
    assert happened[3:] == [name, "rename", tmp_path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_disk_is_named_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: BinaryIO, array: np.ndarray) -> None:
        with open("/dev/full", "wb") as device:
            write_array(device, array)

    monkeypatch.setattr(cache, "write_array", full)
    with pytest.raises(ValueError, match=r"\(No space left on device\): set cache_dir to another folder$") as caught:
        cached_features(tmp_path, DESCRIPTION, IDS, features_of)
    assert str(caught.value).startswith(f"the feature cache {tmp_path} ")
    assert entries(tmp_path) == []


def ask_together(folder: Path, calls: Path, barrier: Any, results: Any) -> None:
    """Act as one job of a sweep: wait for the others, then request the same entry; write a file for each extraction."""

    def extract(position: int) -> np.ndarray:
        (calls / f"{position}-{os.getpid()}").touch()
        return features_of(position)

    barrier.wait()
    cached = cached_features(folder, DESCRIPTION, IDS, extract)
    results.put((cached.ids, cached.lengths_U.tolist(), cached.frames_NF.tolist()))


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    folder, calls = tmp_path / "cache", tmp_path / "calls"
    calls.mkdir()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.SimpleQueue()
    jobs = [context.Process(target=ask_together, args=(folder, calls, barrier, results)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert sorted(path.name.split("-")[0] for path in calls.iterdir()) == ["0", "1", "2", "3"]
    found = [results.get() for _ in jobs]
    assert all(each == found[0] for each in found)
    assert found[0][:2] == (IDS, [1, 2, 3, 4])
    assert len(entries(folder)) == 1
