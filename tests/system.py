"""Skips for tests that need features of certain systems."""

import multiprocessing
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system forks no processes"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
