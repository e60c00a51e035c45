"""Stores the features of a whole table on disk, computed once in parallel, in shards that appear only when complete.

Each utterance has a checksum that is verified on every read; file sizes are verified when the folder is opened.

The files are plain float16 arrays. lhotse's storages would need packages that are not otherwise used here
(LilcomChunkyWriter: lilcom, NumpyHdf5Writer: h5py) or a file for each utterance (NumpyFilesWriter). Rounding to float16
changes a value below 16 by at most 2^-8, and log-mel values stay below 16: the floor of 1e-6 is -13.8, full scale below 12.

Shape letters: T frames, F features, N samples, U utterances.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from speech_exp.data.corpus.cuts import CutTable, PickledByFile
from speech_exp.data.corpus.readers import OpenFiles, WaveformReader, open_bytes
from speech_exp.data.recordings import Dropped
from speech_exp.data.storage import StorageError, with_retries
from speech_exp.files import FileFacts, atomic_file, build_once, reason, write_array, write_json
from speech_exp.parallel import in_processes

SHARD_UTTERANCES = 500
LAYOUT = 2  # version of the folder's layout; part of the key from which its name is made
_DONE = "index.json"  # written last
_COLUMNS = {"starts_U": np.int64, "frames_U": np.int32, "checks_U": np.uint32}
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
        """File with the place of each utterance and a list of dropped ones; written last, so it marks a finished shard."""
        return self.folder / f"{self.number:06d}.json"

    def is_done(self) -> bool:
        index = _read(self.index)
        return index is not None and FileFacts(index["bytes"]).mismatch(_shard(self.folder, self.number)) is None


@dataclass(frozen=True, eq=False)
class StoredFeatures(PickledByFile):
    """A callable that returns the features (T, F) float32 of utterance `number`; (0, F) if its audio could not be used.

    Args:
        starts_U: int64, byte offset of each utterance in its shard.
        frames_U: int32, T of each utterance.
        checks_U: uint32, CRC-32 of each utterance's bytes.
        features: F.
        dropped: utterances with 0 frames, with the reason.
    """

    folder: Path
    starts_U: np.ndarray
    frames_U: np.ndarray
    checks_U: np.ndarray
    features: int
    shard_utterances: int
    dropped: list[Dropped]
    _files: OpenFiles[BinaryIO] = field(default_factory=lambda: OpenFiles(open_bytes), repr=False)

    def __len__(self) -> int:
        return len(self.frames_U)

    def __call__(self, number: int) -> np.ndarray:
        path, frames = _shard(self.folder, number // self.shard_utterances), int(self.frames_U[number])
        size_bytes = frames * self.features * _DTYPE.itemsize
        start = int(self.starts_U[number])
        content = with_retries(lambda: self._bytes(path, size_bytes, start), str(path), "check dataset.prepared")
        if len(content) != size_bytes or zlib.crc32(content) != self.checks_U[number]:
            raise StorageError(f"{path} was damaged after it was written: remove {path} and run again")
        return np.frombuffer(content, _DTYPE).reshape(frames, self.features).astype(np.float32)

    def _bytes(self, path: Path, size_bytes: int, start: int) -> bytes:
        try:
            return os.pread(self._files[path].fileno(), size_bytes, start)
        except OSError:
            self._files.close(path)
            raise


def store_features(
    table: CutTable,
    reader: WaveformReader,
    extract: Extract,
    folder: Path,
    workers: int,
    shard_utterances: int = SHARD_UTTERANCES,
) -> None:
    """Store `extract(reader(number))` (T, F) of each utterance in `folder`; finished shards are kept.

    The caller must give `folder` a name that depends on everything that determines its content. An utterance that raises a
    ValueError is stored with 0 frames and listed in `StoredFeatures.dropped`. Failing storage (`StorageError`) does not
    count as bad audio and stops the computation.
    """
    try:
        store = partial(_store, table, reader, extract, folder, workers, shard_utterances)
        build_once(folder, partial(_is_complete, folder), store)
    except OSError as error:
        raise ValueError(
            f"the features in {folder} cannot be written ({reason(error)}): set dataset.prepared to a folder that can"
        ) from None


def open_features(folder: Path) -> StoredFeatures:
    """Open features written by `store_features`, with memory-mapped columns."""
    done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
    dropped = [Dropped(**each) for each in done["dropped"]]
    return StoredFeatures(
        folder, **columns, features=done["features"], shard_utterances=done["shard_utterances"], dropped=dropped
    )


def _is_complete(folder: Path) -> bool:
    """Return whether all files exist with their original sizes; print one line about damage."""
    if not (folder / _DONE).exists():
        return False
    done = _read(folder / _DONE)
    files = {} if done is None else done["files"]
    faults = [fault for name, facts in files.items() if (fault := FileFacts(**facts).mismatch(folder / name))]
    if done is None:
        faults = [f"{_DONE} is damaged"]
    if faults:
        print(
            f"the features in {folder} are incomplete or damaged and are computed again where needed: {faults[0]}",
            file=sys.stderr,
        )
    return not faults


def _store(
    table: CutTable, reader: WaveformReader, extract: Extract, folder: Path, workers: int, shard_utterances: int
) -> None:
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".*.tmp"):  # from a killed process
        left.unlink()
    jobs = [
        _ShardJob(reader, extract, folder, number, range(first, min(first + shard_utterances, len(table))))
        for number, first in enumerate(range(0, len(table), shard_utterances))
    ]
    missing = [job for job in jobs if not job.is_done()]
    for _ in in_processes(_write_shard, missing, workers, f"features, shards of {shard_utterances}"):
        pass
    indices = [json.loads(job.index.read_text(encoding="utf-8")) for job in jobs]
    dropped = [each for index in indices for each in index["dropped"]]
    features = max(index["features"] for index in indices)
    if not features:
        raise ValueError(f"no utterance could be used, the first because {dropped[0]['reason']}")
    files = {
        _shard(folder, job.number).name: FileFacts(index["bytes"]) for job, index in zip(jobs, indices, strict=True)
    }
    for name, dtype in _COLUMNS.items():
        path = folder / f"{name}.npy"
        with atomic_file(path) as file:
            write_array(file, np.concatenate([np.array(index[name], dtype=dtype) for index in indices]))
        files[path.name] = FileFacts.of(path)
    write_json(
        folder / _DONE,
        {
            "features": features,
            "shard_utterances": shard_utterances,
            "files": {name: asdict(facts) for name, facts in files.items()},
            "dropped": dropped,
        },
    )


def _write_shard(job: _ShardJob) -> None:
    parts: list[np.ndarray] = []
    frames, checks, dropped = [], [], []
    for number in job.utterances:
        try:
            part_TF = _rounded(job.extract(job.reader(number)))
        except StorageError:
            raise
        except ValueError as error:
            dropped.append({"id": job.reader.table.id(number), "reason": str(error)})
            frames.append(0)
            checks.append(zlib.crc32(b""))
        else:
            parts.append(part_TF)
            frames.append(len(part_TF))
            checks.append(zlib.crc32(part_TF.tobytes()))
    features_NF = np.concatenate(parts) if parts else np.empty((0, 0), dtype=_DTYPE)
    path = _shard(job.folder, job.number)
    with atomic_file(path) as file:
        write_array(file, features_NF)
    size_bytes = path.stat().st_size
    header_bytes = size_bytes - features_NF.nbytes
    ends = header_bytes + np.cumsum(frames) * features_NF.shape[1] * _DTYPE.itemsize
    starts = [header_bytes, *ends.tolist()[:-1]]
    facts = {"starts_U": starts, "frames_U": frames, "checks_U": checks}
    write_json(job.index, {**facts, "features": features_NF.shape[1], "bytes": size_bytes, "dropped": dropped})


def _rounded(features_TF: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded_TF = features_TF.astype(_DTYPE)
    if not np.isfinite(rounded_TF).all():
        raise ValueError("its features contain values that are NaN or do not fit float16")
    return rounded_TF


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON file written by this module; None if it is missing or truncated."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"
