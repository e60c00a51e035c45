"""Describe where and with what a run was made: commit, versions, machine.

Nothing here may stop a run: whatever cannot be determined is None.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from speech_exp import __version__, ranks

_SAME_START_S = 2.0
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
    """Return the host, the system, and the device (such as `cpu` or `cuda:0`) with its marketing name."""
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "device_name": device_name(device),
    }


def process() -> dict[str, Any]:
    """Return this process's id and its start in seconds since 1970; together they identify it even if the id is reused."""
    this_process = psutil.Process()
    return {"pid": this_process.pid, "process_started_s": this_process.create_time()}


def process_lives(pid: object, started_s: object) -> bool:
    """Return whether the process that `process` described on this machine is still running."""
    if not isinstance(pid, int) or not isinstance(started_s, (int, float)):
        return False
    try:
        # The start is computed from the system clock, which may have been adjusted since.
        return abs(psutil.Process(pid).create_time() - started_s) < _SAME_START_S
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def device_name(device: str) -> str | None:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else None
    if device.startswith("cpu"):
        return _cpu_name()
    return device


def versions() -> dict[str, str | None]:
    """Return versions from package metadata, without importing the packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "speech_exp": __version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def session() -> dict[str, Any]:
    """Return the code, threads and processes that exact results depend on, and where and when this process began."""
    import torch

    return {
        **git_state(),
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size(),
        "host": socket.gethostname(),
        "started": now(),
    }


def now() -> str:
    """Return the current time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state(package: Path = PACKAGE) -> dict[str, Any]:
    """Return the commit of the running code and whether its sources differ from it; both None outside a checkout.

    Only the package, `conf` and `run.py` count as sources: results written into the checkout do not make it dirty. A
    package installed inside a different repository, for example in its .venv, is not tracked there and gives None.
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
