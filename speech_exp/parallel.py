"""Work that is cut into jobs and done by processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import TypeVar

from speech_exp.progress import progress

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, title: str
) -> Iterator[tuple[_Job, _Result]]:
    """Each job with its result, in the order in which they are done; in this process where `workers` is below 2.

    `work`, jobs and results must pickle. The first error of a job is raised here, and jobs not yet begun are left.
    """
    with progress(title, len(jobs), for_all=True) as bar:
        if workers < 2 or len(jobs) < 2:
            for job in jobs:
                yield job, work(job)
                bar.advance()
            return
        # spawn: torch's threads and open files do not survive a fork
        pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), _begin_worker)
        try:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()
                bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """One thread a process, and no process outlives the one that started it, even where that was killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
