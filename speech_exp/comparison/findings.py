"""Results of a comparison, to be written in several formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speech_exp.comparison.grouping import Group, Grouping
from speech_exp.comparison.paired_tests import PairedTest
from speech_exp.comparison.score import SCORES, Score, score_of
from speech_exp.runs.reading import Run


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
        """The scores that at least one run is judged by."""
        found = {score_of(run) for group in self.groups for run in group.runs}
        return [score for score in SCORES if score in found]
