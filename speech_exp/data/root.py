"""Locations of data sets and caches on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

DATA_VARIABLE = "SPEECH_EXP_DATA"
_PREPARE = "download it with action=prepare dataset={name} (dataset=digits_demo needs no download)"


def user_cache() -> Path:
    """Return the current user's folder for downloads and computed features."""
    return Path(platformdirs.user_cache_dir("speech_exp", appauthor=False))


def candidate_roots(name: str, root: str | None) -> list[Path]:
    """Return the folders where data set `name` may be, in search order; only `root` if it is given."""
    if root is not None:
        return [Path(root).expanduser().resolve()]
    shared = os.environ.get(DATA_VARIABLE)
    places = [Path(shared).expanduser().resolve() / name] if shared else []
    return [*places, user_cache() / "datasets" / name]


def find_root(name: str, root: str | None, content: str, remedy: str = _PREPARE) -> Path:
    """Return the first candidate root that contains `content`; otherwise raise a ValueError that ends with `remedy`."""
    candidates = candidate_roots(name, root)
    for candidate in candidates:
        if (candidate / content).exists():
            return candidate
    looked = " or ".join(str(candidate / content) for candidate in candidates)
    raise ValueError(
        f"dataset={name} was not found at {looked}: set dataset.root=FOLDER, or {DATA_VARIABLE} to the folder that holds "
        f"{name}/, or {remedy.format(name=name)}"
    )
