"""Significance tests, by hand calculation and by invariants for any data."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.comparison.significance import Outcomes, exact_interval, exact_sign_p, hierarchical_bootstrap, holm

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=20)


class TestSign:
    @pytest.mark.parametrize(
        ("better", "worse", "p"),
        [
            (0, 0, 1.0),
            (1, 0, 1.0),  # 2 * 1/2
            (5, 0, 2 / 32),
            (1, 9, 22 / 1024),  # 2 * (1 + 10) / 2^10
            (3, 7, 352 / 1024),  # 2 * (1 + 10 + 45 + 120) / 2^10
            (5, 5, 1.0),  # the doubled tail would exceed 1
        ],
    )
    def test_by_hand(self, better: int, worse: int, p: float) -> None:
        assert exact_sign_p(better, worse) == pytest.approx(p, rel=1e-12)

    @given(st.integers(0, 200), st.integers(0, 200))
    def test_neither_side_is_favoured(self, better: int, worse: int) -> None:
        assert exact_sign_p(better, worse) == exact_sign_p(worse, better)
        assert 0 < exact_sign_p(better, worse) <= 1

    @given(st.integers(1, 60), st.floats(0.01, 0.2))
    def test_never_rejects_more_often_than_alpha(self, pairs: int, alpha: float) -> None:
        odds = np.array([1.0])
        for _ in range(pairs):
            odds = np.convolve(odds, [0.5, 0.5])
        rejected = sum(odds[better] for better in range(pairs + 1) if exact_sign_p(better, pairs - better) <= alpha)
        assert rejected <= alpha + 1e-12


class TestHolm:
    def test_by_hand(self) -> None:
        # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 give 0.02, 0.03, 0.06, 0.04; the last rises to 0.06.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_ends(self) -> None:
        assert holm([]) == []
        assert holm([0.02]) == [0.02]
        assert holm([0.6, 0.7]) == [1.0, 1.0]

    @given(probabilities)
    def test_between_the_value_and_bonferroni_and_in_its_order(self, p_values: list[float]) -> None:
        found = holm(p_values)
        for p, adjusted in zip(p_values, found, strict=True):
            assert p <= adjusted <= min(1.0, len(p_values) * p)
        for one, other in product(range(len(p_values)), repeat=2):
            if p_values[one] <= p_values[other]:
                assert found[one] <= found[other]

    @given(st.permutations([0.001, 0.01, 0.02, 0.3, 0.3]))
    def test_order_changes_nothing(self, p_values: list[float]) -> None:
        expected = dict(zip([0.001, 0.01, 0.02, 0.3], holm([0.001, 0.01, 0.02, 0.3, 0.3]), strict=False))
        assert holm(p_values) == [expected[p] for p in p_values]


small = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), min_size=2, max_size=12)


def of_units(errors: object, sizes: object) -> Outcomes:
    """Return outcomes of one seed and unknown speakers."""
    errors_U = np.asarray(errors, dtype=float)
    return Outcomes(errors_U[None], np.asarray(sizes, dtype=float)[None], np.zeros(len(errors_U), dtype=np.int64))


class TestBootstrap:
    def test_equal_systems(self) -> None:
        found = hierarchical_bootstrap(of_units(np.zeros(30), np.ones(30)))
        assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)

    def test_a_difference_that_never_varies_has_an_exact_interval(self) -> None:
        found = hierarchical_bootstrap(of_units(np.full(30, 2), np.full(30, 8)))
        assert (found.low, found.high) == (0.25, 0.25)
        assert found.p < 0.001  # no resample on the other side

    def test_interval_by_the_binomial_distribution(self) -> None:
        # 100 recordings, 30 of them with an error more: a resample holds Binomial(100, 0.3), whose 2.5 % and 97.5 %
        # quantiles are 21 and 39; the resamples' own quantile and Student's tails of 99 degrees may miss by one.
        found = hierarchical_bootstrap(of_units(np.repeat([1, 0], [30, 70]), np.ones(100)))
        assert found.low == pytest.approx(0.21, abs=0.0101)
        assert found.high == pytest.approx(0.39, abs=0.0101)

    def test_interval_and_p_of_six_speakers_by_students_t(self) -> None:
        # Means 0 to 5 of many equal recordings: 2.5 and s = 1.8708. One fewer drawn than there are: the resamples'
        # deviation is that of all six, 1.7078, by the root of 5, and the tails are those of t(5) = 2.5706.
        errors_U = np.repeat(np.arange(6.0), 50)
        found = hierarchical_bootstrap(Outcomes(errors_U[None], np.ones((1, 300)), np.repeat(np.arange(6), 50)))
        half = 2.5706 * 1.8708 / np.sqrt(6)
        assert found.low == pytest.approx(2.5 - half, abs=0.3)
        assert found.high == pytest.approx(2.5 + half, abs=0.3)

    def test_a_seed_is_one_model_unless_each_speaker_has_separate_models(self) -> None:
        """One of three seeds is bad for all speakers: the interval is wider if a seed is one model than with models per speaker."""
        errors_KU = np.repeat([[0.0], [0.0], [1.0]], 60, axis=1)
        speakers_U = np.repeat(np.arange(6), 10)
        one, apart = (
            hierarchical_bootstrap(Outcomes(errors_KU, np.ones((3, 60)), speakers_U, own)) for own in (False, True)
        )
        assert (one.low, one.high) == (0.0, 1.0)
        assert 1 / 3 < apart.high < one.high

    def test_two_speakers_are_too_few_to_generalise(self) -> None:
        errors_U = np.repeat([0.0, 1.0], 50)
        known = Outcomes(errors_U[None], np.ones((1, 100)), np.repeat(np.arange(2), 50))
        assert hierarchical_bootstrap(known) == hierarchical_bootstrap(of_units(errors_U, np.ones(100)))

    def test_long_utterances_weigh_more(self) -> None:
        found = hierarchical_bootstrap(of_units([0, 10], [1, 10]))
        assert (found.low, found.high) == (0.0, 1.0)

    @settings(deadline=None, max_examples=25)
    @given(small)
    def test_signs_swapped_mirror_the_interval(self, pairs: list[tuple[int, int]]) -> None:
        difference_U, weight_U = np.array(pairs).T
        found = hierarchical_bootstrap(of_units(difference_U, weight_U))
        mirrored = hierarchical_bootstrap(of_units(-difference_U, weight_U))
        assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-12)
        assert found.p == mirrored.p
        assert found == hierarchical_bootstrap(of_units(difference_U, weight_U))  # seeded

    def test_many_utterances_get_fewer_resamples(self) -> None:
        # The rate's standard error is sqrt(0.2 * 0.8 / 15000) = 0.00327.
        found = hierarchical_bootstrap(of_units(np.repeat([1, 0], [3000, 12000]), np.ones(15000)))
        assert found.low == pytest.approx(0.2 - 1.96 * 0.00327, abs=5e-4)
        assert found.high == pytest.approx(0.2 + 1.96 * 0.00327, abs=5e-4)

    def test_one_utterance(self) -> None:
        with pytest.raises(ValueError, match="the bootstrap got 1 recordings, expected at least two"):
            hierarchical_bootstrap(of_units([1], [1]))


class TestExactInterval:
    def test_a_test_of_perfect_results_finds_no_difference(self) -> None:
        # The share p of which 300 of 300 are right with odds 2.5 %: p^300 = 0.025.
        assert exact_interval(300, 300) == (pytest.approx(0.025 ** (1 / 300)), 1.0)
        assert exact_interval(0, 300) == (0.0, pytest.approx(1 - 0.025 ** (1 / 300)))

    def test_by_the_binomial_distribution(self) -> None:
        low, high = exact_interval(8, 10)
        assert sum(math.comb(10, k) * low**k * (1 - low) ** (10 - k) for k in range(8, 11)) == pytest.approx(0.025)
        assert sum(math.comb(10, k) * high**k * (1 - high) ** (10 - k) for k in range(9)) == pytest.approx(0.025)
