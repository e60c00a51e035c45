"""Shards are written once, even if processes are killed or wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from system import needs_fork

from speech_exp.data.corpus.prepared import CorpusTables
from speech_exp.data.corpus.readers import RecordingReader
from speech_exp.data.corpus.shards import open_shards, shards_are_written, write_shards
from speech_exp.data.gigaspeech.data_set import GigaSpeech


@dataclass(frozen=True, eq=False)
class Slow(RecordingReader):
    """A slow reader that logs a line for each utterance it reads."""

    calls: Path = Path()
    sleep_s: float = 0.0

    def __call__(self, number: int) -> np.ndarray:
        time.sleep(self.sleep_s)
        with self.calls.open("a") as file:
            file.write(f"{number}\n")
        return super().__call__(number)


def numbers_read(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


def write(reader: RecordingReader, folder: Path) -> None:
    write_shards(reader, folder, 1, "shards", shard_utterances=5)


@needs_fork
def test_a_killed_run_resumes_with_the_shards_that_are_missing(loaded_cuts: CorpusTables, tmp_path: Path) -> None:
    table, folder = loaded_cuts.tables["test"], tmp_path / "shar"
    slow = Slow(table, 16000, calls=tmp_path / "first", sleep_s=0.05)
    job = multiprocessing.get_context("fork").Process(target=write, args=(slow, folder))
    job.start()
    while len(list(folder.glob("members/*.json"))) < 3:
        assert job.is_alive()
        time.sleep(0.005)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.join(timeout=60)
    assert not shards_are_written(folder)
    done = {int(path.stem) for path in folder.glob("members/*.json")}
    assert 3 <= len(done) < 8
    kept = {number: (folder / f"shards/recording.{number:06d}.tar").stat().st_mtime_ns for number in done}
    write(Slow(table, 16000, calls=tmp_path / "second"), folder)
    assert numbers_read(tmp_path / "second") == [number for number in range(37) if number // 5 not in done]
    for number, written_ns in kept.items():
        assert (folder / f"shards/recording.{number:06d}.tar").stat().st_mtime_ns == written_ns
    assert not list(folder.glob("aside*"))
    reader = open_shards(table, folder, 16000)
    assert reader.table.shard_U.tolist() == [number // 5 for number in range(37)]
    for number in range(37):
        np.testing.assert_allclose(reader(number), loaded_cuts.readers["test"](number), atol=1 / 2**15)


def load(dataset: GigaSpeech, results: multiprocessing.SimpleQueue) -> None:
    loaded = dataset.corpus
    written_ns = [path.stat().st_mtime_ns for path in sorted(loaded.folder.rglob("*")) if path.is_file()]
    results.put((loaded.fingerprint, written_ns))


@needs_fork
def test_jobs_that_start_together_prepare_once(
    small_release: Path, tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]
) -> None:
    dataset = gigaspeech(root=str(small_release), prepared=str(tmp_path), storage="shar")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    jobs = [context.Process(target=load, args=(dataset, results)) for _ in range(3)]
    for job in jobs:
        job.start()
    found = [results.get() for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    assert found[1:] == [found[0]] * 2  # no file was written again


def prepare_slowly(dataset: GigaSpeech) -> None:
    from speech_exp.data.gigaspeech import release as gigaspeech_release

    check = gigaspeech_release.Release._check

    def slow(self: gigaspeech_release.Release, audio: dict[str, object], number: int) -> None:
        check(self, audio, number)
        time.sleep(0.5)

    gigaspeech_release.Release._check = slow  # type: ignore[method-assign]
    _ = dataset.corpus


@needs_fork
def test_a_killed_run_leaves_no_half_table(
    small_release: Path, tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]
) -> None:
    dataset = gigaspeech(root=str(small_release), prepared=str(tmp_path))
    job = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(dataset,))
    job.start()
    while not list(tmp_path.glob("*/*.part-*")):
        assert job.is_alive()
        time.sleep(0.005)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.join(timeout=60)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert all(".part-" in path.name for path in folder.iterdir())
    loaded = dataset.corpus
    assert sorted(path.name for path in folder.iterdir()) == ["dev", "test", "xs"]
    assert len(loaded.tables["test"]) == 17
