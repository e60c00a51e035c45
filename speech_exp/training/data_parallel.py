"""Training on several ranks: gradients are summed by torch's DistributedDataParallel (DDP), outcomes are put in one order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from speech_exp import ranks
from speech_exp.features.batch import Batch

_BUCKET_MB = 4  # small enough that the first buckets are exchanged while the backward pass still computes the others


class BatchLoss(nn.Module):
    """The loss of a batch as a module, because DDP wraps modules.

    Each call passes the loss function, because a task may train another form of `network` that shares its parameters.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch | None, loss_of: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        """Return the loss of `batch`; without one, a zero whose gradient is zero for every parameter."""
        if batch is not None:
            return loss_of(batch)
        return 0 * torch.stack([one.sum() for one in self.network.parameters() if one.requires_grad]).sum()

    def no_sync(self) -> AbstractContextManager[None]:
        """Return the context for all passes of a step but the last, in which DDP only adds up gradients."""
        return nullcontext()


def batch_loss(network: nn.Module) -> BatchLoss | DistributedDataParallel:
    """Return the module that computes losses; with several ranks, its backward pass sums the gradients over all of them.

    DDP orders the gradients anew after its first pass, and with three or more ranks the order decides the last bits of sums.
    Two passes without a batch come first, so that a resumed process sums all its steps in the same order.
    """
    losses = BatchLoss(network)
    if ranks.world_size() == 1:
        return losses
    group = ranks.process_group(next(network.parameters()).device)
    parallel = DistributedDataParallel(
        losses,
        process_group=group,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=_BUCKET_MB,
    )
    parallel.register_comm_hook(group, _sum)
    for _ in range(2):
        parallel(None, None).backward()
    return parallel


# DDP compares the annotations of this function with types, so this module must not postpone their evaluation.
def _sum(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum one bucket of gradients over all ranks; DDP's own exchange would divide by their number."""
    summed = dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return summed.then(lambda done: done.value()[0])


def interleave_ranks(outcomes: list[Any]) -> list[Any]:
    """Return the outcomes of all ranks in batch order; the ranks took the batches in turn."""
    of_ranks = ranks.all_gather(outcomes)
    return [one[number] for number in range(len(of_ranks[0])) for one in of_ranks if number < len(one)]


def refuse_batch_normalization(network: nn.Module) -> None:
    """Refuse a network that normalises over the batch if there are several ranks, because each sees only its share."""
    if ranks.world_size() > 1 and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ValueError(
            f"encoder.front_channels normalises over the batch, but each of {ranks.world_size()} processes sees only a part of it: set "
            f"encoder.front_channels=0, or start one process"
        )
