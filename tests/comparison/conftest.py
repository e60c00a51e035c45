"""Hand-made run folders."""

from run_folders import make_recogniser, make_run, results, undrawn  # noqa: F401
