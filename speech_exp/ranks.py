"""The processes (ranks) that train one model together, started by torchrun or a SLURM job; wraps torch.distributed.

The launcher describes them in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without these
variables there is one process, and every function here works without communication.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

T = TypeVar("T")

_GONE = (
    "another process of this run has ended: the output of torchrun or SLURM says why, and the same command resumes "
    "from the last checkpoint"
)
_FAILURE = "failure"  # key of the first failure in the store that all ranks share
_START_TIMEOUT = timedelta(minutes=10)  # time limit for all ranks to start
_EXCHANGE_TIMEOUT = timedelta(hours=4)  # time limit of later exchanges: one rank may build a cache or test the model
_GPU_TIMEOUT = timedelta(minutes=10)  # time limit of exchanges between GPUs; one that hangs ends its process
_END_S = 5  # time for the launcher to notice that the first rank has failed, and to end this one

_gpu_groups: dict[torch.device, dist.ProcessGroup] = {}


def world_size() -> int:
    """Return the number of processes (ranks) that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process, from 0; only rank 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def local_rank_and_size() -> tuple[int, int]:
    """Return the rank of this process on its machine, and the number of processes there."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def broadcast_object(make: Callable[[], T]) -> T:
    """Return what `make` returns on rank 0; only rank 0 calls it, the others wait for the result."""
    if world_size() == 1:
        return make()
    _join()
    import torch.distributed as dist

    objects = [make() if rank() == 0 else None]
    with exchange():
        dist.broadcast_object_list(objects, src=0)
    return objects[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Return the `value` of every rank, in rank order (all-gather)."""
    if world_size() == 1:
        return [value]
    _join()
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    with exchange():
        dist.all_gather_object(values, value)
    return values


def all_reduce_values(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sum of each value over all ranks (all-reduce on `device`)."""
    if world_size() == 1:
        return list(values)
    import torch

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    all_reduce_(sums)
    return sums.tolist()


def all_reduce_(tensor: torch.Tensor) -> None:
    """Replace `tensor` by its sum over all ranks (all-reduce)."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    with exchange():
        dist.all_reduce(tensor, group=process_group(tensor.device))


def broadcast_(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by that of rank 0 (broadcast)."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    with exchange():
        for tensor in tensors:
            dist.broadcast(tensor, src=0, group=process_group(tensor.device))


def process_group(device: torch.device) -> dist.ProcessGroup:
    """Return torch's process group for tensors on `device`: gloo on a CPU, NCCL on a GPU."""
    _join()
    import torch.distributed as dist

    if device.type == "cpu":
        assert dist.group.WORLD is not None, "_join has created it"
        return dist.group.WORLD
    if device not in _gpu_groups:
        _gpu_groups[device] = dist.new_group(backend="nccl", timeout=_GPU_TIMEOUT, device_id=device)
    return _gpu_groups[device]


@contextmanager
def exchange() -> Iterator[None]:
    """Report a failed exchange as the end of another rank."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ValueError(f"{_GONE} ({error})") from error


@contextmanager
def fail_together() -> Iterator[None]:
    """Within this context, only the first rank that fails shows its error; the launcher then ends the others.

    torchrun and `srun --kill-on-bad-exit` would end them without this too. But each rank would then show an error, the same one
    or a lost connection, and torch's `record` would repeat the first one in torchrun's report.
    """
    if world_size() == 1:
        yield
        return
    store = _join()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))  # torchrun may send it at this moment
        for group in _gpu_groups.values():
            group.abort()  # NCCL would wait for the other ranks at the end of this process
        if _is_first_failure(store, error):
            sys.stderr = sys.__stderr__
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _, failed = peer_failure() or ("", False)
        if failed and not signals:
            time.sleep(_END_S)  # torchrun would blame this rank if it ended now
        raise SystemExit(1) from None


def peer_failure() -> tuple[str, bool] | None:
    """Return how another rank ended and whether by an error (not by a signal or the user); None if no rank has reported an end."""
    if world_size() == 1:
        return None
    try:
        store = _join()
        return tuple(json.loads(store.get(_FAILURE))) if store.check([_FAILURE]) else None
    except RuntimeError:  # the store is lost with the rank that hosted it
        return None


@contextmanager
def deferring_sigterm() -> Iterator[None]:
    """With several ranks, let SIGTERM act at the end of this context; torchrun sends it when another rank has failed."""
    if world_size() == 1:
        yield
        return
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    for number in signals:
        signal.raise_signal(number)


def _is_first_failure(store: dist.Store, error: BaseException) -> bool:
    """Tell the other ranks about `error` unless one of them has failed before; return whether this rank is the first."""
    if isinstance(error, SystemExit) and isinstance(error.code, str):
        text, failed = error.code.strip().splitlines()[-1].removeprefix("error: "), True
    else:
        text, failed = f"{type(error).__name__}: {error}", isinstance(error, Exception)
    message = json.dumps([f"rank {rank()}: {text}", failed])
    try:
        return store.compare_set(_FAILURE, "", message).decode() == message
    except RuntimeError:  # the store is lost with the rank that hosted it
        return True


@cache
def _join() -> dist.Store:
    """Connect to the other ranks and return the store that they share."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces if a rank is lost
    import torch.distributed as dist

    store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=_START_TIMEOUT)))
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("ranks", store), rank=rank, world_size=world_size, timeout=_EXCHANGE_TIMEOUT
    )
    atexit.register(dist.destroy_process_group)
    return store
