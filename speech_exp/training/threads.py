"""The number of CPU threads of a run."""

from __future__ import annotations

import os
from functools import cache
from typing import Literal

import psutil
import torch

from speech_exp import ranks
from speech_exp.bounds import PositiveInt

Threads = PositiveInt | Literal["auto"]
_GAINS_FROM = 1_000_000  # parameters of a model that trains faster with several threads
_DEFAULT_THREADS = torch.get_num_threads()  # follows OMP_NUM_THREADS and the cores that this process may use
_MEASURED_S = 0.2


def check_threads(threads: Threads) -> None:
    """Refuse more threads than this machine has cores; a checkpoint from a larger machine may name them."""
    cores = os.cpu_count() or 1
    if not isinstance(threads, str) and threads > cores:
        raise ValueError(f"trainer.threads={threads}: expected auto or at most {cores}, the cores of this machine")


def use_threads(threads: Threads, parameters: int, recorded: int | None = None) -> None:
    """Set the number of CPU threads of this process for a model with this many parameters.

    `auto` is one thread below a million parameters. Steps of such a model consist of many short operations: on 2 cores of an
    EPYC, the compact GRU, LSTM and LMU took 12 to 30 % longer with two threads, even where a core was free. A larger model
    uses every idle core, up to torch's own default. That depends on the other work of the machine, and results differ in
    their last bits between numbers of threads; run.json records the number, and a run that resumes uses the `recorded` one.
    """
    if not isinstance(threads, str):
        torch.set_num_threads(threads)
    else:
        torch.set_num_threads(recorded or ranks.broadcast_object(lambda: _chosen(parameters)))


def _chosen(parameters: int) -> int:
    if parameters < _GAINS_FROM:
        return 1
    return max(1, min(_DEFAULT_THREADS, _idle_cores() // ranks.local_rank_and_size()[1]))


def cores_are_idle(threads: int) -> bool:
    """Return whether at least `threads` cores were idle before this process trained."""
    return _idle_cores() >= threads


@cache
def _idle_cores() -> int:
    """Return how many of the usable cores are idle at the first call."""
    busy_percent = psutil.cpu_percent(_MEASURED_S, percpu=True)
    return round(sum(1 - busy_percent[core] / 100 for core in usable_cores() if core < len(busy_percent)))


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS and Windows
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
