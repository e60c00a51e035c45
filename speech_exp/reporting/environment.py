"""Where and with what a run was made: commit, versions, machine.

Nothing here may stop a run, so what cannot be found is None.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from speech_exp import __version__

PACKAGE = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = (
    "torch",
    "torchaudio",
    "numpy",
    "hydra-core",
    "omegaconf",
    "librosa",
    "soundfile",
    "scipy",
    "scikit-learn",
    "matplotlib",
)


def machine(device: str) -> dict[str, Any]:
    """Host, system and the device, such as `cpu` or `cuda:0`, with its marketing name."""
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "device_name": device_name(device),
    }


def device_name(device: str) -> str | None:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else None
    if device.startswith("cpu"):
        return _cpu_name()
    return device


def versions() -> dict[str, str | None]:
    """Versions from the installed packages' metadata, without importing them; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "speech_exp": __version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(package: Path = PACKAGE) -> dict[str, Any]:
    """Commit of the code that runs, and whether its sources differ from it; both None outside a checkout.

    Only the package, `conf` and `run.py` count as sources: results written into the checkout do not make it dirty. A
    package installed inside some other repository, for example in its .venv, is not tracked there and gives None.
    """
    unknown = {"commit": None, "dirty": None}
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return unknown
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".", ":(top)conf", ":(top)run.py")
    if commit is None or changes is None:
        return unknown
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or None
