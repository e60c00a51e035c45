"""Measure how training scales with the number of ranks, and derive how it would scale on GPUs that are not available.

    PYTHONPATH=. python benchmarks/scaling.py
    PYTHONPATH=. python benchmarks/scaling.py --device cuda --dtype bf16 --compile

Measured: 1 and 2 ranks (on GPUs 1, 2, 4 and 8, as far as available), each a process with one thread, take the trainer's step
on made-up batches and sum gradients by DistributedDataParallel over gloo (NCCL on GPUs). Strong scaling keeps the total batch of all ranks, as
`trainer.batch_size` does; weak scaling keeps the batch of each rank. Each round measures all cases, and an efficiency is the
median of the ratios within a round, because the load on the machine varies. The same ranks also step without any exchange,
which shows how much they slow each other down on one machine; the difference is what the exchange adds to a step, including
the time spent waiting for the slower rank.

Derived: what a step exchanges, the efficiency at 1 to 64 GPUs and what a node reads, from the reference encoder's counts, the
reading speeds of benchmarks/pipeline.py and the printed assumptions. The whole exchange adds to the step there: an upper bound,
because most of it overlaps with the backward pass.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple
from unittest.mock import patch

import torch
from asr import MODELS, make_batch
from scaling_derived import BATCH, ESTIMATED_MS, FRAMES, LINKS_GB_PER_S, Derivation, print_header, print_row
from training import experiment

from speech_exp import ranks
from speech_exp.features.batch import Batch
from speech_exp.tasks.phases import plain_loss
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import compiled


@dataclass(frozen=True)
class Case:
    """What each rank trains; `typed` are additional overrides."""

    encoder: str
    utterances: int
    frames: int
    typed: tuple[str, ...]
    compile: bool


class Times(NamedTuple):
    """Seconds of one step, as the mean of a round; `apart` is a step without any exchange."""

    step: float
    apart: float


class Training:
    """The trainer's step, repeated on one batch."""

    def __init__(self, case: Case) -> None:
        typed = ["dataset=fsdd_strings", "features=logmel80", f"encoder={case.encoder}", *case.typed]
        typed += ["trainer.deterministic=false", f"trainer.batch_size={case.utterances * ranks.world_size()}"]
        run = experiment(Path(tempfile.gettempdir()), typed)
        runtime, self.objective = run.trainer.runtime, run.objective
        self.device, self.network = runtime.device, run.network.train()
        self.forward = compiled(self.network) if case.compile else self.network
        self.batch = make_batch(case.utterances, case.frames, run.front_end.extractor.num_features, self.device)
        self.optimization = Optimization(self.network, runtime, 10_000, 1e-4, 0.01, "cosine", 0.1, 1.0)

    def step(self) -> None:
        """Take a step as the training loop does."""
        own = self.objective.weight(self.batch)
        weight = ranks.all_reduce_values([own, len(self.batch.ids), 0, 0], self.device)[0]
        self.optimization.step([(self.batch, own / weight)], self.loss, nullcontext())

    def loss(self, batch: Batch) -> torch.Tensor:
        return plain_loss(self.objective, self.forward, batch)

    def now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def mean_s(self, steps: int) -> float:
        started_s = self.now_s()
        for _ in range(steps):
            self.step()
        return (self.now_s() - started_s) / steps

    def measure(self, steps: int) -> Times:
        step_s = self.mean_s(steps)
        with patch.object(ranks, "all_reduce_", lambda _: None), self.optimization.batch_loss.no_sync():
            return Times(step_s, self.mean_s(steps))


training = cache(Training)  # each rank builds a case only once


def measure(case: Case, steps: int) -> Times:
    """Measure in this rank; if one rank fails, all do."""
    with ranks.fail_together():
        return training(case).measure(steps)


def become_rank(told: dict[str, str]) -> None:
    os.environ.update(told)
    torch.set_num_threads(1)


