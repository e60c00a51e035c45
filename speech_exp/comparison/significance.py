"""Intervals and tests that resample independent units, and the correction for multiple tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MIN_SPEAKERS = 3  # fewer say nothing about other speakers: then only recordings are drawn
MAX_RESAMPLES, MIN_RESAMPLES = 10_000, 2_000
_MAX_DRAWN_UNITS = 30_000_000  # units in all resamples together: a large corpus gets fewer resamples


@dataclass(frozen=True)
class Outcomes:
    """Errors of K seeds on U units (recordings or utterances), sorted by speaker; the rate is sum(errors) / sum(sizes).

    Args:
        speakers_U: index of each unit's speaker, from 0 without gaps; all 0 if the speakers are unknown.
        models_per_speaker: True if each speaker was tested by separate models, not trained on that speaker; seeds are then drawn
            for each speaker separately. Otherwise a seed is one model that was tested on all speakers.
    """

    errors_KU: np.ndarray
    sizes_KU: np.ndarray
    speakers_U: np.ndarray
    models_per_speaker: bool = False

    @property
    def units_of_speakers(self) -> tuple[int, ...]:
        return tuple(np.bincount(self.speakers_U).tolist())

    @property
    def over_speakers(self) -> bool:
        return len(self.units_of_speakers) >= MIN_SPEAKERS

    @property
    def independent(self) -> int:
        """Number of units at the highest level that is resampled."""
        return len(self.units_of_speakers) if self.over_speakers else len(self.speakers_U)


@dataclass(frozen=True)
class Bootstrap:
    """95 % interval of a rate, and the two-sided p value for the hypothesis that the rate is 0."""

    low: float
    high: float
    p: float


def hierarchical_bootstrap(outcomes: Outcomes, seed: int = 0) -> Bootstrap:
    """Draw speakers, then seeds, then the recordings of each drawn speaker, all with replacement.

    Speakers and seeds are few, so one fewer is drawn than there are: this makes the spread of their means unbiased (Rao &
    Wu 1988). The tails are those of Student's t, with one degree of freedom less than there are speakers, instead of the
    normal distribution's (Hesterberg 2015), because 6 speakers say little about their own spread. The spread of speakers
    already includes that of their recordings. Drawing recordings too is conservative: tests/comparison/test_coverage.py
    shows by simulation that at the 5 % level a true null hypothesis is rejected in at most 7 % of cases.

    With fewer than three speakers, or unknown ones, only recordings are drawn.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    if outcomes.independent < 2:
        raise ValueError(f"the bootstrap got {outcomes.independent} recordings, expected at least two")
    resampled_R = _resampled(outcomes, seed)
    freedom = outcomes.independent - 1
    tail = ndtr(-stdtrit(freedom, 0.975))
    low, high = np.quantile(resampled_R, (tail, 1 - tail))
    beyond = min(int((resampled_R <= 0).sum()), int((resampled_R >= 0).sum()))
    share = min(0.5, (beyond + 1) / (len(resampled_R) + 1))
    return Bootstrap(float(low), float(high), 2 * float(stdtr(freedom, ndtri(share))))


def exact_interval(right: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the share `right` / `count` (Clopper & Pearson 1934); `right` may be a mean of counts."""
    from scipy.special import betaincinv

    low = 0.0 if right <= 0 else float(betaincinv(right, count - right + 1, 0.025))
    high = 1.0 if right >= count else float(betaincinv(right + 1, count - right, 0.975))
    return low, high


def exact_sign_p(better: int, worse: int) -> float:
    """Return the two-sided exact binomial p of the pairs that differ, at even odds; 1 if no pair differs.

    If the paired values are right or wrong, this is McNemar's exact test.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5))) if better + worse else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in order: any false rejection has at most probability alpha (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def _resampled(outcomes: Outcomes, seed: int) -> np.ndarray:
    """Return the rate in each resample, rounded because sums that cancel out may differ from 0 in the last bit."""
    units_S = outcomes.units_of_speakers if outcomes.over_speakers else (len(outcomes.speakers_U),)
    drawn_RU = _drawn_units(units_S, seed)
    random = np.random.default_rng(seed + 1)
    ends = np.cumsum(units_S)
    per_speaker = outcomes.models_per_speaker and outcomes.over_speakers
    blocks = (
        [slice(end - units, end) for end, units in zip(ends, units_S, strict=True)] if per_speaker else [slice(None)]
    )
    errors_R, sizes_R = np.zeros(len(drawn_RU)), np.zeros(len(drawn_RU))
    for block in blocks:
        seeds_RK = _drawn(random, len(outcomes.errors_KU), len(drawn_RU))
        errors_R += ((drawn_RU[:, block] @ outcomes.errors_KU[:, block].T) * seeds_RK).sum(axis=1)
        sizes_R += ((drawn_RU[:, block] @ outcomes.sizes_KU[:, block].T) * seeds_RK).sum(axis=1)
    whole = sizes_R > 0  # a resample may draw nothing, if units were tested with one seed only
    return np.round(errors_R[whole] / sizes_R[whole], 12)


@lru_cache(maxsize=2)  # the groups of a comparison share their units
def _drawn_units(units_S: tuple[int, ...], seed: int) -> np.ndarray:
    """Return how often each unit is drawn in each resample (R, U); draws grow with how often the unit's speaker is drawn."""
    random = np.random.default_rng(seed)
    resamples = min(MAX_RESAMPLES, max(MIN_RESAMPLES, _MAX_DRAWN_UNITS // sum(units_S)))
    alone = len(units_S) == 1
    speakers_RS = np.ones((resamples, 1), dtype=np.int64) if alone else _drawn(random, len(units_S), resamples)
    drawn_RU = np.empty((resamples, sum(units_S)))
    for number, (end, units) in enumerate(zip(np.cumsum(units_S), units_S, strict=True)):
        share_U = np.full(units, 1 / units)
        drawn_RU[:, end - units : end] = random.multinomial(speakers_RS[:, number] * units, share_U)
    return drawn_RU


def _drawn(random: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """Return how often each of `count` items is drawn, with `count` - 1 draws (at least one) in each resample."""
    return random.multinomial(max(1, count - 1), np.full(count, 1 / count), size=resamples)
