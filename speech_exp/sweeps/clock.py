"""Number the jobs of a sweep as they begin, and estimate the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from speech_exp.progress import duration
from speech_exp.sweeps.record import Job


class SweepClock:
    """Times the jobs of a sweep; jobs that an earlier process finished take no time and do not count."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self._results = [folder / job.folder / "results.json" for job in jobs]
        self._timed_s: list[float] = []
        self._started_s: float | None = None

    def begin(self, number: int) -> str:
        """Start the job of this number (from 0); return its place in the sweep, and the time left if it can be estimated."""
        left = sum(not path.exists() for path in self._results[number:])
        self._started_s = None if self._results[number].exists() else time.monotonic()
        place = f"job {number + 1} of {len(self._results)}"
        if not self._timed_s or not left:
            return place
        return f"{place}, {duration(left * sum(self._timed_s) / len(self._timed_s))} left"

    def end(self) -> None:
        if self._started_s is not None:
            self._timed_s.append(time.monotonic() - self._started_s)
