"""Derive scaling on GPUs that are not available, for `benchmarks/scaling.py`: efficiency at 1 to 64 GPUs, data per node."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

BATCH, FRAMES, FRAME_S = 96, 400, 0.01  # of the reference encoder on one GPU
GPUS, NODE_GPUS = (1, 4, 8, 64), 8
# Milliseconds of such a step on one H100 (bf16, compiled), estimated at 80 to 150 steps per second because no GPU was
# available. The resulting share of the peak is printed; narrow layers cannot reach a large share.
ESTIMATED_MS = (1000 / 80, 1000 / 150)
PEAK_TFLOP_PER_S = 989  # H100 SXM, bf16 without sparsity (NVIDIA's data sheet)
# Bandwidth of an all-reduce of the encoder's 15 MB. NVLink 4 has 450 GB/s per direction, of which NCCL reaches 370 with
# messages ten times as large (NVIDIA/nccl-tests issue 212); we assume 240. One 400 Gbit/s InfiniBand card has 50 GB/s, of
# which NCCL reaches 40 with 16 MB (issue 232); we assume one ring over one card per node, although NCCL may use eight.
LINKS_GB_PER_S = (240.0, 40.0)
# Latency of a small all-reduce between two nodes: 46 to 75 us (NVIDIA/nccl issues 1244 and 1453); less within a node.
LATENCY_US = 60
LAUNCH_US = 5  # time to launch one kernel, in Python, torch and CUDA: our assumption
# Audio seconds per second per core, and kB per second of audio, measured by benchmarks/pipeline.py.
STORAGES = {"audio": (556, 3.8), "shar": (4050, 19.2), "features": (32847, 16.0)}
XL_S = 10_000 * 3600


class Operations(TorchDispatchMode):
    """Counts the operations that torch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


class Derivation:
    """Step and exchange times of the reference encoder, if a step with BATCH utterances takes `alone_ms` on one GPU."""

    def __init__(self, network: nn.Module, loss: Callable[[], torch.Tensor], links_gb_per_s: list[float]) -> None:
        """Count operations on the CPU; `loss` computes the loss of one utterance of FRAMES frames in float32."""
        self.in_node_gb_per_s, self.between_gb_per_s = links_gb_per_s
        with FlopCounterMode(display=False) as flop, Operations() as operations:
            loss().backward()
        self.operations = operations.count
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.tflop = BATCH * flop.get_total_flops() / 1e12
        self.megabytes = 4 * self.parameters / 1e6  # gradients are float32
        self.floor_ms = self.operations * LAUNCH_US / 1000

    def sent_mb(self, gpus: int) -> float:
        """Return the MB that each GPU of a ring sends."""
        return 2 * (gpus - 1) / gpus * self.megabytes

    def exchange_ms(self, gpus: int) -> float:
        """Return the ms to exchange the counts, and the gradients, which are copied into one buffer and back."""
        if gpus == 1:
            return 0.0
        gb_per_s = self.in_node_gb_per_s if gpus <= NODE_GPUS else self.between_gb_per_s
        return self.sent_mb(gpus) / gb_per_s + (2 * LATENCY_US + 2 * LAUNCH_US) / 1000

    def step_ms(self, gpus: int, utterances: int, alone_ms: float) -> float:
        """Return the ms of a step with `utterances` per GPU; launching the kernels takes time however few these are."""
        floor_ms = min(self.floor_ms, alone_ms)
        return floor_ms + (alone_ms - floor_ms) * utterances / BATCH + self.exchange_ms(gpus)

    def print(self, steps_ms: list[float], source: str) -> None:
        shares = [self.tflop / ms * 1000 / PEAK_TFLOP_PER_S for ms in steps_ms]
        print(f"""
{self.parameters:,} parameters: {self.megabytes:.1f} MB are exchanged per step.
{BATCH} x {FRAMES} frames are {self.tflop:.2f} TFLOP of products and {self.operations} operations, and take {spread(steps_ms, ".1f")} ms on one GPU
({source}), {spread(shares, ".0%")} of {PEAK_TFLOP_PER_S} TFLOP/s. Assumed: {self.in_node_gb_per_s:g} GB/s within a node of {NODE_GPUS} and {self.between_gb_per_s:g} between nodes,
{LATENCY_US} us an exchange, {LAUNCH_US} us a kernel (no step takes less than {self.floor_ms:.1f} ms).
""")
        print_header("scaling", "GPUs", "batch", "sent per GPU (MB)", "exchange (ms)", "step (ms)", "efficiency (%)")
        weak = [("weak", gpus, BATCH, BATCH) for gpus in GPUS]
        for_each = {gpus: math.ceil(BATCH / gpus) for gpus in GPUS}  # a batch must divide evenly among the ranks
        strong = [("strong", gpus, utterances, gpus * utterances) for gpus, utterances in for_each.items()]
        for scaling, gpus, utterances, on_one in weak + strong:
            steps = [self.step_ms(gpus, utterances, ms) for ms in steps_ms]
            alone = [self.step_ms(1, on_one, ms) * utterances / on_one for ms in steps_ms]
            efficiencies = [100 * one / step for one, step in zip(alone, steps, strict=True)]
            cells = [scaling, f"{gpus}", f"{gpus * utterances:,}", f"{self.sent_mb(gpus):.1f}"]
            cells += [f"{self.exchange_ms(gpus):.2f}", spread(steps, ".1f"), spread(efficiencies, ".0f")]
            print_row(*cells)
        audio_s = NODE_GPUS * BATCH * FRAMES * FRAME_S
        audio_s_per_s = [1000 * audio_s / self.step_ms(NODE_GPUS, BATCH, ms) for ms in steps_ms]
        minutes = spread([XL_S / 60 / per_s for per_s in audio_s_per_s], ".1f")
        print(
            f"\nA node of {NODE_GPUS} GPUs, with weak scaling, processes {spread(audio_s_per_s, ',.0f')} seconds of audio per second,"
        )
        print(f"and all of GigaSpeech XL in {minutes} minutes.\n")
        print_header("storage", "cores per node", "read per node (MB/s)", "GigaSpeech XL (GB)")
        for storage, (of_core, kilobytes) in STORAGES.items():
            cores = spread([math.ceil(per_s / of_core) for per_s in audio_s_per_s], "d")
            read = spread([per_s * kilobytes / 1000 for per_s in audio_s_per_s], ",.0f")
            print_row(storage, cores, read, f"{XL_S * kilobytes / 1e6:,.0f}")


def print_header(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))


def print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def spread(values: list[Any], form: str) -> str:
    """Format the lowest and highest value, or the only one."""
    return " to ".join(dict.fromkeys(format(value, form) for value in values))
