"""Tests of differences between pairs, and their correction where many are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_DRAWN_AT_ONCE = 2_000_000  # indices, 16 MB


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile interval of a difference, and the two-sided p of no difference that belongs to it."""

    low: float
    high: float
    p: float


def exact_sign_p(better: int, worse: int) -> float:
    """Two-sided exact binomial p of pairs that differ, at even odds; McNemar's exact test where pairs are right or wrong.

    1 where no pair differs.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5))) if better + worse else 1.0


def paired_bootstrap(difference_U: np.ndarray, weight_U: np.ndarray, seed: int = 0) -> Bootstrap:
    """Resample utterances with replacement, both systems together (Bisani & Ney 2004), 10,000 times.

    The statistic is sum(difference) / sum(weight), such as edits over reference words: a corpus' rate, no mean of rates.
    p counts how often a resample's difference is not on the side of most; it cannot fall below 2 / 10,001.
    """
    count = len(difference_U)
    if count == 0:
        raise ValueError("no utterances came for the bootstrap, expected at least one")
    random = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // count)
    parts = []
    for start in range(0, RESAMPLES, rows):
        drawn_RU = random.integers(0, count, size=(min(rows, RESAMPLES - start), count))
        parts.append(difference_U[drawn_RU].sum(axis=1) / np.maximum(weight_U[drawn_RU].sum(axis=1), 1))
    resampled_R = np.concatenate(parts)
    low, high = np.quantile(resampled_R, (0.025, 0.975))
    beyond = min(int((resampled_R <= 0).sum()), int((resampled_R >= 0).sum()))
    return Bootstrap(float(low), float(high), min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: below alpha, together they err with probability alpha (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted
