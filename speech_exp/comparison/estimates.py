"""Means over seeds, and intervals over seeds alone for measures that cannot be computed from predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speech_exp.comparison.grouping import Group, seed, test_speaker
from speech_exp.runs.reading import Run

MIN_SEEDS = 3  # with fewer, an interval over seeds would claim too much


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values and its 95 % interval, which is None if there are too few seeds."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def student_interval(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Estimate:
    """Return the mean with Student's t interval, mean ± t_{n-1} s / sqrt(n), clipped to the possible range `least` to `most`.

    There is no interval for fewer than three values, or for equal values, which say nothing about their spread.
    """
    count = len(values)
    if count == 0:
        raise ValueError("got no values for a mean, expected at least one")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, count - 1))
    if count < MIN_SEEDS or deviation < 1e-12:
        return Estimate(count, mean)
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return Estimate(count, mean, max(least, mean - half), min(most, mean + half))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_seed(group: Group, value: Callable[[Run], float]) -> dict[int, float]:
    """Return one value per seed: the mean over its runs, which are one per test speaker if several are held out."""
    return {one: mean([value(run) for run in group.runs if seed(run) == one]) for one in group.seeds}


def by_speaker(group: Group, value: Callable[[Run], float]) -> dict[str, float]:
    """Return the mean over seeds for each test speaker; empty if the split holds out no speaker."""
    return {one: mean([value(run) for run in group.runs if test_speaker(run) == one]) for one in group.speakers}
