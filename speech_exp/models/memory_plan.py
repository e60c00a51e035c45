"""Finds the cheapest way to compute a linear memory, by counting operations.

The count is the multiply-accumulates of a training step: two products for the memory alone (forward and gradient of the
signal), three if they include a weight (gradient of the weight). The cost of an FFT was measured on 2 CPU threads (EPYC,
about 39 GMAC/s in float32); benchmarks/lmu.py compares the choice with every algorithm.

FFTs are limited by memory bandwidth and products by arithmetic. A GPU should have about the same ratio of the two in
float32, and one more favourable to products in bf16, so the same rule is used there with a higher cost per launch. This
was not measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

CHUNK_LENGTHS = (16, 64)  # frames; short chunks need less arithmetic, long chunks need fewer steps
WINDOW_BLOCK = 64  # frames that share one window length; short blocks skip more zeros, long blocks need fewer products

# Multiply-accumulates per value of the memory (10 ns). It grows only with log T, so one constant fits 200 to 1600 frames.
FFT_COST = 780.0
# Cost of one more small operation, forward and backward: estimated at about 8 us, not measured.
LAUNCH_COST = {"cpu": 3e5, "cuda": 2e8}


@dataclass(frozen=True)
class Plan:
    """One way to compute the memory; `folded`: the projection is multiplied into the constant table in advance."""

    route: Literal["sequential", "fft", "window", "chunks"]
    folded: bool = False
    chunk_frames: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Workload:
    """The sizes of one call; `taps` is the relevant length of the impulse response, `hidden` 0 means no projection."""

    batch: int
    frames: int
    channels: int
    order: int
    taps: int
    hidden: int
    device: str


def window_plans(work: Workload) -> list[Plan]:
    """Return plans that multiply each frame's window of the signal by the impulse response; good for few frames or taps."""
    signals = work.batch * work.frames * work.channels
    # A window extends back to the first frame or over all taps; the frames of a block share the longest window.
    taps = work.taps * (1 - work.taps / (2 * work.frames)) + min(WINDOW_BLOCK, work.taps) / 2
    launches = (8 + 4 * math.ceil(work.taps / WINDOW_BLOCK)) * _launch(work)
    plans = [Plan("window", False, 0, 2 * signals * taps * work.order + _projection(work) + launches)]
    if work.hidden:
        fold = 2 * work.taps * work.channels * work.order * work.hidden
        plans.append(Plan("window", True, 0, 3 * signals * taps * work.hidden + fold + launches))
    return plans


def chunk_plans(work: Workload, chunk_frames: int) -> list[Plan]:
    """Return plans that multiply [inputs of a chunk, state before it] by one table; linear in the number of frames."""
    chunks = math.ceil(work.frames / chunk_frames)
    signals = work.batch * chunks * chunk_frames * work.channels
    rows = chunk_frames + work.order
    if work.device == "cpu":  # the states before the chunks are computed one after the other
        others = (20 + 3 * chunks) * _launch(work)
    else:  # they are computed in one product with the impulse response
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
def cheapest(work: Workload, algorithm: str) -> Plan:
    """Return the cheapest plan that `algorithm` allows."""
    if algorithm == "sequential":
        return Plan("sequential")
    plans = []
    if algorithm in ("auto", "fft"):
        plans.append(fft_plan(work))
    if algorithm in ("auto", "chunked"):
        plans += [plan for chunk_frames in CHUNK_LENGTHS for plan in chunk_plans(work, chunk_frames)]
        plans += window_plans(work)
    return min(plans, key=lambda plan: plan.cost)


def _projection(work: Workload) -> float:
    return 3.0 * work.batch * work.frames * work.channels * work.order * work.hidden


def _launch(work: Workload) -> float:
    return LAUNCH_COST.get(work.device, LAUNCH_COST["cuda"])
