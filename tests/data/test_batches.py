"""Each utterance occurs once per epoch, in one of its variants, and is never mixed with other frames or padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shares import check_shares

from speech_exp.data.batches import BatchSize, InMemoryUtterances
from speech_exp.features.batch import Batch

FEATURES = 3


def utterances(lengths_WU: list[list[int]]) -> InMemoryUtterances:
    """Return a part whose frames are identifiable: every value occurs once, and none is zero."""
    lengths = torch.tensor(lengths_WU)
    frames = int(lengths.sum())
    frames_NF = torch.arange(1, frames * FEATURES + 1, dtype=torch.float32).reshape(frames, FEATURES)
    starts_WU = (lengths.flatten().cumsum(0) - lengths.flatten()).reshape(lengths.shape)
    number = lengths.shape[1]
    return InMemoryUtterances(
        frames_NF, starts_WU, lengths, torch.arange(number) % 10, [f"u{position}" for position in range(number)]
    )


def frames_of(part: InMemoryUtterances, variant: int, position: int) -> torch.Tensor:
    start, length = int(part.starts_WU[variant, position]), int(part.lengths_WU[variant, position])
    return part.frames_NF[start : start + length]


def variant_in(part: InMemoryUtterances, batch: Batch, row: int) -> int:
    """Check one utterance of a batch against its frames; return the variant that the batch contains."""
    position = int(batch.ids[row][1:])
    length = int(batch.lengths_B[row])
    assert batch.targets[row] == part.targets_U[position]
    assert not batch.features_BTF[row, length:].any()
    for variant in range(len(part.starts_WU)):
        own_TF = frames_of(part, variant, position)
        if len(own_TF) == length and torch.equal(batch.features_BTF[row, :length], own_TF):
            return variant
    raise AssertionError(f"{batch.ids[row]} holds frames of another utterance")


def check(part: InMemoryUtterances, batch: Batch) -> list[int]:
    assert batch.features_BTF.shape == (len(batch.ids), int(batch.lengths_B.max()), FEATURES)
    assert (batch.features_BTF.dtype, batch.lengths_B.dtype) == (torch.float32, torch.int64)
    assert batch.target_lengths_B is None
    return [variant_in(part, batch, row) for row in range(len(batch.ids))]


sizes = st.integers(1, 3).flatmap(
    lambda variants: st.integers(1, 40).flatmap(
        lambda number: st.lists(
            st.lists(st.integers(1, 12), min_size=number, max_size=number), min_size=variants, max_size=variants
        )
    )
)


@given(sizes, st.integers(1, 50), st.integers(0, 1000))
def test_an_epoch_holds_each_utterance_once_whatever_the_sizes(
    lengths_WU: list[list[int]], batch_size: int, seed: int
) -> None:
    part = utterances(lengths_WU)
    batches = list(part.shuffled(BatchSize(batch_size), torch.Generator().manual_seed(seed)))
    for batch in batches:
        check(part, batch)
    together = [utterance for batch in batches for utterance in batch.ids]
    assert sorted(together) == sorted(part.ids)
    # all batches are full but one
    assert len(batches) == math.ceil(len(part) / batch_size)
    assert sorted(len(batch.ids) for batch in batches)[1:] == [batch_size] * (len(batches) - 1)


@given(sizes, st.integers(1, 50))
def test_in_order_gives_the_recordings_themselves_in_their_order(lengths_WU: list[list[int]], batch_size: int) -> None:
    part = utterances(lengths_WU)
    batches = list(part.in_order(batch_size))
    assert [utterance for batch in batches for utterance in batch.ids] == part.ids
    for batch in batches:
        assert set(check(part, batch)) == {0}
    assert [len(batch.ids) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


@given(sizes, st.integers(1, 50))
def test_by_length_gives_each_recording_once_the_shortest_first(lengths_WU: list[list[int]], batch_size: int) -> None:
    part = utterances(lengths_WU)
    batches = list(part.by_length(batch_size))
    lengths = [length for batch in batches for length in batch.lengths_B.tolist()]
    assert lengths == sorted(lengths_WU[0])
    assert sorted(utterance for batch in batches for utterance in batch.ids) == sorted(part.ids)
    for batch in batches:
        assert set(check(part, batch)) == {0}


@given(sizes, st.integers(1, 12), st.integers(1, 8))
def test_processes_share_every_batch_and_evaluation(lengths_WU: list[list[int]], batch_size: int, ranks: int) -> None:
    check_shares(utterances(lengths_WU), batch_size, ranks)


@given(sizes, st.integers(2, 50))
def test_a_batch_is_its_utterances_one_by_one(lengths_WU: list[list[int]], batch_size: int) -> None:
    part = utterances(lengths_WU)
    single = {batch.ids[0]: batch for batch in part.in_order(1)}
    for batch in part.in_order(batch_size):
        for row, utterance in enumerate(batch.ids):
            alone, length = single[utterance], int(batch.lengths_B[row])
            assert int(alone.lengths_B) == length == alone.features_BTF.shape[1]
            assert torch.equal(batch.features_BTF[row, :length], alone.features_BTF[0])
            assert batch.targets[row] == alone.targets[0]


def orders(part: InMemoryUtterances, seed: int, epochs: int) -> list[list[list[str]]]:
    generator = torch.Generator().manual_seed(seed)
    return [[batch.ids for batch in part.shuffled(BatchSize(8), generator)] for _ in range(epochs)]


def test_the_order_differs_by_epoch_and_agrees_by_seed() -> None:
    part = utterances([[5 + position % 7 for position in range(100)]])
    first = orders(part, seed=0, epochs=5)
    assert len({str(epoch) for epoch in first}) == 5
    assert orders(part, seed=0, epochs=5) == first
    assert str(orders(part, seed=1, epochs=1)[0]) != str(first[0])


def test_utterances_meet_others_in_each_epoch() -> None:
    # Batches sorted by length must not always be the same batches.
    part = utterances([[5 + position % 7 for position in range(500)]])
    partners = [{frozenset(ids) for ids in epoch} for epoch in orders(part, seed=0, epochs=2)]
    assert not partners[0] & partners[1]


def test_batches_of_similar_lengths_are_in_random_order() -> None:
    generator = torch.Generator().manual_seed(0)
    part = utterances([torch.randint(10, 100, (640,), generator=generator).tolist()])
    batches = list(part.shuffled(BatchSize(16), generator))
    padded = sum(batch.features_BTF.shape[0] * batch.features_BTF.shape[1] for batch in batches)
    assert part.lengths_WU.sum() / padded > 0.9  # in a random order a batch of 16 is filled to 58 %
    longest = torch.tensor([float(batch.lengths_B.max()) for batch in batches])
    later = longest[1:] > longest[:-1]
    assert 0.2 < later.float().mean() < 0.8


def test_every_variant_is_picked_about_equally_often() -> None:
    number, variants, epochs = 60, 3, 20
    part = utterances([[4 + variant] * number for variant in range(variants)])
    generator = torch.Generator().manual_seed(0)
    picked = [
        variant
        for _ in range(epochs)
        for batch in part.shuffled(BatchSize(8), generator)
        for variant in check(part, batch)
    ]
    assert len(picked) == number * epochs
    for variant in range(variants):
        # 400 of 1200 expected, deviation sqrt(1200 / 3 * 2 / 3) = 16; 5 deviations
        assert abs(picked.count(variant) - number * epochs / variants) < 80


def test_variants_may_have_other_lengths_than_the_recording() -> None:
    part = utterances([[3, 9, 4], [30, 2, 11]])
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        for batch in part.shuffled(BatchSize(2), generator):
            seen |= set(zip(batch.ids, check(part, batch), strict=True))
    assert seen == {(utterance, variant) for utterance in part.ids for variant in (0, 1)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_on_the_device_of_the_frames() -> None:
    part = utterances([[3, 9, 4]])
    on_gpu = InMemoryUtterances(part.frames_NF.cuda(), part.starts_WU, part.lengths_WU, part.targets_U.cuda(), part.ids)
    for batch, other in zip(on_gpu.in_order(2), part.in_order(2), strict=True):
        assert {batch.features_BTF.device.type, batch.lengths_B.device.type, batch.targets.device.type} == {"cuda"}
        assert torch.equal(batch.features_BTF.cpu(), other.features_BTF)
