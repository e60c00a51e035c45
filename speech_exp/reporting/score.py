"""The score that a run is judged by: accuracy of a classification, word error rate of recognition."""

from __future__ import annotations

from dataclasses import dataclass

from speech_exp.reporting.runs import Run, result_at


@dataclass(frozen=True)
class Score:
    key: str  # under metrics.test of results.json and, as val_{key}, in history.csv
    title: str
    higher_is_better: bool

    def of(self, run: Run) -> float | None:
        """The test value as a fraction, None where the run lacks it."""
        return result_at(run, "metrics", "test", self.key)

    def loss(self, deployed: float, reference: float) -> float:
        """By how much `deployed` is worse, below 0 where it is better."""
        return reference - deployed if self.higher_is_better else deployed - reference


ACCURACY = Score("accuracy", "accuracy", higher_is_better=True)
WER = Score("wer", "word error rate", higher_is_better=False)
SCORES = (ACCURACY, WER)


def score_of(run: Run) -> Score | None:
    """None for a run that reports neither."""
    return next((score for score in SCORES if score.of(run) is not None), None)
