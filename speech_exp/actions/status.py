"""action=status: show the progress of the runs of a sweep."""

from __future__ import annotations

from pathlib import Path

from speech_exp.bounds import PositiveFloat
from speech_exp.experiment import Experiment
from speech_exp.sweeps.status import status_text, sweep_status


class Status:
    """Prints the state of each run of the sweep in `runs`, during or after the sweep; writes nothing."""

    def __init__(self, runs: str | None, silent_after_minutes: PositiveFloat) -> None:
        self.runs, self.silent_after_minutes = runs, silent_after_minutes

    def __call__(self, experiment: Experiment) -> None:
        if self.runs is None:
            raise ValueError("action=status has no sweep: set runs=FOLDER")
        if not Path(self.runs).is_dir():
            raise ValueError(f"runs={self.runs} is not a folder: expected the folder of a sweep, set runs")
        print(status_text(sweep_status(Path(self.runs), 60 * self.silent_after_minutes)))
