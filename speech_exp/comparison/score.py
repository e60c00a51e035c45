"""The score that a run is judged by: accuracy for classification, word error rate for recognition."""

from __future__ import annotations

from dataclasses import dataclass

from speech_exp.runs.reading import Run, result_at


@dataclass(frozen=True)
class Score:
    key: str  # under metrics.test of results.json and, as val_{key}, in history.csv
    title: str
    higher_is_better: bool

    def of(self, run: Run) -> float | None:
        """Return the test value as a fraction; None if the run lacks it."""
        return result_at(run, "metrics", "test", self.key)

    def loss(self, deployed: float, reference: float) -> float:
        """Return by how much `deployed` is worse than `reference`; negative if it is better."""
        return reference - deployed if self.higher_is_better else deployed - reference


ACCURACY = Score("accuracy", "accuracy", higher_is_better=True)
WER = Score("wer", "word error rate", higher_is_better=False)
SCORES = (ACCURACY, WER)
# Test metrics that are computed again from predictions, by the score that the run is judged by.
METRICS: dict[Score | None, tuple[str, ...]] = {ACCURACY: ("accuracy",), WER: ("wer", "cer"), None: ()}


def score_of(run: Run) -> Score | None:
    """Return the score that a run reports; None if it reports neither."""
    return next((score for score in SCORES if score.of(run) is not None), None)
