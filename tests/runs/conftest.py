"""Hand-made run folders."""

from run_folders import results  # noqa: F401
