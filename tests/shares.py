"""Shares of a part of a data set: together they are the whole part, without overlap."""

import torch

from speech_exp.data.batches import BatchSize, Share


def check_shares(part, size, ranks):
    """Check that each rank gets its share of the batches of a single process, and that all ranks get equally many batches."""
    shares = [Share(rank, ranks) for rank in range(ranks)]
    whole = list(part.shuffled(BatchSize(size), torch.Generator().manual_seed(3)))
    taken = [list(part.shuffled(BatchSize(size), torch.Generator().manual_seed(3), 0, share)) for share in shares]
    for share, batches in zip(shares, taken, strict=True):
        assert len(batches) == len(whole) == part.batches(BatchSize(size))
        for one, batch in zip(batches, whole, strict=True):
            assert one.ids == share.of(batch.ids)
            if one.ids:
                assert one.lengths_B.tolist() == share.of(batch.lengths_B).tolist()
                expected_BTF = share.of(batch.features_BTF)[:, : one.features_BTF.shape[1]]
                torch.testing.assert_close(one.features_BTF, expected_BTF, rtol=0, atol=1e-4)
    rest = list(part.shuffled(BatchSize(size), torch.Generator().manual_seed(3), 1, shares[-1]))
    assert [batch.ids for batch in rest] == [batch.ids for batch in taken[-1][1:]]

    whole = [batch.ids for batch in part.by_length(size)]
    for share in shares:
        assert [batch.ids for batch in part.by_length(size, share)] == share.of(whole)
