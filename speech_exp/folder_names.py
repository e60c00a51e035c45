"""Folder names of the runs of a sweep, made of what the user typed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

# Keys that cannot change a result: a run goes on in its folder whatever they are.
_WITHOUT_EFFECT = ("cache_dir", "dataset.root", "launcher", "resume")
_LONGEST = 120  # characters; file systems allow 255 bytes


def sweep_subdir(overrides: Sequence[str]) -> str:
    """`model=gru,seed=0` of the run's overrides, another name for other overrides.

    A name that cannot hold them as they stand, for their length or their characters, ends in a hash of all of them.
    """
    telling = [override for override in overrides if override.partition("=")[0] not in _WITHOUT_EFFECT]
    name = ",".join(re.sub(r"[^A-Za-z0-9=._+-]+", "-", override) for override in telling) or "run"
    if len(name) > _LONGEST or (telling and name.split(",") != telling):
        digest = hashlib.sha256("\0".join(telling).encode()).hexdigest()
        name = f"{name[: _LONGEST - 13]}-{digest[:12]}"
    return name
