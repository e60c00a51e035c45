"""Simulations with different speakers: how often a true null is rejected and an interval covers the truth."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from speech_exp.comparison.outcomes import difference, outcomes, unit_counts
from speech_exp.comparison.significance import Outcomes, exact_sign_p, hierarchical_bootstrap
from speech_exp.data.recordings import Recording
from speech_exp.data.string_rules import WORDS, StringRules
from speech_exp.runs.record import Prediction, Predictions

SPEAKERS, RECORDINGS = 6, 50
AT_MOST = 0.07  # largest share of false rejections at 5 %, and of misses by 95 % intervals


def wrong_SKU(
    generator: np.random.Generator, seeds: int, speaker_deviation: float, difficulty_SU: np.ndarray
) -> np.ndarray:
    """Simulate the errors of one architecture, with random effects of speakers, seeds and recordings."""
    count = len(difficulty_SU)
    logit_SKU = -2.5 + difficulty_SU[:, None] + speaker_deviation * generator.standard_normal((count, 1, 1))
    logit_SKU = logit_SKU + 0.3 * generator.standard_normal((1, seeds, 1))
    logit_SKU = logit_SKU + 0.7 * generator.standard_normal((count, 1, RECORDINGS))
    return (generator.random((count, seeds, RECORDINGS)) < 1 / (1 + np.exp(-logit_SKU))).astype(float)


def as_outcomes(values_SKU: np.ndarray) -> Outcomes:
    count, seeds, recordings = values_SKU.shape
    values_KU = values_SKU.transpose(1, 0, 2).reshape(seeds, -1)
    return Outcomes(values_KU, np.ones_like(values_KU), np.repeat(np.arange(count), recordings))


def rejected(simulations: int, seeds: int, speaker_deviation: float) -> tuple[float, float]:
    """Return the shares of true null hypotheses rejected at 5 % by the bootstrap over speakers and by the sign test over recordings."""
    generator = np.random.default_rng(0)
    over_speakers = over_recordings = 0
    for _ in range(simulations):
        difficulty_SU = generator.standard_normal((SPEAKERS, 1)) + generator.standard_normal((SPEAKERS, RECORDINGS))
        ours, theirs = (wrong_SKU(generator, seeds, speaker_deviation, difficulty_SU) for _ in range(2))
        over_speakers += hierarchical_bootstrap(as_outcomes(ours - theirs)).p <= 0.05
        gained_SU = (ours - theirs).sum(1)
        over_recordings += exact_sign_p(int((gained_SU < 0).sum()), int((gained_SU > 0).sum())) <= 0.05
    return over_speakers / simulations, over_recordings / simulations


def test_speakers_that_differ_are_not_a_difference_of_models() -> None:
    over_speakers, over_recordings = rejected(150, seeds=3, speaker_deviation=1.0)
    assert over_speakers <= AT_MOST
    assert over_recordings > 0.25  # the error that the simulation demonstrates


@pytest.mark.slow
@pytest.mark.parametrize("speaker_deviation", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("seeds", [3, 5])  # a single seed says nothing about the spread of training
def test_a_true_null_is_rejected_as_seldom_as_promised(seeds: int, speaker_deviation: float) -> None:
    assert rejected(1000, seeds, speaker_deviation)[0] <= AT_MOST


def missed(simulations: int, speaker_deviation: float) -> float:
    """Return the share of 95 % intervals of an error rate that miss the rate over all speakers and recordings."""
    generator = np.random.default_rng(1)
    many_SU = generator.standard_normal((20_000, 1)) + generator.standard_normal((20_000, RECORDINGS))
    truth = wrong_SKU(generator, 1, speaker_deviation, many_SU).mean()
    outside = 0
    for _ in range(simulations):
        difficulty_SU = generator.standard_normal((SPEAKERS, 1)) + generator.standard_normal((SPEAKERS, RECORDINGS))
        found = hierarchical_bootstrap(as_outcomes(wrong_SKU(generator, 3, speaker_deviation, difficulty_SU)))
        outside += not found.low <= truth <= found.high
    return outside / simulations


def test_the_interval_covers_the_rate_of_other_speakers() -> None:
    assert missed(100, speaker_deviation=0.5) <= 0.1  # the rates of six speakers are skewed


@pytest.mark.slow
def test_interval_misses_the_rate_of_other_speakers_as_seldom_as_promised() -> None:
    assert missed(1000, speaker_deviation=0.5) <= 0.1


RULES = StringRules([3, 7], [0.0, 0.0], [0.0, 0.0], noise_db=0.0, evaluation_passes=3, seed=0)


def strings_of_one_speaker(recordings: int) -> dict[str, tuple[str, ...]]:
    """Draw strings as for a test set, with each recording in three of them; return the recordings of each string."""
    names = [Recording(f"{at % 10}_theo_{at}", Path("x"), at % 10, "theo", at) for at in range(recordings)]
    drawn = RULES.draw(dict(enumerate(names)), 8000, random.Random(0), passes=3)
    return {string.id: string.origin(names).recordings for string in drawn}


def simulated(
    strings: dict[str, tuple[str, ...]], odds: dict[str, float], generator: np.random.Generator
) -> Predictions:
    """Simulate predictions in which a word is wrong with the probability of its recording, in all of its strings."""
    found = {}
    for name, recordings in strings.items():
        words = [WORDS[int(one[0])] for one in recordings]
        recognised = [
            "oh" if generator.random() < odds[one] else word for one, word in zip(recordings, words, strict=True)
        ]
        found[name] = Prediction(" ".join(words), " ".join(recognised), "theo", recordings)
    return found


def rejected_strings(simulations: int) -> tuple[float, float]:
    """Return the shares of true null hypotheses rejected at 5 % by drawing recordings and by drawing strings."""
    generator = np.random.default_rng(2)
    strings = strings_of_one_speaker(150)
    recordings = sorted({one for members in strings.values() for one in members})
    by_recording = by_string = 0
    for _ in range(simulations):
        models = []
        for _ in range(2):  # each model always gets certain recordings wrong, different ones for each model
            odds = {one: float(generator.random() < 0.12) * 0.95 for one in recordings}
            models.append(simulated(strings, odds, generator))
        for whole in (False, True):
            parts = [
                {name: one._replace(recordings=()) for name, one in model.items()} if whole else model
                for model in models
            ]
            own = difference(*(unit_counts(part, "wer", None) for part in parts))
            low = hierarchical_bootstrap(outcomes([(0, own)], models_per_speaker=False)).p <= 0.05
            by_string, by_recording = by_string + (low and whole), by_recording + (low and not whole)
    return by_recording / simulations, by_string / simulations


def test_recordings_that_return_in_several_strings_are_one_observation() -> None:
    by_recording, by_string = rejected_strings(120)
    assert by_recording <= AT_MOST + 0.04  # two standard errors of 120 simulations; the slow test has more
    assert by_string > 0.15  # the error that the simulation demonstrates


@pytest.mark.slow
def test_a_true_null_of_strings_is_rejected_near_5_percent() -> None:
    by_recording, by_string = rejected_strings(500)
    assert 0.03 <= by_recording <= AT_MOST
    assert by_string > 0.2
