"""Which way to compute a linear memory costs least, by count of operations.

Counted are the multiply-accumulates of a training step: two products for the memory alone (forward and signal
gradient), three with a weight in them (weight gradient too). The cost of an FFT was measured on 2 CPU threads (EPYC,
about 39 GMAC/s in float32); benchmarks/lmu.py compares the choice with every algorithm. The Fourier transform is bound
by memory traffic and the products by arithmetic; a GPU in float32 should have about the CPU's ratio of the two and in
bf16 a better one for products, so one rule is meant to serve both, with a launch weighing more there. That part is
argued, not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

CHUNK_LENGTHS = (16, 64)  # frames; short chunks need less arithmetic, long ones fewer steps
WINDOW_BLOCK = 64  # frames that share one window length: short blocks skip more zeros, long ones need fewer products

# Multiply-accumulates a value of the memory, 10 ns; it grows with log T only, so it serves 200 to 1600 frames.
FFT_COST = 780.0
# One more small operation, forward and backward: estimates of about 8 us, not measured.
LAUNCH_COST = {"cpu": 3e5, "cuda": 2e8}


@dataclass(frozen=True)
class Plan:
    """One way to compute the memory; `folded`: a projection is multiplied into the constant table beforehand."""

    route: Literal["sequential", "fft", "window", "chunks"]
    folded: bool = False
    chunk_frames: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Workload:
    """Sizes of one call; `taps` of the impulse response matter; `hidden` 0 means that no projection follows."""

    batch: int
    frames: int
    channels: int
    order: int
    taps: int
    hidden: int
    device: str


def window_plans(work: Workload) -> list[Plan]:
    """Each frame's window of the signal times the impulse response: best where frames or taps are few."""
    signals = work.batch * work.frames * work.channels
    # A window reaches back to the first frame or over all taps; a block of frames shares the longest.
    taps = work.taps * (1 - work.taps / (2 * work.frames)) + min(WINDOW_BLOCK, work.taps) / 2
    launches = (8 + 4 * math.ceil(work.taps / WINDOW_BLOCK)) * _launch(work)
    plans = [Plan("window", False, 0, 2 * signals * taps * work.order + _projection(work) + launches)]
    if work.hidden:
        fold = 2 * work.taps * work.channels * work.order * work.hidden
        plans.append(Plan("window", True, 0, 3 * signals * taps * work.hidden + fold + launches))
    return plans


def chunk_plans(work: Workload, chunk_frames: int) -> list[Plan]:
    """[inputs of a chunk, state before it] times one table: linear in the number of frames."""
    chunks = math.ceil(work.frames / chunk_frames)
    signals = work.batch * chunks * chunk_frames * work.channels
    rows = chunk_frames + work.order
    if work.device == "cpu":  # the states before the chunks one after the other
        others = (20 + 3 * chunks) * _launch(work)
    else:  # or in one product with the impulse response
        others = 20 * _launch(work) + 2 * signals / chunk_frames * work.taps * work.order
    plans = [Plan("chunks", False, chunk_frames, 2 * signals * rows * work.order + _projection(work) + others)]
    if work.hidden:
        fold = 2 * rows * chunk_frames * work.channels * work.order * work.hidden
        plans.append(Plan("chunks", True, chunk_frames, 3 * signals * rows * work.hidden + fold + others))
    return plans


def fft_plan(work: Workload) -> Plan:
    values = work.batch * work.frames * work.channels * work.order
    return Plan("fft", False, 0, FFT_COST * values + _projection(work) + 12 * _launch(work))


@lru_cache(maxsize=4096)
def cheapest(work: Workload, algorithm: str, has_state: bool, chunk_lengths: tuple[int, ...] = CHUNK_LENGTHS) -> Plan:
    """The plan of least cost that the algorithm allows; only chunks and FFT go on from a state."""
    if algorithm == "sequential":
        return Plan("sequential")
    plans = []
    if algorithm in ("auto", "fft"):
        plans.append(fft_plan(work))
    if algorithm in ("auto", "chunked"):
        plans += [plan for chunk_frames in chunk_lengths for plan in chunk_plans(work, chunk_frames)]
        plans += [] if has_state else window_plans(work)
    return min(plans, key=lambda plan: plan.cost)


def _projection(work: Workload) -> float:
    return 3.0 * work.batch * work.frames * work.channels * work.order * work.hidden


def _launch(work: Workload) -> float:
    return LAUNCH_COST.get(work.device, LAUNCH_COST["cuda"])
