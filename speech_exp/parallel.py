"""Run jobs in worker processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from speech_exp.progress import progress

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, title: str
) -> Iterator[tuple[_Job, _Result]]:
    """Yield each job with its result, in order of completion; jobs run in this process if `workers` is below 2.

    `work`, the jobs and the results must be picklable. The first error of a job is raised here; jobs not
    yet started are cancelled.
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
                try:
                    result = future.result()
                except ValueError as error:  # raised again without the worker's traceback
                    raise type(error)(*error.args) from None
                yield futures[future], result
                bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread, also in Python threads started here; its results then have the same bits on any machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin_worker() -> None:
    """Use one thread per worker, and end the worker when its parent ends, even if the parent was killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
