"""Features of a whole data set, computed once in parallel and kept on disk under a name made from their content.

The name is a hash of the recordings' contents, the features' configuration and the code that computes them, so a stale
entry can never be read. An entry is written aside and renamed under a file lock: jobs that start together build it once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from speech_exp.data.recordings import Dropped
from speech_exp.progress import progress


@dataclass(frozen=True)
class CachedFeatures:
    """Features of many recordings one after the other: recording `ids[i]` has `lengths_U[i]` frames of `frames_NF`."""

    frames_NF: np.ndarray  # memory-mapped, read-only
    lengths_U: np.ndarray
    ids: list[str]
    dropped: list[Dropped]  # recordings whose audio cannot be used


def code_version(*modules: Any) -> str:
    """Hash of the source of the modules that compute the features."""
    return hashlib.sha256("".join(inspect.getsource(module) for module in modules).encode()).hexdigest()


def cached_features(
    folder: Path,
    description: dict[str, Any],
    ids: Sequence[str],
    extract: Callable[[int], np.ndarray],
    title: str = "features",
) -> CachedFeatures:
    """Entry of the cache `folder` for `description`, built by `extract(position) -> (T, F)` where it is missing.

    A recording whose `extract` raises a ValueError is dropped and named; the rest is kept.
    """
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]
    entry = folder / key
    if not (entry / "index.json").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(entry) + ".lock"):
                if not (entry / "index.json").exists():
                    _build(entry, description, ids, extract, title)
        except OSError as error:
            raise ValueError(
                f"the feature cache {folder} cannot be written ({error.strerror}): set cache_dir to a folder that can"
            ) from None
    return _open(entry)


def _build(
    entry: Path, description: dict[str, Any], ids: Sequence[str], extract: Callable[[int], np.ndarray], title: str
) -> None:
    for aside in entry.parent.glob(f"{entry.name}.part-*"):  # of a process that was killed
        shutil.rmtree(aside)
    features: list[np.ndarray | None] = []
    dropped = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        outcomes = pool.map(lambda position: _attempt(extract, position), range(len(ids)))
        with progress(title, len(ids), for_all=True) as bar:
            for recording_id, outcome in zip(ids, outcomes, strict=True):
                features.append(None if isinstance(outcome, ValueError) else outcome)
                if isinstance(outcome, ValueError):
                    dropped.append({"id": recording_id, "reason": str(outcome)})
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for what nobody will use
    kept = [position for position, feature in enumerate(features) if feature is not None]
    if not kept:
        raise ValueError(f"no recording could be used, the first because {dropped[0]['reason']}")
    aside = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f"{entry.name}.part-"))
    try:
        np.save(aside / "frames.npy", np.concatenate([features[position] for position in kept]))
        index = {
            "description": description,
            "ids": [ids[position] for position in kept],
            "lengths": [len(features[position]) for position in kept],  # type: ignore[arg-type]
            "dropped": dropped,
        }
        (aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        os.replace(aside, entry)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _attempt(extract: Callable[[int], np.ndarray], position: int) -> np.ndarray | ValueError:
    try:
        return extract(position)
    except ValueError as error:
        return error


def _open(entry: Path) -> CachedFeatures:
    index = json.loads((entry / "index.json").read_text(encoding="utf-8"))
    return CachedFeatures(
        np.load(entry / "frames.npy", mmap_mode="r"),
        np.array(index["lengths"], dtype=np.int64),
        index["ids"],
        [Dropped(**dropped) for dropped in index["dropped"]],
    )
