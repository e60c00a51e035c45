"""Compute settings of this process: device, precision, determinism, memory."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from speech_exp import ranks

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the network's forward pass uses the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def choose_device(device: Device) -> torch.device:
    """Return the device for `trainer.device`; `auto` uses a GPU if there is one, and a separate one for each process."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("trainer.device=cuda, but torch finds no GPU here: set trainer.device=cpu or auto")
    if device == "cpu" or ranks.world_size() == 1:
        return torch.device("cuda" if available and device != "cpu" else "cpu")
    local_rank, processes = ranks.local_rank_and_size()
    gpus = torch.cuda.device_count()
    # SLURM may show each task only its own GPU, which is then number 0.
    chosen = torch.device("cuda", local_rank if local_rank < gpus else 0) if available else torch.device("cpu")
    chosen_gpus = ranks.all_gather(_gpu_identity(chosen))
    if any(chosen_gpus) and len(set(chosen_gpus) - {""}) < ranks.world_size():
        raise ValueError(
            f"{processes} processes were started on a machine with {gpus} GPUs: start one for each GPU, or set trainer.device=cpu"
        )
    return chosen


def _gpu_identity(device: torch.device) -> str:
    """Return a name that no other GPU of any machine has; empty for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def set_up(device: Device, precision: Precision, deterministic: bool) -> Runtime:
    """Configure torch for this process.

    With `deterministic`, kernels give bit-identical results on every run. Without it, cuDNN benchmarks its kernels to find the
    fastest, and float32 products may use TF32.
    """
    chosen = choose_device(device)
    if chosen.index is not None:
        torch.cuda.set_device(chosen)
    if precision == "fp16" and chosen.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU, the device is cpu: set trainer.precision=bf16 or fp32")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it before its first product
    # use_deterministic_algorithms does the same, but imports torch's compiler, which takes a second.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # No kernel here reads memory before writing it; filling it with NaN first would add a quarter to the time of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    _keep_freed_memory()
    return Runtime(chosen, precision)


def compiled(network: nn.Module) -> nn.Module:
    """Compile `network` into a few graphs for all batch sizes and lengths (torch.compile), at its first batch."""
    import torch._dynamo  # takes a second

    # Constants such as a dropout rate never change here; as graph inputs they would cause each graph to be compiled twice.
    torch._dynamo.config.specialize_float = True
    return torch.compile(network, dynamic=True)  # type: ignore[return-value]


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _keep_freed_memory() -> None:
    """Let glibc keep the blocks of some megabytes that every training step frees and allocates again.

    By default it returns them to the system, and each step causes thousands of page faults (`benchmarks/training.py` measures
    it). Other C libraries keep such blocks anyway.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
