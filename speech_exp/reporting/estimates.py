"""Means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speech_exp.reporting.grouping import Group, seed, test_speaker
from speech_exp.reporting.runs import Run


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values; `half_width` is that of its interval, None for a single value."""

    n: int
    mean: float
    half_width: float | None

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width


def student_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval: mean ± t_{n-1} s / sqrt(n), s with n - 1; no interval for one value."""
    count = len(values)
    if count == 0:
        raise ValueError("no values came for a mean, expected at least one")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(1, mean, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(count, mean, float(stdtrit(count - 1, 0.5 + confidence / 2)) * deviation / math.sqrt(count))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_seed(group: Group, value: Callable[[Run], float]) -> dict[int, float]:
    """One value a seed: the mean over test speakers where the group holds out several, else of the seed's runs."""
    return {one: mean([value(run) for run in group.runs if seed(run) == one]) for one in group.seeds}


def by_speaker(group: Group, value: Callable[[Run], float]) -> dict[str, float]:
    """Mean over seeds for each test speaker; empty where the split holds out none."""
    return {one: mean([value(run) for run in group.runs if test_speaker(run) == one]) for one in group.speakers}
