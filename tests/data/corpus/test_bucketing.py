"""Planned batches: each utterance once for any sizes; the same order for the same seed; ranks share each batch."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.data.batches import BatchSize, Share
from speech_exp.data.corpus.bucketing import BucketPlan

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=300).map(lambda lengths: np.array(lengths))
SIZES = st.one_of(st.integers(1, 40).map(BatchSize), st.integers(400, 3000).map(lambda frames: BatchSize(1, frames)))


def plan(lengths_U: np.ndarray, size: BatchSize, windows: int = 1) -> BucketPlan:
    return BucketPlan(lengths_U, size, np.arange(len(lengths_U)) * windows // len(lengths_U))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, SIZES, st.integers(1, 4), st.integers(0, 2**62))
def test_an_epoch_holds_each_utterance_once_within_the_limit(lengths_U, size, windows, seed):
    planned = plan(lengths_U, size, windows)
    batches = list(planned.epoch(seed))
    assert sorted(np.concatenate([batch.positions_N for batch in batches])) == list(range(len(lengths_U)))
    assert len(batches) == planned.batches
    for batch in batches:
        assert len(batch.positions_N) > 0
        assert lengths_U[batch.positions_N].max() <= batch.frames
        if size.frames is None:
            assert len(batch.positions_N) <= size.utterances
        else:
            assert len(batch.positions_N) * batch.frames <= size.frames


@settings(max_examples=30, deadline=None)
@given(LENGTHS, SIZES, st.integers(1, 4), st.integers(0, 2**62), st.data())
def test_an_epoch_resumes_from_any_batch(lengths_U, size, windows, seed, data):
    planned = plan(lengths_U, size, windows)
    whole = list(planned.epoch(seed))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(planned.epoch(seed, start))
    assert [batch.positions_N.tolist() for batch in rest] == [batch.positions_N.tolist() for batch in whole[start:]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [BatchSize(24), BatchSize(1, 9000)], ids=["utterances", "frames"])
def test_ranks_share_each_batch_and_hear_each_utterance_once(ranks, size):
    lengths_U = np.random.default_rng(0).integers(20, 300, 1000)
    planned = plan(lengths_U, size, 3)
    visited = []
    for batch in planned.epoch(5):
        shares = [Share(rank, ranks).of(batch.positions_N) for rank in range(ranks)]
        counts = [len(share_N) for share_N in shares]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == len(batch.positions_N)
        visited += [position for share_N in shares for position in share_N.tolist()]
    assert sorted(visited) == list(range(1000))


def order(planned: BucketPlan, seed: int) -> list[list[int]]:
    return [batch.positions_N.tolist() for batch in planned.epoch(seed)]


def test_the_order_agrees_by_seed_and_differs_by_epoch():
    lengths_U = np.random.default_rng(0).integers(20, 300, 500)
    assert order(plan(lengths_U, BatchSize(16)), 1) == order(plan(lengths_U, BatchSize(16)), 1)
    assert order(plan(lengths_U, BatchSize(16)), 1) != order(plan(lengths_U, BatchSize(16)), 2)
    together = [{frozenset(batch) for batch in order(plan(lengths_U, BatchSize(16)), seed)} for seed in (1, 2)]
    assert not together[0] & together[1]  # different utterances together, not only a different order


def test_a_bucket_holds_utterances_of_about_one_length_and_little_padding():
    lengths_U = np.random.default_rng(0).integers(100, 2000, 20000)
    batches = list(plan(lengths_U, BatchSize(32)).epoch(0))
    padded = sum(batch.frames * len(batch.positions_N) for batch in batches)
    assert padded / lengths_U.sum() < 1.06
    assert len({batch.frames for batch in batches}) <= 30  # number of shapes that a compiler must handle


def test_windows_follow_each_other():
    lengths_U = np.full(100, 7)
    windows = [
        {position // 25 for position in batch.positions_N.tolist()}
        for batch in plan(lengths_U, BatchSize(10), 4).epoch(3)
    ]
    assert all(len(seen) == 1 for seen in windows)
    changes = sum(one != other for one, other in pairwise(windows))
    assert changes == 3


def test_an_utterance_longer_than_a_batch_is_reported():
    with pytest.raises(
        ValueError, match=r"batches of 50 frames, the longest utterance has 60: raise trainer\.batch_seconds"
    ):
        plan(np.array([10, 60]), BatchSize(1, 50))
