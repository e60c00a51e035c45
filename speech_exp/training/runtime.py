"""How this process computes: device, precision, determinism, memory."""

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
        """Context in which the network's forward pass runs in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def choose_device(device: Device) -> torch.device:
    """The device of `trainer.device`; `auto` takes a GPU where there is one, and each of several processes its own."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device=cuda, but torch finds no GPU here: set trainer.device=cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or ranks.count() == 1:
        return torch.device(device)
    number, processes = ranks.on_this_node()
    if processes > (gpus := torch.cuda.device_count()):
        raise ValueError(
            f"{processes} processes were started on a machine with {gpus} GPUs: start one for each GPU, or set trainer.device=cpu"
        )
    return torch.device("cuda", number)


def set_up(device: Device, precision: Precision, deterministic: bool) -> Runtime:
    """Configure torch for this process.

    `deterministic` asks for kernels that give the same bits on every run; without it cuDNN picks its fastest kernels by
    trial and float32 products may use TF32.
    """
    chosen = choose_device(device)
    if precision == "fp16" and chosen.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU, the device is cpu: set trainer.precision=bf16 or fp32")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS before its first product
    # The other function of this purpose, use_deterministic_algorithms, imports torch's compiler, which takes a second.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # No kernel here reads memory before it is written; filling all of it with NaN first would cost a quarter of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    _keep_freed_memory()
    return Runtime(chosen, precision)


def compiled(network: nn.Module) -> nn.Module:
    """`network` as few graphs for batches of all sizes and lengths (torch.compile), made when it first sees a batch."""
    import torch._dynamo  # takes a second

    # Numbers such as a dropout's share never change here; taken as inputs they would have each graph compiled twice.
    torch._dynamo.config.specialize_float = True
    return torch.compile(network, dynamic=True)  # type: ignore[return-value]


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _keep_freed_memory() -> None:
    """Let glibc keep the blocks of some megabytes that every training step frees and asks for again.

    By default it returns them to the system and each step pays for thousands of page faults (EXPERIMENTS in
    `benchmarks/training.py`). Other C libraries keep theirs.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
