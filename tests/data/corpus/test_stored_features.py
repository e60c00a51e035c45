"""Stored features equal the extracted ones within float16, are computed once, and are never partial."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from system import needs_fork, needs_proc

from speech_exp.data.audio import AudioError
from speech_exp.data.corpus.cuts import CutTable
from speech_exp.data.corpus.prepared import CorpusTables
from speech_exp.data.corpus.readers import WaveformReader
from speech_exp.data.corpus.stored_features import open_features, store_features
from speech_exp.data.storage import StorageError

UTTERANCES = 20


@dataclass(frozen=True)
class Counted(WaveformReader):
    """A reader whose utterance n has n + 1 samples of value n; it writes a file for each utterance read."""

    table: CutTable
    calls: Path
    bad: tuple[int, ...] = ()
    sleep_s: float = 0.0
    sample_rate_hz: int = 16000

    def __call__(self, number: int) -> np.ndarray:
        time.sleep(self.sleep_s)
        if number in self.bad:
            raise AudioError(f"u{number} is empty")
        with (self.calls / str(number)).open("a") as file:
            file.write("read\n")
        return np.full(number + 1, number, dtype=np.float32)

    def times_read(self) -> list[int]:
        files = {int(path.name): path for path in self.calls.iterdir()}
        return [len(files[n].read_text().split()) if n in files else 0 for n in range(len(self.table))]


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    lines = [json.dumps({"id": f"u{number}"}) + "\n" for number in range(UTTERANCES)]
    (tmp_path / "cuts.jsonl").write_text("".join(lines))
    offsets_U = np.cumsum([0, *map(len, lines[:-1])])
    zeros_U = np.zeros(UTTERANCES, dtype=np.int64)
    table = CutTable(tmp_path / "cuts.jsonl", offsets_U, zeros_U, zeros_U, zeros_U, zeros_U)
    (tmp_path / "calls").mkdir()
    return Counted(table, tmp_path / "calls")


def pairs(waveform_N: np.ndarray) -> np.ndarray:
    """Return two features per sample."""
    return np.stack([waveform_N, -waveform_N], axis=1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_stored_are_the_extracted(loaded_cuts: CorpusTables, tmp_path: Path) -> None:
    from speech_exp.features.logmel import LogMel  # here, to keep torch out of spawned processes

    extract = LogMel(16000, 0.025, 0.01, 512, 80, 20.0, None, 1e-6)
    table, reader = loaded_cuts.tables["test"], loaded_cuts.readers["test"]
    store_features(table, reader, extract, tmp_path / "features", 1, shard_utterances=10)
    stored = open_features(tmp_path / "features")
    assert (len(stored), stored.features, stored.dropped) == (len(table), 80, [])
    for number in (36, 0, 9, 10, 20):
        expected_TF = extract(reader(number))
        found_TF = stored(number)
        assert found_TF.dtype == np.float32
        assert found_TF.shape == (stored.frames_U[number], 80)
        assert np.abs(expected_TF).max() < 16
        np.testing.assert_allclose(found_TF, expected_TF, rtol=0, atol=2**-8)


@given(arrays(np.float32, 5, elements=st.floats(-15.96875, 15.96875, width=32)))
def test_the_bound_of_rounding(values: np.ndarray) -> None:
    assert np.abs(values.astype(np.float16).astype(np.float32) - values).max() <= 2**-8


@pytest.mark.parametrize("workers", [1, 2])
def test_each_utterance_is_computed_once_whatever_the_workers(counted: Counted, tmp_path: Path, workers: int) -> None:
    for _ in range(2):
        store_features(counted.table, counted, pairs, tmp_path / "features", workers, shard_utterances=7)
    stored = open_features(tmp_path / "features")
    assert stored.frames_U.tolist() == [number + 1 for number in range(UTTERANCES)]
    for number in range(UTTERANCES):
        np.testing.assert_array_equal(stored(number), pairs(np.full(number + 1, number, dtype=np.float32)))
    assert counted.times_read() == [1] * UTTERANCES
    shards = [f"{number:06d}.{kind}" for number in range(3) for kind in ("json", "npy")]
    assert names(tmp_path / "features") == sorted(
        [*shards, "checks_U.npy", "frames_U.npy", "index.json", "starts_U.npy"]
    )


def test_bad_audio_has_no_frames_and_is_named(counted: Counted, tmp_path: Path) -> None:
    bad = Counted(counted.table, counted.calls, bad=(0, 1, 2, 3, 17))  # all of the first shard
    store_features(bad.table, bad, pairs, tmp_path / "features", 1, shard_utterances=4)
    stored = open_features(tmp_path / "features")
    assert [(each.id, each.reason) for each in stored.dropped] == [(f"u{n}", f"u{n} is empty") for n in bad.bad]
    assert stored(17).shape == stored(0).shape == (0, 2)
    np.testing.assert_array_equal(stored(18), pairs(np.full(19, 18, dtype=np.float32)))


@dataclass(frozen=True)
class Lost(Counted):
    def __call__(self, number: int) -> np.ndarray:
        if number in self.bad:
            raise StorageError(f"u{number} cannot be read")
        return super().__call__(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_outage_of_the_storage_does_not_count_as_bad_audio(counted: Counted, tmp_path: Path, workers: int) -> None:
    """A StorageError reaches the user as one sentence, even from a worker process."""
    lost = Lost(counted.table, counted.calls, bad=(9,))
    with pytest.raises(StorageError, match=r"^u9 cannot be read$") as caught:
        store_features(lost.table, lost, pairs, tmp_path / "features", workers, shard_utterances=7)
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].frame.f_globals["__name__"] in ("speech_exp.parallel", __name__)
    assert not (tmp_path / "features" / "index.json").exists()
    store_features(counted.table, counted, pairs, tmp_path / "features", 1, shard_utterances=7)
    assert len(open_features(tmp_path / "features")(9)) == 10


def test_only_bad_audio_is_an_error(counted: Counted, tmp_path: Path) -> None:
    bad = Counted(counted.table, counted.calls, bad=tuple(range(UTTERANCES)))
    with pytest.raises(ValueError, match=r"^no utterance could be used, the first because u0 is empty$"):
        store_features(bad.table, bad, pairs, tmp_path / "features", 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_float16_cannot_hold_are_named(counted: Counted, tmp_path: Path, value: float) -> None:
    def extract(waveform_N: np.ndarray) -> np.ndarray:
        return pairs(np.where(waveform_N == 3, value, waveform_N))

    store_features(counted.table, counted, extract, tmp_path / "features", 1)
    (dropped,) = open_features(tmp_path / "features").dropped
    assert (dropped.id, dropped.reason) == ("u3", "its features contain values that are NaN or do not fit float16")


def test_a_fault_of_the_code_leaves_nothing_half_written(counted: Counted, tmp_path: Path) -> None:
    def extract(waveform_N: np.ndarray) -> np.ndarray:
        if len(waveform_N) == 12:
            raise RuntimeError("a fault")
        return pairs(waveform_N)

    with pytest.raises(RuntimeError, match="a fault"):
        store_features(counted.table, counted, extract, tmp_path / "features", 1, shard_utterances=5)
    assert names(tmp_path / "features") == ["000000.json", "000000.npy", "000001.json", "000001.npy"]


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(counted: Counted, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"the features in .* cannot be written \(.*\): set dataset.prepared to a folder"
    ):
        store_features(counted.table, counted, pairs, tmp_path / "file" / "features", 1)


@pytest.mark.parametrize("number", [0, 3, UTTERANCES - 1])
def test_changed_frames_are_never_used(counted: Counted, tmp_path: Path, number: int) -> None:
    store_features(counted.table, counted, pairs, tmp_path / "features", 1)
    path = tmp_path / "features" / "000000.npy"
    stored = open_features(tmp_path / "features")
    content = bytearray(path.read_bytes())
    content[int(stored.starts_U[number])] ^= 1
    path.write_bytes(content)
    for other in range(UTTERANCES):
        if other == number:
            with pytest.raises(ValueError, match=r"000000\.npy was damaged after it was written: remove .*npy and run"):
                stored(other)
        else:
            assert len(stored(other)) == other + 1


@pytest.mark.parametrize(
    "name", ["000001.npy", "000001.json", "frames_U.npy", "checks_U.npy", "starts_U.npy", "index.json"]
)
@pytest.mark.parametrize("cut", [True, False])
def test_only_damaged_shards_are_computed_again_and_it_is_reported(
    counted: Counted, tmp_path: Path, name: str, cut: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "features"
    store_features(counted.table, counted, pairs, folder, 1, shard_utterances=7)
    if cut:
        os.truncate(folder / name, 1)
    else:
        (folder / name).unlink()
    store_features(counted.table, counted, pairs, folder, 1, shard_utterances=7)
    told = capsys.readouterr().err
    again = [2 if name == "000001.npy" and 7 <= n < 14 else 1 for n in range(UTTERANCES)]
    assert counted.times_read() == again
    # Complete features do not need the list of a shard; a missing index.json only marks them as unfinished.
    silent = name == "000001.json" or (name, cut) == ("index.json", False)
    assert (
        f"the features in {folder} are incomplete or damaged and are computed again where needed: {name} " in told
    ) == (not silent)
    stored = open_features(folder)
    for number in range(UTTERANCES):
        np.testing.assert_array_equal(stored(number), pairs(np.full(number + 1, number, dtype=np.float32)))


def test_a_pickled_reader_maps_the_same_files(counted: Counted, tmp_path: Path) -> None:
    store_features(counted.table, counted, pairs, tmp_path / "features", 1)
    stored = open_features(tmp_path / "features")
    stored(3)
    content = pickle.dumps(stored)
    again = pickle.loads(content)
    assert isinstance(again.starts_U, np.memmap)
    np.testing.assert_array_equal(again(3), stored(3))


def store_slowly(counted: Counted, folder: Path, workers: int) -> None:
    store_features(counted.table, counted, pairs, folder, workers, shard_utterances=2)


def runs(process: str) -> bool:
    """Return whether a process exists and is not a zombie."""
    status = Path("/proc") / process / "stat"
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@needs_fork
@needs_proc
def test_a_killed_run_resumes_with_the_shards_that_are_missing(counted: Counted, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    slow = Counted(counted.table, counted.calls, sleep_s=0.2)
    job = multiprocessing.get_context("fork").Process(target=store_slowly, args=(slow, folder, 2))
    job.start()
    while len(list(folder.glob("*.json"))) < 2:
        assert job.is_alive()
        time.sleep(0.01)
    assert job.pid is not None
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(workers) >= 2
    os.kill(job.pid, signal.SIGKILL)
    job.join(timeout=60)
    end_s = time.monotonic() + 60
    while any(map(runs, workers)):  # they end on their own
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert not (folder / "index.json").exists()
    done = {int(path.stem) for path in folder.glob("*.json")}
    assert 2 <= len(done) < UTTERANCES // 2
    before = counted.times_read()
    store_features(counted.table, counted, pairs, folder, 1, shard_utterances=2)
    again = [after - first for after, first in zip(counted.times_read(), before, strict=True)]
    assert again == [0 if number // 2 in done else 1 for number in range(UTTERANCES)]
    stored = open_features(folder)
    for number in range(UTTERANCES):
        np.testing.assert_array_equal(stored(number), pairs(np.full(number + 1, number, dtype=np.float32)))
    assert not list(folder.glob(".*"))


@needs_fork
def test_processes_that_start_together_compute_once(counted: Counted, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=store_slowly, args=(counted, tmp_path / "features", 1)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert counted.times_read() == [1] * UTTERANCES
