"""Tests of differences by hand calculation and by what must hold for any data."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.reporting.significance import RESAMPLES, exact_sign_p, holm, paired_bootstrap

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


small = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 9)), min_size=1, max_size=12)


class TestBootstrap:
    def test_equal_systems(self) -> None:
        found = paired_bootstrap(np.zeros(30), np.ones(30))
        assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)

    def test_the_same_difference_everywhere(self) -> None:
        found = paired_bootstrap(np.full(30, 2), np.full(30, 8))
        assert (found.low, found.high) == (0.25, 0.25)
        assert found.p == 2 / (RESAMPLES + 1)  # no resample on the other side

    def test_interval_by_the_binomial_distribution(self) -> None:
        # 100 utterances, 30 of them with an error more: a resample holds Binomial(100, 0.3), whose 2.5 % and 97.5 %
        # quantiles are 21 and 39; the resamples' own quantile may miss by one.
        found = paired_bootstrap(np.repeat([1, 0], [30, 70]), np.ones(100))
        assert found.low == pytest.approx(0.21, abs=0.0101)
        assert found.high == pytest.approx(0.39, abs=0.0101)

    def test_p_by_the_multinomial_distribution(self) -> None:
        # Two utterances, +1 and -1: a resample is 2, 0, 0 or -2 with odds 1/4 each, so 3/4 are on either side: p is 1.
        assert paired_bootstrap(np.array([1, -1]), np.ones(2)).p == 1.0
        # +3 and -1: 6, 2, 2 or -2; 1/4 at or below 0, so p is 1/2 up to the resampling (s = 0.0043, doubled).
        assert paired_bootstrap(np.array([3, -1]), np.ones(2)).p == pytest.approx(0.5, abs=0.04)

    def test_long_utterances_weigh_more(self) -> None:
        found = paired_bootstrap(np.array([0, 10]), np.array([1, 10]))
        assert (found.low, found.high) == (0.0, 1.0)

    @settings(deadline=None, max_examples=25)
    @given(small)
    def test_signs_swapped_mirror_the_interval(self, pairs: list[tuple[int, int]]) -> None:
        difference_U, weight_U = np.array(pairs).T
        found, mirrored = paired_bootstrap(difference_U, weight_U), paired_bootstrap(-difference_U, weight_U)
        assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-12)
        assert found.p == mirrored.p
        assert found == paired_bootstrap(difference_U, weight_U)  # seeded

    def test_many_utterances_in_parts(self) -> None:
        # 5,000 utterances are drawn in 25 parts. The rate's standard error is sqrt(0.2 * 0.8 / 5000) = 0.00566.
        found = paired_bootstrap(np.repeat([1, 0], [1000, 4000]), np.ones(5000))
        assert found.low == pytest.approx(0.2 - 1.96 * 0.00566, abs=4e-4)
        assert found.high == pytest.approx(0.2 + 1.96 * 0.00566, abs=4e-4)

    def test_no_utterance(self) -> None:
        with pytest.raises(ValueError, match="no utterances came for the bootstrap"):
            paired_bootstrap(np.array([]), np.array([]))
