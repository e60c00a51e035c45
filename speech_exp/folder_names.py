"""Names on disk that several modules share: folders of a sweep's runs, and the deployable model in a run folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from speech_exp.config_roles import changes_results, key_of

_LONGEST = 120  # characters; file systems allow 255 bytes


def that_change_results(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that can change a result; the others do not affect which folder a run resumes in."""
    return [override for override in overrides if changes_results(key_of(override))]


def sweep_subdir(overrides: Sequence[str]) -> str:
    """Return the folder name of a sweep's run, such as `model=gru,seed=0`; different overrides give different names.

    If the overrides are too long or contain characters that a name cannot, the name ends in a hash of all of them.
    """
    kept = that_change_results(overrides)
    name = ",".join(re.sub(r"[^A-Za-z0-9=._+-]+", "-", override) for override in kept) or "run"
    if len(name) > _LONGEST or (kept and name.split(",") != kept):
        digest = hashlib.sha256("\0".join(kept).encode()).hexdigest()
        name = f"{name[: _LONGEST - 13]}-{digest[:12]}"
    return name


def best_checkpoints(run_folder: Path) -> list[Path]:
    """Return the deployable model files of a run; a finished run has exactly one."""
    return sorted((run_folder / "checkpoints").glob("checkpoint_epoch_*_best.pt"))
