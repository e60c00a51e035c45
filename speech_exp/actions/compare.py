"""action=compare: any run folders side by side."""

from __future__ import annotations

from pathlib import Path

from speech_exp.actions.context import Context
from speech_exp.reporting.comparison import compare, find_runs


class Compare:
    """Compares all runs anywhere below `runs` and writes the comparison there; `baseline` is a group's label or None."""

    def __init__(self, runs: str | None, baseline: str | None) -> None:
        self.runs = runs
        self.baseline = baseline

    def __call__(self, experiment: Context) -> None:
        if self.runs is None or not Path(self.runs).is_dir():
            raise ValueError(f"runs={self.runs} is not a folder: expected one with run folders below it, set runs")
        comparison = compare(find_runs(self.runs), self.runs, baseline=self.baseline)
        print(comparison.markdown)
        print("written:", *comparison.files, sep="\n  ")
