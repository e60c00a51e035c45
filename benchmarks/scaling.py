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
import math
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
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from asr import MODELS, make_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from training import experiment

from speech_exp import ranks
from speech_exp.data.batches import Batch
from speech_exp.ranks import add_
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import compiled

BATCH, FRAMES, FRAME_S = 96, 400, 0.01  # of the reference encoder on one GPU
GPUS, NODE_GPUS = (1, 4, 8, 64), 8
# Milliseconds of such a step in bf16, compiled, on one H100: 80 to 150 a second, an estimate, for no GPU was at hand. The
# share of the peak that this means is printed; narrow layers reach no large one.
ESTIMATED_MS = (1000 / 80, 1000 / 150)
PEAK_TFLOP_PER_S = 989  # H100 SXM, bf16 without sparsity (NVIDIA's data sheet)
# What an all-reduce of the encoder's 15 MB reaches. NVLink 4: 450 GB/s a direction, of which NCCL gets 370 with messages
# ten times as large (NVIDIA/nccl-tests issue 212), taken as 240 here. One 400 Gbit/s InfiniBand card: 50 GB/s, of which it
# gets 40 with 16 MB (issue 232); nodes are taken to exchange by one ring over one card each, where NCCL may use eight.
LINKS_GB_PER_S = (240.0, 40.0)
LATENCY_US = (
    60  # of an all-reduce of few bytes between two nodes: 46 to 75 (NVIDIA/nccl issues 1244 and 1453); less within one
)
LAUNCH_US = 5  # of one kernel, by Python, torch and CUDA: our assumption
# Audio seconds a second a core, and kB an audio second: benchmarks/pipeline.py.
STORAGES = {"audio": (556, 3.8), "shar": (4050, 19.2), "features": (32847, 16.0)}
XL_S = 10_000 * 3600


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


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class Derivation:
    """Step and exchange of the reference encoder on GPUs whose step with BATCH utterances takes `alone_ms` on one."""

    def __init__(self, case: Case, links_gb_per_s: list[float]) -> None:
        self.in_node_gb_per_s, self.between_gb_per_s = links_gb_per_s
        on_cpu = ("trainer.device=cpu", "trainer.precision=fp32")
        one = Training(Case("asr", 1, FRAMES, (*case.typed, *on_cpu), compile=False))
        with FlopCounterMode(display=False) as flop, Operations() as operations:
            one.loss(one.batch).backward()
        self.tensors, self.operations = len(list(one.network.parameters())), operations.count
        self.parameters = sum(parameter.numel() for parameter in one.network.parameters())
        self.tflop = BATCH * flop.get_total_flops() / 1e12
        self.megabytes = 4 * self.parameters / 1e6  # gradients are float32
        self.floor_ms = self.operations * LAUNCH_US / 1000

    def sent_mb(self, gpus: int) -> float:
        """By each GPU of a ring."""
        return 2 * (gpus - 1) / gpus * self.megabytes

    def exchange_ms(self, gpus: int) -> float:
        """Of counts, and of gradients, which are copied back tensor by tensor."""
        if gpus == 1:
            return 0.0
        gb_per_s = self.in_node_gb_per_s if gpus <= NODE_GPUS else self.between_gb_per_s
        return self.sent_mb(gpus) / gb_per_s + (2 * LATENCY_US + self.tensors * LAUNCH_US) / 1000

    def step_ms(self, gpus: int, utterances: int, alone_ms: float) -> float:
        """With so many utterances a GPU; however few they are, the kernels must be launched."""
        floor_ms = min(self.floor_ms, alone_ms)
        return floor_ms + (alone_ms - floor_ms) * utterances / BATCH + self.exchange_ms(gpus)

    def print(self, steps_ms: list[float], source: str) -> None:
        shares = [self.tflop / ms * 1000 / PEAK_TFLOP_PER_S for ms in steps_ms]
        print(f"""
{self.parameters:,} parameters in {self.tensors} tensors: {self.megabytes:.1f} MB are exchanged a step.
{BATCH} x {FRAMES} frames are {self.tflop:.2f} TFLOP of products and {self.operations} operations, and take {spread(steps_ms, ".1f")} ms on one GPU
({source}), {spread(shares, ".0%")} of {PEAK_TFLOP_PER_S} TFLOP/s. Assumed: {self.in_node_gb_per_s:g} GB/s in a node of {NODE_GPUS} and {self.between_gb_per_s:g} between nodes,
{LATENCY_US} us an exchange, {LAUNCH_US} us a kernel (no step takes less than {self.floor_ms:.1f} ms).
""")
        print_header("scaling", "GPUs", "batch", "sent a GPU (MB)", "exchange (ms)", "step (ms)", "efficiency (%)")
        weak = [("weak", gpus, BATCH, BATCH) for gpus in GPUS]
        for_each = {gpus: math.ceil(BATCH / gpus) for gpus in GPUS}  # a batch must divide among the ranks
        strong = [("strong", gpus, utterances, gpus * utterances) for gpus, utterances in for_each.items()]
        for scaling, gpus, utterances, on_one in weak + strong:
            steps = [self.step_ms(gpus, utterances, ms) for ms in steps_ms]
            alone = [self.step_ms(1, on_one, ms) * utterances / on_one for ms in steps_ms]
            efficiencies = [100 * one / step for one, step in zip(alone, steps, strict=True)]
            cells = [scaling, f"{gpus}", f"{gpus * utterances:,}", f"{self.sent_mb(gpus):.1f}"]
            cells += [f"{self.exchange_ms(gpus):.2f}", spread(steps, ".1f"), spread(efficiencies, ".0f")]
            print_row(*cells)
        audio_s = NODE_GPUS * BATCH * FRAMES * FRAME_S
        heard = [1000 * audio_s / self.step_ms(NODE_GPUS, BATCH, ms) for ms in steps_ms]
        minutes = spread([XL_S / 60 / per_s for per_s in heard], ".1f")
        print(f"\nA node of {NODE_GPUS} GPUs, scaled weakly, hears {spread(heard, ',.0f')} audio seconds a second,")
        print(f"and all of GigaSpeech XL in {minutes} minutes.\n")
        print_header("storage", "cores a node", "read a node (MB/s)", "GigaSpeech XL (GB)")
        for storage, (of_core, kilobytes) in STORAGES.items():
            cores = spread([math.ceil(per_s / of_core) for per_s in heard], "d")
            read = spread([per_s * kilobytes / 1000 for per_s in heard], ",.0f")
            print_row(storage, cores, read, f"{XL_S * kilobytes / 1e6:,.0f}")


def print_header(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))


def print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def spread(values: list[Any], form: str) -> str:
    """Both ends, or the one value."""
    return " to ".join(dict.fromkeys(format(value, form) for value in values))


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
    Derivation(cases[-1], arguments.links).print(steps_ms, source)


if __name__ == "__main__":
    main()
