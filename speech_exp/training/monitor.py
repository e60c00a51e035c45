"""Monitor training: peak memory, GPU utilisation, and steps that stall."""

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
    """Memory and utilisation of `device`, as columns of the history.

    A thread samples a GPU once a second; it ends with `close` or with this object. If the driver cannot be queried
    (`nvidia-ml-py`, the extra "gpu", is missing), the column `gpu_utilisation` is left out.
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
        """Return the values since the last call.

        On a GPU: `gpu_memory_gb`, the peak of the memory that torch allocated (GB = 1e9 bytes), and `gpu_utilisation`, the mean
        percentage of time in which any kernel ran (NaN if less than a second has passed). On a CPU: `memory_gb`, the peak
        resident set of the process, counted from the start of the process.
        """
        if self.device.type != "cuda":
            return _resident_peak()
        values = {"gpu_memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}
        torch.cuda.reset_peak_memory_stats(self.device)
        if self._samples_taken:
            samples = self._samples[:]
            del self._samples[: len(samples)]  # the thread may have appended in the meantime
            values["gpu_utilisation"] = sum(samples) / len(samples) if samples else math.nan
        return values

    def close(self) -> None:
        self._closed.set()


def _sample(device: torch.device, samples: list[float], closed: threading.Event) -> None:
    """Append samples until `closed` is set; without a reference to the monitor, so that it can be garbage collected."""
    while not closed.wait(SAMPLE_S):
        if (percent := _gpu_utilisation(device)) is not None:
            samples.append(percent)


def _gpu_utilisation(device: torch.device) -> float | None:
    """Return percent, or None if the driver cannot be queried."""
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # no nvidia-ml-py, no driver library, or a part of a GPU (MIG); these errors share no closer base
        return None


def _resident_peak() -> dict[str, float]:
    """Return the peak memory of this process; empty on Windows, where Python has no counter for it."""
    if sys.platform == "win32":
        return {}
    import resource

    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9}


class Watchdog:
    """Reports a stalled step by printing the stacks of all threads to standard error, once per step.

    When several ranks train together, all of them report, because all wait for the one that stalls; each prints its rank.

    Args:
        limit_s: time between two steps that counts as a stall; None never reports.
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self._due_s = math.inf
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.limit_s is not None and ranks.world_size() > 1:
            threading.Thread(target=self._report_rank, args=(self.limit_s / 10,), daemon=True).start()
        return self

    def step(self) -> None:
        """Start the clock for a new step."""
        if self.limit_s is not None:
            self._due_s = time.monotonic() + self.limit_s
            faulthandler.dump_traceback_later(self.limit_s, file=_STANDARD_ERROR)

    def pause(self) -> None:
        """Stop the clock while no step is in progress, for example during validation."""
        self._due_s = math.inf
        faulthandler.cancel_dump_traceback_later()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.pause()

    def _report_rank(self, every_s: float) -> None:
        """Print the rank of a stalled process; faulthandler works even if Python is stuck, but cannot print the rank."""
        while not self._over.wait(every_s):
            if time.monotonic() > self._due_s:
                self._due_s = math.inf
                where = f"process {os.getpid()} on {socket.gethostname()}"
                print(f"rank {ranks.rank()} ({where}) stalled, as shown above", file=sys.stderr, flush=True)
