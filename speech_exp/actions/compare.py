"""action=compare: compare any set of run folders."""

from __future__ import annotations

from pathlib import Path

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.experiment import Experiment


class Compare:
    """Compares all runs anywhere below `runs` and writes the comparison there; `baseline` is a group's label or None."""

    def __init__(self, runs: str | None, baseline: str | None) -> None:
        self.runs = runs
        self.baseline = baseline

    def __call__(self, experiment: Experiment) -> None:
        if self.runs is None:
            raise ValueError("action=compare has no run folders: set runs=FOLDER")
        if not Path(self.runs).is_dir():
            raise ValueError(f"runs={self.runs} is not a folder: expected one with run folders below it, set runs")
        comparison = compare(find_runs(self.runs), self.runs, baseline=self.baseline)
        print(comparison.markdown)
        print("written:", *comparison.files, sep="\n  ")
