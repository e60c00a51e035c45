"""How training scales with the processes that share it: measured here, then derived for GPUs that are not at hand.

    PYTHONPATH=. python benchmarks/scaling.py
    PYTHONPATH=. python benchmarks/scaling.py --device cuda --dtype bf16 --compile

Measured: 1 and 2 ranks (on GPUs 1, 2, 4 and 8, as many as there are), each a process of one thread, take the trainer's step on
made-up batches and exchange gradients by gloo (NCCL). Strong scaling keeps the batch of all ranks, as `trainer.batch_size`
does, weak scaling that of each. Each round measures all cases, and an efficiency is the median of the ratios within a
round: other work on the machine comes and goes. The same ranks also step without any exchange, which tells what they
cost each other as neighbours on one machine; and, in further steps, meet before they exchange, which tells waiting from exchanging.

Derived: what a step exchanges, the efficiency at 1 to 64 GPUs and what a node reads, from the reference encoder's counts, the
reading speeds of benchmarks/pipeline.py and the assumptions that are printed. Gradients are exchanged after the backward
pass and beside no computation, so that each millisecond of it counts.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
from speech_exp.data.batches import Batch
from speech_exp.ranks import add_
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import compiled


@dataclass(frozen=True)
class Case:
    """What each rank trains; `typed` are further overrides."""

    encoder: str
    utterances: int
    frames: int
    typed: tuple[str, ...]
    compile: bool


class Times(NamedTuple):
    """Of one step, in seconds, mean of a round; `apart` is a step without any exchange."""

    step: float
    apart: float
    waiting: float
    counts: float
    exchange: float


class Training:
    """The trainer's step on one batch again and again."""

    def __init__(self, case: Case) -> None:
        typed = ["dataset=fsdd_strings", "features=logmel80", f"encoder={case.encoder}", *case.typed]
        typed += ["trainer.deterministic=false", f"trainer.batch_size={case.utterances * ranks.count()}"]
        run = experiment(Path(tempfile.gettempdir()), typed)
        runtime, self.objective, self.task = run.trainer.runtime, run.objective, run.task
        self.device, self.network = runtime.device, run.network.train()
        self.forward = compiled(self.network) if case.compile else self.network
        self.batch = make_batch(case.utterances, case.frames, run.extractor.num_features, self.device)
        self.optimization = Optimization(self.network, runtime, 10_000, 1e-4, 0.01, "cosine", 0.1, 1.0)

    def step(self, exchange: Callable[[list[torch.Tensor]], None]) -> None:
        """As `Fitting` takes it, with `exchange` of counts and then of gradients."""
        own = self.objective.weight(self.batch)
        with patch.object(ranks, "add_", exchange):
            weight = ranks.sums([own, len(self.batch.ids), 0, 0], self.device)[0]
            self.optimization.step([(self.batch, own / weight)], self.loss)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.task.loss(self.objective, self.forward, batch)

    def watched_s(self) -> tuple[float, float, float]:
        """Of one step: seconds of waiting for the other ranks, exchanging counts, and exchanging gradients."""
        times_s = []

        def exchange(tensors: list[torch.Tensor]) -> None:
            times_s.append(self.now_s())
            add_([torch.zeros(1, device=self.device)])
            times_s.append(self.now_s())
            add_(tensors)
            times_s.append(self.now_s())

        self.step(exchange)
        if ranks.count() == 1:
            return 0.0, 0.0, 0.0
        reached_s, counting_s, counted_s, ready_s, exchanging_s, exchanged_s = times_s
        waiting_s = counting_s - reached_s + exchanging_s - ready_s
        return waiting_s, counted_s - counting_s, exchanged_s - exchanging_s

    def now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def mean_s(self, steps: int, exchange: Callable[[list[torch.Tensor]], None]) -> float:
        started_s = self.now_s()
        for _ in range(steps):
            self.step(exchange)
        return (self.now_s() - started_s) / steps

    def measure(self, steps: int) -> Times:
        watched_s = zip(*(self.watched_s() for _ in range(steps)), strict=True)
        return Times(self.mean_s(steps, add_), self.mean_s(steps, lambda _: None), *map(mean, watched_s))


training = cache(Training)  # of a rank


def measure(case: Case, steps: int) -> Times:
    """In one rank; where one fails, all do."""
    with ranks.together():
        return training(case).measure(steps)


def become_rank(told: dict[str, str]) -> None:
    os.environ.update(told)
    torch.set_num_threads(1)


class Group:
    """So many ranks that train together, each in a process that sleeps until it is called."""

    def __init__(self, size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = []
        for rank in range(size):
            told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in told.items()}
            self.processes.append(ProcessPoolExecutor(1, get_context("spawn"), become_rank, (environment,)))

    def measure(self, case: Case, steps: int) -> Times:
        """Mean over the ranks."""
        asked = [process.submit(measure, case, steps) for process in self.processes]
        return Times(*map(mean, zip(*(one.result() for one in asked), strict=True)))


def compare(case: Case, sizes: list[int], rounds: int, steps: int) -> float:
    """Print a row for each number of ranks and way to scale; returns the seconds of one rank's step."""
    rows = [("", 1, case)]
    for size in sizes[1:]:
        rows += [("strong", size, replace(case, utterances=case.utterances // size)), ("weak", size, case)]
    groups = {size: Group(size) for size in sizes}
    found: list[list[Times]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for (_, size, of_rank), times in zip(rows, found, strict=True):
            one = groups[size].measure(of_rank, steps)
            if number:  # the first builds, compiles and warms up
                times.append(one)
    for (scaling, size, of_rank), times in zip(rows, found, strict=True):
        step_ms, _, waiting_ms, counts_ms, exchange_ms = (1000 * median(one) for one in zip(*times, strict=True))
        cells = [case.encoder, scaling, f"{size}", f"{size} x {of_rank.utterances} x {case.frames}", f"{step_ms:.1f}"]
        if size > 1:
            work = of_rank.utterances / case.utterances  # of a rank, against one alone
            pairs = list(zip(found[0], times, strict=True))
            apart = median(100 * work * one.step / own.apart for one, own in pairs)
            efficiency = median(100 * work * one.step / own.step for one, own in pairs)
            cells += [f"{waiting_ms:.1f}", f"{counts_ms:.2f}", f"{exchange_ms:.1f}"]
            cells += [f"{100 * exchange_ms / step_ms:.1f}", f"{apart:.0f}", f"{efficiency:.0f}"]
        print_row(*cells, *[""] * (11 - len(cells)))
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
    columns = ("encoder", "scaling", "ranks", "batch x frames", "step (ms)", "waiting (ms)", "counts (ms)")
    print_header(*columns, "gradients (ms)", "of the step (%)", "without exchange (%)", "efficiency (%)")
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
