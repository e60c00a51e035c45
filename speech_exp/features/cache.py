"""Disk cache for the features of a whole data set, computed once in parallel.

The name of an entry is a hash of the recordings' contents, the feature config and the code, so a stale entry is never
read. An entry is written to a temporary folder and renamed under a file lock: jobs that start together build it once.
It contains the size and SHA-256 of each file; an entry whose content has changed is computed again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speech_exp.files import atomic_folder, build_once, folder_mismatch, reason, remove_unfinished, write_array
from speech_exp.parallel import one_thread
from speech_exp.progress import progress

_FRAMES, _INDEX = "frames.npy", "index.json"
_THREADS = 1  # per recording, on any machine: the last bits of a matrix product depend on their number


@dataclass(frozen=True)
class CachedFeatures:
    """Concatenated features of many recordings: recording `ids[i]` has `lengths_U[i]` frames in `frames_NF`."""

    frames_NF: np.ndarray  # memory-mapped, read-only
    lengths_U: np.ndarray
    ids: list[str]
    dropped: dict[str, str]  # id of each recording whose audio cannot be used, and the reason


def code_version(*modules: Any) -> str:
    """Return a hash of the source code of the modules that compute the features."""
    return hashlib.sha256("".join(inspect.getsource(module) for module in modules).encode()).hexdigest()


def cached_features(
    folder: Path,
    description: dict[str, Any],
    ids: Sequence[str],
    extract: Callable[[int], np.ndarray],
    title: str = "features",
) -> CachedFeatures:
    """Return the cache entry for `description` in `folder`, built with `extract(position) -> (T, F)` if it is missing.

    A recording whose `extract` raises a ValueError is dropped and listed; the others are kept.
    """
    computed = {**description, "threads": _THREADS}
    key = hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:24]
    entry = folder / key
    try:
        build = partial(_build, entry, description, ids, extract, title)
        build_once(entry, lambda: folder_mismatch(entry) is None, build)
        return _open(entry)
    except OSError as error:
        raise ValueError(
            f"the feature cache {folder} cannot be read or written ({reason(error)}): set cache_dir to another folder"
        ) from None


def _build(
    entry: Path, description: dict[str, Any], ids: Sequence[str], extract: Callable[[int], np.ndarray], title: str
) -> None:
    if entry.exists():
        print(f"the features in {entry} are computed again: {folder_mismatch(entry)}", file=sys.stderr)
        shutil.rmtree(entry)
    remove_unfinished(entry)
    features: list[np.ndarray | None] = []
    dropped: dict[str, str] = {}
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with one_thread(), progress(title, len(ids), for_all=True) as bar:
            outcomes = pool.map(lambda position: _attempt(extract, position), range(len(ids)))
            for recording_id, outcome in zip(ids, outcomes, strict=True):
                features.append(None if isinstance(outcome, ValueError) else outcome)
                if isinstance(outcome, ValueError):
                    dropped[recording_id] = str(outcome)
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for results that nobody will use
    kept = [position for position, feature in enumerate(features) if feature is not None]
    if not kept:
        raise ValueError(f"no recording could be used, the first because {next(iter(dropped.values()))}")
    with atomic_folder(entry) as staging:
        with (staging / _FRAMES).open("wb") as file:
            write_array(file, np.concatenate([features[position] for position in kept]))
        index = {
            "description": description,
            "ids": [ids[position] for position in kept],
            "lengths": [len(features[position]) for position in kept],  # type: ignore[arg-type]
            "dropped": dropped,
        }
        (staging / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def _attempt(extract: Callable[[int], np.ndarray], position: int) -> np.ndarray | ValueError:
    try:
        return extract(position)
    except ValueError as error:
        return error


def _open(entry: Path) -> CachedFeatures:
    index = json.loads((entry / _INDEX).read_text(encoding="utf-8"))
    return CachedFeatures(
        np.load(entry / _FRAMES, mmap_mode="r"),
        np.array(index["lengths"], dtype=np.int64),
        index["ids"],
        index["dropped"],
    )
