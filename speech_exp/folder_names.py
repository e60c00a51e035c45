"""Folder names of the runs of a sweep, made of what the user typed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

# Keys that cannot change a result: a run goes on in its folder whatever they are.
_WITHOUT_EFFECT = ("cache_dir", "dataset.root", "launcher", "resume", "slurm", "study")
_LONGEST = 120  # characters; file systems allow 255 bytes


def telling(overrides: Iterable[str]) -> list[str]:
    """Those of the overrides that can change a result."""
    return [one for one in overrides if not re.match(rf"({'|'.join(map(re.escape, _WITHOUT_EFFECT))})(\.\w+)*=", one)]


def sweep_subdir(overrides: Sequence[str]) -> str:
    """`model=gru,seed=0` of the run's overrides, another name for other overrides.

    A name that cannot hold them as they stand, for their length or their characters, ends in a hash of all of them.
    """
    told = telling(overrides)
    name = ",".join(re.sub(r"[^A-Za-z0-9=._+-]+", "-", override) for override in told) or "run"
    if len(name) > _LONGEST or (told and name.split(",") != told):
        digest = hashlib.sha256("\0".join(told).encode()).hexdigest()
        name = f"{name[: _LONGEST - 13]}-{digest[:12]}"
    return name
