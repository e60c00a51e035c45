"""Folder names of the runs of a sweep, made of what the user typed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_WITHOUT_EFFECT = ("cache_dir", "dataset.root", "experiment")  # on what tells the runs of a sweep apart
_LONGEST = 120  # characters; file systems allow 255 bytes


def sweep_subdir(overrides: Sequence[str]) -> str:
    """`model=gru,seed=0` of the run's overrides; long names end in a hash of all of them."""
    telling = [override for override in overrides if override.partition("=")[0] not in _WITHOUT_EFFECT]
    name = re.sub(r"[^A-Za-z0-9=,._+-]+", "-", ",".join(telling)) or "run"
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name
