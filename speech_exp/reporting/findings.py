"""What a comparison found, to be written in several forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speech_exp.reporting.grouping import Group, Grouping
from speech_exp.reporting.paired_tests import PairedTest
from speech_exp.reporting.runs import Run
from speech_exp.reporting.score import SCORES, Score, score_of


@dataclass(frozen=True)
class Findings:
    grouping: Grouping
    baseline: Group
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]
    not_counted: tuple[Run, ...]  # runs without results
    figures: tuple[Path, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.grouping.groups

    @property
    def scores(self) -> list[Score]:
        """That at least one run is judged by."""
        found = {score_of(run) for group in self.groups for run in group.runs}
        return [score for score in SCORES if score in found]
