"""The processes that train one model together, as torchrun or a job of SLURM starts them: all of torch.distributed.

Each process is a rank. They are told of each other by the variables RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; where these are missing there is one, and each function is the plain thing it stands for.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LastWords = Callable[[str, bool], None]  # how another rank ended, and whether by an error or by a signal
_last_words: list[LastWords] = []
_GONE = (
    "another process that trains with this one is gone: what started them says how it ended, and the same command goes on "
    "from the last checkpoint"
)
_MEETING = timedelta(minutes=10)  # in which all have started
_LIMIT = timedelta(hours=4)  # then they wait that long for one that builds a cache or tests the model
_POLL_S = 0.2
_NOTICE_S = 1.0  # after an error all ranks have learned of it
_GRACE_S = 3.0  # after which they end: later than the one that failed, which torchrun takes for the cause


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Of this process, from 0; number 0 alone writes and prints."""
    return int(os.environ.get("RANK", "0"))


def on_this_node() -> tuple[int, int]:
    """Number of this process among those of its machine, and how many these are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, where alone it is called; the others wait for it."""
    if count() == 1:
        return make()
    _join()
    import torch
    import torch.distributed as dist

    box = [make() if number() == 0 else None]
    with _exchange():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """The `value` of each rank, in their order."""
    if count() == 1:
        return [value]
    _join()
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    with _exchange():
        dist.all_gather_object(found, value)
    return found


def sums(values: Sequence[float], device: torch.device) -> list[float]:
    """The sum over the ranks of each value, exchanged by `device`."""
    if count() == 1:
        return list(values)
    import torch

    held = torch.tensor(values, dtype=torch.float64, device=device)
    add_([held])
    return held.tolist()


def add_(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in one exchange; all lie on one device and are of one type."""
    if count() == 1:
        return
    _join()
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange():
        dist.all_reduce(flat)
    totals = flat.split([tensor.numel() for tensor in tensors])
    # As torch's optimizers do: one kernel on a GPU in place of one a tensor.
    torch._foreach_copy_(tensors, [total.view_as(tensor) for tensor, total in zip(tensors, totals, strict=True)])


def copy_first_(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by that of rank 0."""
    if count() == 1:
        return
    _join()
    import torch.distributed as dist

    with _exchange():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextmanager
def _exchange() -> Iterator[None]:
    """Where an exchange fails, another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{_GONE} ({error})") from error


@contextmanager
def last_words(say: LastWords) -> Iterator[None]:
    """Where another rank ends in this context, `say` is called just before this process ends, too."""
    _last_words.append(say)
    yield
    _last_words.remove(say)  # not after an error, which may be what the end of that rank looks like from here


@contextmanager
def together() -> Iterator[None]:
    """In this context an error of one rank ends them all, and is the only one that is shown."""
    if count() == 1:
        yield
        return
    store, over = _join(), threading.Event()
    watch = threading.Thread(target=_watch, args=(store, over), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        with suppress(RuntimeError):  # where the store is lost, with the rank that held it
            if store.add("failed", 1) > 1:
                time.sleep(60)  # `_watch` ends this process; what failed here is the end of another one
            over.set()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, as soon as another rank has ended
            cause = error.__cause__ or error
            told = f"rank {number()}: {type(cause).__name__}: {cause}"
            store.set("error", json.dumps([told, isinstance(cause, Exception)]))
            time.sleep(_NOTICE_S)
        raise
    finally:
        over.set()
        watch.join()


def _watch(store: Any, over: threading.Event) -> None:
    """End this process when another one has failed: its main thread may wait for that one without end."""
    told = None
    while told is None and not over.wait(_POLL_S):
        try:
            if store.check(["error"]):
                told = json.loads(store.get("error"))
        except RuntimeError:  # the store is lost with the rank that held it
            told = _GONE, True
            time.sleep(_GRACE_S)  # in which the main thread may meet that loss and tell of it
            if not over.is_set():
                print(f"error: {_GONE}", file=sys.stderr, flush=True)
    if told is not None and not over.is_set():
        for say in _last_words:
            with suppress(Exception):
                say(*told)
        time.sleep(_GRACE_S)
        os._exit(1)


@cache
def _join() -> Any:
    """Meet the other ranks; returns the store that they share."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is told in one sentence, not in stacks of C++
    import torch
    import torch.distributed as dist

    own = on_this_node()[0]
    gpu = own < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(own)
    store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=_MEETING)))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("ranks", store), rank=rank, world_size=ranks, timeout=_LIMIT
    )
    atexit.register(dist.destroy_process_group)
    return store
