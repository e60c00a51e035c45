"""Write files and folders atomically: a reader finds either the old version or the new one, never a part."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

_SEAL = "sealed.json"
_HASHED_BYTES = 2**32  # takes seconds to hash; only the manifest of a corpus of thousands of hours is larger


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once it is complete and synced.

    If anything fails, the old file stays and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(staging, "xb") as file:  # x: never write through a link that someone else has put there
            yield file
        replace_synced(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a folder to fill with files; it is renamed to `path` once everything in it is complete, sealed and synced.

    The seal records the size and SHA-256 of each file, so that `folder_mismatch` can detect later changes. If anything fails,
    the folder is removed; a killed process leaves `{path.name}.part-*`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.part-{uuid.uuid4().hex[:8]}")
    staging.mkdir()
    try:
        yield staging
        facts = {file.name: asdict(FileFacts.of(file)) for file in sorted(staging.iterdir())}
        (staging / _SEAL).write_text(json.dumps(facts), encoding="utf-8")
        for file in staging.iterdir():
            _sync(file)
        replace_synced(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def replace_synced(source: Path, target: Path) -> None:
    """Rename a finished file or folder once its content is on the disk, and wait until the new name is on the disk as well."""
    _sync(source)
    os.replace(source, target)
    _sync(target.parent)


def build_once(path: Path, is_ready: Callable[[], bool], build: Callable[[], object]) -> None:
    """Call `build`, which makes `path`, unless it is ready; of processes that start together, one builds and the others wait.

    Nothing is written for a path that is ready, so it may be in a read-only folder.
    """
    if is_ready():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not is_ready():
            build()


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of `atomic_folder(path)`; the caller must hold a lock on it."""
    for staging in path.parent.glob(f"{path.name}.part-*"):
        shutil.rmtree(staging)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class FileFacts:
    """Facts that a file must match when it is opened again."""

    size_bytes: int
    sha256: str | None = None  # None: only the size is checked

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Return the facts of a file; above `_HASHED_BYTES` only its size, because it is checked each time it is opened."""
        size_bytes = path.stat().st_size
        return cls(size_bytes, _sha256(path) if size_bytes <= _HASHED_BYTES else None)

    def mismatch(self, path: Path) -> str | None:
        """Return what is wrong with a file that had these facts, or None."""
        if not path.is_file():
            return f"{path.name} is missing"
        if (size_bytes := path.stat().st_size) != self.size_bytes:
            return f"{path.name} has {size_bytes:,} bytes, expected {self.size_bytes:,}"
        if self.sha256 is not None and _sha256(path) != self.sha256:
            return f"{path.name} was changed after it was written"
        return None


def folder_mismatch(folder: Path) -> str | None:
    """Return how a folder differs from what `atomic_folder` wrote, or None."""
    try:
        sealed = json.loads((folder / _SEAL).read_bytes())
        facts = {str(name): FileFacts(**each) for name, each in sealed.items()}
    except (FileNotFoundError, NotADirectoryError):
        return f"{_SEAL} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{_SEAL} is damaged"
    return next((fault for name, each in facts.items() if (fault := each.mismatch(folder / name))), None)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def reason(error: OSError) -> str:
    """Return why a file operation failed; some libraries do not set the system's message."""
    return error.strerror or str(error)


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write a .npy file. `numpy.save` does not say why a write failed, and silently loses a small array on a full disk."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data if array.size else b"")


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` with `atomic_file`; on a full disk the OSError names `path`, unlike the system's own error."""
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from None
    return path


def write_text(path: Path, content: str) -> Path:
    """Write UTF-8 with `write_bytes` and unchanged newlines: the same bytes on every system."""
    return write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(plain(value, path.name), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """Return rows as CSV text; floats keep all digits, None is an empty cell, keys not in `columns` raise a ValueError."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(columns), lineterminator="\n", extrasaction="raise")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({key: _scalar(value) for key, value in row.items()})
    return buffer.getvalue()


def plain(value: Any, where: str) -> Any:
    """Convert `value` to JSON's own types, including NumPy values; `where` names the place in error messages.

    NaN and infinities are refused instead of written as null: JSON has neither, and a null would silently drop a diverged run
    from every mean. An unknown value is None, which is written as null.
    """
    value = _scalar(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where} is {value}, expected a finite number: the run diverged (lower trainer.lr or set "
                "trainer.precision=fp32), or write None for an unknown value"
            )
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}, expected text as key")
        return {
            key: plain(item, f"{where}: {key}" if ":" not in where else f"{where}.{key}") for key, item in value.items()
        }
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(
        f"{where} is a {type(value).__name__}, expected text, a number, true, false, null, a list or a dict"
    )


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
