"""Augmentation stays within its bounds, leaves padding zero, and draws from the configured distributions.

Shape letters: B batch, T frames, F features.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.features.augment import SpecAugment
from speech_exp.features.batch import Batch

NOTHING: dict[str, Any] = {
    "time_masks": 0,
    "time_mask_share": 0.0,
    "feature_masks": 0,
    "feature_mask_width": 0,
    "gain_std": 0.0,
    "shift_std": 0.0,
    "noise_std": 0.0,
}
EVERYTHING: dict[str, Any] = {
    "time_masks": 2,
    "time_mask_share": 0.2,
    "feature_masks": 2,
    "feature_mask_width": 4,
    "gain_std": 0.2,
    "shift_std": 0.3,
    "noise_std": 0.1,
}


def augmented(batch: Batch, seed: int = 0, **settings: Any) -> Batch:
    augment = SpecAugment(**{**NOTHING, **settings})
    augment.seed(seed, torch.device("cpu"))
    return augment(batch)


def batch_of(lengths: list[int], features: int = 20, value: float | None = 1.0) -> Batch:
    """Return padded utterances of a constant value, or of noise."""
    lengths_B = torch.tensor(lengths)
    shape = (len(lengths), max(lengths), features)
    features_BTF = (
        torch.randn(shape, generator=torch.Generator().manual_seed(0)) if value is None else torch.full(shape, value)
    )
    valid_BT = torch.arange(max(lengths)) < lengths_B.unsqueeze(1)
    targets = torch.arange(len(lengths))
    ids = [f"u{row}" for row in range(len(lengths))]
    return Batch(features_BTF * valid_BT.unsqueeze(-1), lengths_B, targets, None, ids)


def runs(masked: torch.Tensor) -> list[int]:
    """Return the length of each run of True."""
    edges = torch.diff(torch.cat([torch.zeros(1), masked.float(), torch.zeros(1)]))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()


def test_augmentation_without_settings_returns_the_same_batch() -> None:
    batch = batch_of([7, 3], value=None)
    assert augmented(batch) is batch


def test_everything_else_of_the_batch_stays() -> None:
    batch = batch_of([30, 12, 21], value=None)
    before = batch.features_BTF.clone()
    after = augmented(batch, **EVERYTHING)
    assert after.lengths_B is batch.lengths_B
    assert after.targets is batch.targets
    assert after.ids is batch.ids
    assert after.features_BTF.dtype == torch.float32
    assert torch.equal(batch.features_BTF, before)  # the data set itself is not changed
    assert not torch.equal(after.features_BTF, before)


def test_the_same_seed_draws_the_same_and_another_draws_otherwise() -> None:
    batch = batch_of([30, 12, 21], value=None)
    first, same, other = (augmented(batch, seed, **EVERYTHING).features_BTF for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_each_call_draws_new_values() -> None:
    batch = batch_of([30, 12, 21], value=None)
    augment = SpecAugment(**EVERYTHING)
    augment.seed(0, torch.device("cpu"))
    assert not torch.equal(augment(batch).features_BTF, augment(batch).features_BTF)


def test_the_random_numbers_of_others_are_neither_used_nor_moved() -> None:
    batch = batch_of([30, 12, 21], value=None)
    torch.manual_seed(0)
    first = augmented(batch, **EVERYTHING).features_BTF
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(augmented(batch, **EVERYTHING).features_BTF, first)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_padding_stays_zero(lengths: list[int], seed: int) -> None:
    after = augmented(batch_of(lengths, value=None), seed, **EVERYTHING).features_BTF
    assert torch.isfinite(after).all()
    for row, length in enumerate(lengths):
        assert not after[row, length:].any()


# Quarters of these lengths are whole frames.
@given(
    st.lists(st.integers(1, 25).map(lambda each: 4 * each), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_time_masks_keep_to_their_number_and_share_of_the_utterance(lengths: list[int], masks: int, seed: int) -> None:
    after = augmented(batch_of(lengths), seed, time_masks=masks, time_mask_share=0.25).features_BTF
    for row, length in enumerate(lengths):
        masked_T = (after[row, :length] == 0).all(-1)
        assert torch.equal(after[row, :length], (~masked_T).float().unsqueeze(-1).expand(-1, 20))  # whole frames
        assert len(runs(masked_T)) <= masks
        assert masked_T.sum() <= masks * 0.25 * length


def test_a_time_mask_is_never_longer_than_its_share_of_the_utterance() -> None:
    after = augmented(batch_of([30] * 2000), time_masks=1, time_mask_share=0.15).features_BTF  # 4.5 frames
    assert (after[:, :, 0] == 0).sum(1).max() == 4


@given(st.integers(2, 25), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_feature_masks_keep_to_their_number_and_width(features: int, masks: int, width: int, seed: int) -> None:
    width = min(width, features)
    lengths = [9, 4, 6]
    after = augmented(batch_of(lengths, features), seed, feature_masks=masks, feature_mask_width=width).features_BTF
    for row, length in enumerate(lengths):
        masked_F = (after[row, :length] == 0).all(0)
        assert torch.equal(after[row, :length], (~masked_F).float().expand(length, -1))  # the whole utterance
        assert len(runs(masked_F)) <= masks
        assert masked_F.sum() <= masks * width


def test_masks_take_every_length_and_reach_every_place() -> None:
    rows, length = 4000, 20
    after = augmented(batch_of([length] * rows, 2), time_masks=1, time_mask_share=0.25).features_BTF
    masked_BT = after[:, :, 0] == 0
    counts = torch.bincount(masked_BT.sum(1))
    assert len(counts) == 6  # 0 to 5 of 20 frames
    # 667 of each expected, deviation sqrt(4000 / 6 * 5 / 6) = 24; 5 deviations
    assert ((counts - rows / 6).abs() < 120).all()
    assert masked_BT.any(0).all()
    assert len({tuple(row.tolist()) for row in masked_BT[:50]}) > 20  # the utterances of a batch get different masks


def test_feature_masks_take_every_width_and_reach_every_feature_of_short_utterances_too() -> None:
    after = augmented(batch_of([3] * 4000, 20), feature_masks=1, feature_mask_width=4).features_BTF
    masked_BF = after[:, 0] == 0
    counts = torch.bincount(masked_BF.sum(1))
    assert len(counts) == 5  # 0 to 4 of 20 features
    # 800 of each expected, deviation sqrt(4000 / 5 * 4 / 5) = 25; 5 deviations
    assert ((counts - 800).abs() < 126).all()
    assert masked_BF.any(0).all()


def test_a_mask_wider_than_the_features_is_not_an_error() -> None:
    after = augmented(batch_of([5], 3), feature_masks=1, feature_mask_width=10).features_BTF
    assert after.shape == (1, 5, 3)


def test_gain_is_one_factor_a_feature_and_utterance() -> None:
    after = augmented(batch_of([12] * 500, value=2.0), gain_std=0.1).features_BTF
    assert torch.equal(after, after[:, :1].expand_as(after))  # the same in every frame
    factor_BF = after[:, 0] / 2
    # 10,000 draws: the mean within 5 * 0.1 / 100, the deviation within 5 * 0.1 / sqrt(20,000)
    assert factor_BF.mean() == pytest.approx(1.0, abs=0.005)
    assert factor_BF.std() == pytest.approx(0.1, abs=0.0036)


def test_shift_is_one_offset_a_feature_and_utterance() -> None:
    after = augmented(batch_of([12] * 500, value=0.0), shift_std=0.5).features_BTF
    assert torch.equal(after, after[:, :1].expand_as(after))
    assert after[:, 0].mean() == pytest.approx(0.0, abs=0.025)
    assert after[:, 0].std() == pytest.approx(0.5, abs=0.018)


def test_noise_is_white() -> None:
    after = augmented(batch_of([100] * 50, value=0.0), noise_std=0.3).features_BTF  # 100,000 draws
    assert after.mean() == pytest.approx(0.0, abs=0.005)
    assert after.std() == pytest.approx(0.3, abs=0.0034)
    for one, next_ in ((after[:, 1:], after[:, :-1]), (after[..., 1:], after[..., :-1]), (after[1:], after[:-1])):
        assert (one * next_).mean() / 0.09 == pytest.approx(0.0, abs=0.017)  # 5 / sqrt(90,000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_works_on_the_device_of_the_batch() -> None:
    batch = batch_of([30, 12, 21], value=None)
    on_gpu = Batch(batch.features_BTF.cuda(), batch.lengths_B.cuda(), batch.targets.cuda(), None, batch.ids)
    augment = SpecAugment(**EVERYTHING)
    augment.seed(0, torch.device("cuda"))
    first = augment(on_gpu).features_BTF
    augment.seed(0, torch.device("cuda"))
    assert first.device.type == "cuda"
    assert torch.equal(augment(on_gpu).features_BTF, first)
