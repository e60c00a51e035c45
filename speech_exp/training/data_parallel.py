"""Sum the gradients of all ranks with torch's DistributedDataParallel (DDP)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from speech_exp import ranks
from speech_exp.features.batch import Batch

_BUCKET_MB = 4  # small enough that the first buckets are exchanged while the backward pass still computes the others


class BatchLoss(nn.Module):
    """The loss of a batch as a module, because DDP wraps modules.

    Each call names the loss: a task may train another form of `network`, which shares its parameters.
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
