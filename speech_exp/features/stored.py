"""Features of a whole table on disk, computed once in parallel, in shards that are seen when they are whole.

Plain arrays of float16: lhotse's own storages need packages that are not otherwise used here (LilcomChunkyWriter lilcom,
NumpyHdf5Writer h5py) or write a file for each utterance (NumpyFilesWriter). Rounding to float16 moves a value below 16 by at
most 2^-8, and the logarithm of a mel band's power stays below 16: its floor of 1e-6 is -13.8, full scale below 12.

Shape letters: T frames, F features, N samples, U utterances.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from speech_exp.data.cuts import CutTable, PickledByFile
from speech_exp.data.readers import OpenFiles, WaveformReader, open_bytes
from speech_exp.data.recordings import Dropped
from speech_exp.parallel import in_processes

SHARD_UTTERANCES = 500
_DONE = "index.json"  # written last
_DTYPE = np.dtype("<f2")

Extract = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _ShardJob:
    reader: WaveformReader
    extract: Extract
    folder: Path
    number: int
    utterances: range

    @property
    def index(self) -> Path:
        """Where each utterance lies, and which were dropped; written last, so it says "finished"."""
        return self.folder / f"{self.number:06d}.json"


@dataclass(frozen=True, eq=False)
class StoredFeatures(PickledByFile):
    """Features (T, F) float32 of utterance `number`; (0, F) where its audio could not be used.

    Args:
        starts_U: int64, byte in its shard where an utterance begins.
        frames_U: int32, T of each utterance.
        features: F.
        dropped: utterances of 0 frames, with the reason.
    """

    folder: Path
    starts_U: np.ndarray
    frames_U: np.ndarray
    features: int
    shard_utterances: int
    dropped: list[Dropped]
    _files: OpenFiles[BinaryIO] = field(default_factory=lambda: OpenFiles(open_bytes), repr=False)

    def __len__(self) -> int:
        return len(self.frames_U)

    def __call__(self, number: int) -> np.ndarray:
        path, frames = _shard(self.folder, number // self.shard_utterances), int(self.frames_U[number])
        size_bytes = frames * self.features * _DTYPE.itemsize
        content = os.pread(self._files[path].fileno(), size_bytes, int(self.starts_U[number]))
        if len(content) != size_bytes:
            raise ValueError(f"{path} is truncated: remove {self.folder} and run again")
        return np.frombuffer(content, _DTYPE).reshape(frames, self.features).astype(np.float32)


def store_features(
    table: CutTable,
    reader: WaveformReader,
    extract: Extract,
    folder: Path,
    workers: int,
    shard_utterances: int = SHARD_UTTERANCES,
) -> None:
    """Make `folder` hold `extract(reader(number))` (T, F) of each utterance; shards that are there are kept.

    The caller names the folder after all that decides its content. An utterance that raises a ValueError is stored with
    0 frames and named in `StoredFeatures.dropped`; the rest is kept.
    """
    if (folder / _DONE).exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not (folder / _DONE).exists():
                _store(table, reader, extract, folder, workers, shard_utterances)
    except OSError as error:
        raise ValueError(
            f"the features in {folder} cannot be written ({error}): set dataset.prepared to a folder that can"
        ) from None


def open_features(folder: Path) -> StoredFeatures:
    """What `store_features` left, memory-mapped."""
    done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    starts_U, frames_U = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts_U", "frames_U"))
    dropped = [Dropped(**each) for each in done["dropped"]]
    return StoredFeatures(folder, starts_U, frames_U, done["features"], done["shard_utterances"], dropped)


def _store(
    table: CutTable, reader: WaveformReader, extract: Extract, folder: Path, workers: int, shard_utterances: int
) -> None:
    for aside in folder.glob("aside-*"):  # of a process that was killed
        shutil.rmtree(aside)
    jobs = [
        _ShardJob(reader, extract, folder, number, range(first, min(first + shard_utterances, len(table))))
        for number, first in enumerate(range(0, len(table), shard_utterances))
    ]
    missing = [job for job in jobs if not job.index.exists()]
    for _ in in_processes(_write_shard, missing, workers, f"features, shards of {shard_utterances}"):
        pass
    indices = [json.loads(job.index.read_text(encoding="utf-8")) for job in jobs]
    dropped = [each for index in indices for each in index["dropped"]]
    features = max(index["features"] for index in indices)
    if not features:
        raise ValueError(f"no utterance could be used, the first because {dropped[0]['reason']}")
    np.save(folder / "starts_U.npy", np.concatenate([np.array(index["starts"], dtype=np.int64) for index in indices]))
    np.save(folder / "frames_U.npy", np.concatenate([np.array(index["frames"], dtype=np.int32) for index in indices]))
    done = {"features": features, "shard_utterances": shard_utterances, "dropped": dropped}
    _write_text(folder / _DONE, json.dumps(done), folder)


def _write_shard(job: _ShardJob) -> None:
    parts, frames, dropped = [], [], []
    for number in job.utterances:
        try:
            parts.append(_rounded(job.extract(job.reader(number))))
            frames.append(len(parts[-1]))
        except ValueError as error:
            dropped.append({"id": job.reader.table.id(number), "reason": str(error)})
            frames.append(0)
    features_NF = np.concatenate(parts) if parts else np.empty((0, 0), dtype=_DTYPE)
    aside = Path(tempfile.mkdtemp(dir=job.folder, prefix="aside-"))
    try:
        np.save(aside / "features.npy", features_NF)
        frame_bytes = features_NF.shape[1] * _DTYPE.itemsize
        header_bytes = (aside / "features.npy").stat().st_size - features_NF.nbytes
        ends = np.cumsum(frames)
        starts = [header_bytes + int(end - count) * frame_bytes for end, count in zip(ends, frames, strict=True)]
        os.replace(aside / "features.npy", _shard(job.folder, job.number))
        facts = {"features": features_NF.shape[1], "starts": starts, "frames": frames, "dropped": dropped}
        _write_text(job.index, json.dumps(facts), aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rounded(features_TF: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded_TF = features_TF.astype(_DTYPE)
    if not np.isfinite(rounded_TF).all():
        raise ValueError("its features hold values that are NaN or do not fit float16")
    return rounded_TF


def _write_text(path: Path, text: str, aside: Path) -> None:
    part = aside / f"{path.name}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"
