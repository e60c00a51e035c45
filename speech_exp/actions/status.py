"""action=status: how far the runs of a sweep are."""

from __future__ import annotations

from pathlib import Path

from speech_exp.actions.context import Context
from speech_exp.reporting.status import status_text, sweep_status


class Status:
    """Prints the state of each run of the sweep in `runs`, while it goes on or afterwards; writes nothing."""

    def __init__(self, runs: str | None, silent_after_minutes: float) -> None:
        self.runs, self.silent_after_minutes = runs, silent_after_minutes

    def __call__(self, experiment: Context) -> None:
        if self.runs is None or not Path(self.runs).is_dir():
            raise ValueError(f"runs={self.runs} is not a folder: expected the folder of a sweep, set runs")
        print(status_text(sweep_status(Path(self.runs), 60 * self.silent_after_minutes)))