class Group:
    """`size` ranks that train together, each in a process that sleeps until it is called."""

    def __init__(self, size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(size):
            told: dict[str, object] = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in told.items()}
            self.processes.append(ProcessPoolExecutor(1, get_context("spawn"), become_rank, (environment,)))

    def measure(self, case: Case, steps: int) -> Times:
        """Return the mean over the ranks."""
        asked = [process.submit(measure, case, steps) for process in self.processes]
        return Times(*map(mean, zip(*(one.result() for one in asked), strict=True)))


def compare(case: Case, sizes: list[int], rounds: int, steps: int) -> float:
    """Print a row for each number of ranks and kind of scaling; return the seconds of a step on a single rank."""
    rows = [("", 1, case)]
    for size in sizes[1:]:
        rows += [("strong", size, replace(case, utterances=case.utterances // size)), ("weak", size, case)]
    groups = {size: Group(size) for size in sizes}
    found: list[list[Times]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for (_, size, of_rank), times in zip(rows, found, strict=True):
            one = groups[size].measure(of_rank, steps)
            if number:  # the first round builds, compiles and warms up
                times.append(one)
    for (scaling, size, of_rank), times in zip(rows, found, strict=True):
        step_ms = 1000 * median(one.step for one in times)
        cells = [case.encoder, scaling, f"{size}", f"{size} x {of_rank.utterances} x {case.frames}", f"{step_ms:.1f}"]
        if size > 1:
            work = of_rank.utterances / case.utterances  # work of a rank, relative to that of a single rank
            pairs = list(zip(found[0], times, strict=True))
            apart = median(100 * work * one.step / own.apart for one, own in pairs)
            efficiency = median(100 * work * one.step / own.step for one, own in pairs)
            exchange_ms = 1000 * median(one.step - one.apart for one in times)
            cells += [f"{exchange_ms:.1f}", f"{apart:.0f}", f"{efficiency:.0f}"]
        print_row(*cells, *[""] * (8 - len(cells)))
    return median(one.step for one in found[0])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16 runs under autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", default="lmu, auto", choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--step-ms", type=float, nargs="+", help="of the reference encoder on one GPU")
    parser.add_argument("--links", type=float, nargs=2, default=LINKS_GB_PER_S, help="GB/s in a node and between nodes")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    on_gpu = arguments.device == "cuda"
    typed = (*MODELS[arguments.model], f"trainer.device={arguments.device}", f"trainer.precision={arguments.dtype}")
    if on_gpu:
        cases, sizes = [Case("asr", BATCH, FRAMES, typed, arguments.compile)], [1, 2, 4, 8]
        sizes = [size for size in sizes if size <= torch.cuda.device_count()]
        where = torch.cuda.get_device_name()
    else:
        cases = [Case(*small, typed, arguments.compile) for small in (("asr_small", 16, 200), ("asr", 4, 200))]
        sizes, where = [1, 2], f"{os.cpu_count()} cores"
    how = "compiled" if arguments.compile else "not compiled"
    print(f"{arguments.model}, {arguments.dtype}, {how}, {where}, {arguments.rounds} rounds, torch {torch.__version__}")
    print()
    columns = ("encoder", "scaling", "ranks", "batch x frames", "step (ms)", "exchange adds (ms)")
    print_header(*columns, "without exchange (%)", "efficiency (%)")
    found_s = [compare(case, sizes, arguments.rounds, arguments.steps) for case in cases]
    steps_ms, source = ([1000 * found_s[-1]], "measured") if on_gpu else (list(ESTIMATED_MS), "an estimate")
    if arguments.step_ms:
        steps_ms, source = arguments.step_ms, "as given"
    on_cpu = (*typed, "trainer.device=cpu", "trainer.precision=fp32")
    counted = Training(Case("asr", 1, FRAMES, on_cpu, compile=False))
    derivation = Derivation(counted.network, lambda: counted.loss(counted.batch), arguments.links)
    derivation.print(steps_ms, source)


if __name__ == "__main__":
    main()
