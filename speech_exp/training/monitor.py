"""What training takes of the device, and whether it goes on: peak memory, how busy a GPU is, steps that stall."""

from __future__ import annotations

import faulthandler
import math
import os
import socket
import sys
import threading
import time
import weakref

import torch

from speech_exp import ranks

_STANDARD_ERROR = 2  # its file descriptor
SAMPLE_S = 1.0  # the driver itself averages over up to a second


class DeviceMonitor:
    """Memory and use of `device`, as columns of the history.

    A GPU is asked once a second, by a thread of its own, which ends with `close` or with this object. Where the driver
    cannot be asked (`nvidia-ml-py`, the extra "gpu", is missing), the column `gpu_utilisation` is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._samples: list[float] = []
        self._samples_taken = False
        self._closed = threading.Event()
        if device.type != "cuda":
            return
        torch.cuda.reset_peak_memory_stats(device)
        if _gpu_utilisation(device) is not None:
            self._samples_taken = True
            sampler = threading.Thread(target=_sample, args=(device, self._samples, self._closed), daemon=True)
            sampler.start()
            weakref.finalize(self, self._closed.set)

    def epoch_values(self) -> dict[str, float]:
        """Since the last call: on a GPU `gpu_memory_gb`, the peak of what torch held (GB = 1e9 bytes), and
        `gpu_utilisation`, the mean share of time in percent in which any kernel ran (NaN in less than a second); on a CPU `memory_gb`, the peak of
        the process's resident set, which only the start of the process resets.
        """
        if self.device.type != "cuda":
            return _resident_peak()
        values = {"gpu_memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
        torch.cuda.reset_peak_memory_stats(self.device)
        if self._samples_taken:
            samples = self._samples[:]
            del self._samples[: len(samples)]  # the thread may have appended meanwhile
            values["gpu_utilisation"] = sum(samples) / len(samples) if samples else math.nan
        return values

    def close(self) -> None:
        self._closed.set()


def _sample(device: torch.device, samples: list[float], closed: threading.Event) -> None:
    """Holds no reference to the monitor, so that the monitor's end can end it."""
    while not closed.wait(SAMPLE_S):
        if (percent := _gpu_utilisation(device)) is not None:
            samples.append(percent)


def _gpu_utilisation(device: torch.device) -> float | None:
    """Percent, or None where the driver cannot be asked."""
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # no nvidia-ml-py, no driver library, a part of a GPU (MIG): its errors share no nearer base
        return None


def _resident_peak() -> dict[str, float]:
    """Nothing on Windows, which does not count it in Python."""
    if sys.platform == "win32":
        return {}
    import resource

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9}


class Watchdog:
    """Reports a step that stalls: what each thread of this process was doing goes to standard error, once a step.

    Where several processes train together, each reports, for all wait for the one that stalls, and says which it is.

    Args:
        limit_s: time between two steps that is too long; None never reports.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._due_s = math.inf
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.limit_s is not None and ranks.count() > 1:
            threading.Thread(target=self._introduce, args=(self.limit_s / 10,), daemon=True).start()
        return self

    def step(self) -> None:
        """A step begins, so the one before is over."""
        if self.limit_s is not None:
            self._due_s = time.monotonic() + self.limit_s
            faulthandler.dump_traceback_later(self.limit_s, file=_STANDARD_ERROR)

    def rest(self) -> None:
        """No step is in progress: validation may take its time."""
        self._due_s = math.inf
        faulthandler.cancel_dump_traceback_later()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.rest()

    def _introduce(self, every_s: float) -> None:
        """Name the rank of a report; not faulthandler, which works where Python itself is stuck, but cannot say that."""
        while not self._over.wait(every_s):
            if time.monotonic() > self._due_s:
                self._due_s = math.inf
                where = f"process {os.getpid()} on {socket.gethostname()}"
                print(f"rank {ranks.number()} ({where}) stalls, as shown above", file=sys.stderr, flush=True)
