"""History columns about the device. A stub with torch.cuda's functions replaces the GPU."""

import gc
import math
import subprocess
import sys
import threading
import time

import pytest
import torch

from speech_exp.training import monitor
from speech_exp.training.monitor import DeviceMonitor

GPU = torch.device("cuda", 0)


class FakeGpu:
    """A stand-in for torch.cuda's peak memory, and for a driver that gives these answers in turn and then repeats the last."""

    def __init__(self, patch: pytest.MonkeyPatch, answers: list[int | Exception]) -> None:
        self.peak_bytes, self.asked, self.answers = 0, 0, answers
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak_bytes)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        patch.setattr(torch.cuda, "utilization", self.utilization)
        patch.setattr(monitor, "SAMPLE_S", 0.001)

    def reset(self, device: torch.device) -> None:
        self.peak_bytes = 0

    def utilization(self, device: torch.device) -> int:
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait_for(self, asked: int) -> None:
        """Wait for one query more than `asked`: an answer is stored before the next query."""
        deadline = time.monotonic() + 10
        while self.asked <= asked and time.monotonic() < deadline:
            time.sleep(0.001)


def test_the_peak_of_a_gpu_is_that_since_the_last_call(monkeypatch):
    gpu = FakeGpu(monkeypatch, [50])
    gpu.peak_bytes = 9_000_000_000  # from before the monitor was built
    watched = DeviceMonitor(GPU)
    gpu.peak_bytes = 2_500_000_000
    assert watched.epoch_values()["gpu_memory_gb"] == 2.5
    gpu.peak_bytes = 1_000_000_000
    assert watched.epoch_values()["gpu_memory_gb"] == 1.0
    watched.close()


def test_utilisation_is_the_mean_of_the_samples_since_the_last_call(monkeypatch):
    """The first query only finds out whether the driver answers, so its value does not count."""
    gpu = FakeGpu(monkeypatch, [0, 20, 40, 60, 90])
    watched = DeviceMonitor(GPU)
    gpu.wait_for(4)
    first = watched.epoch_values()["gpu_utilisation"]
    assert 40 <= first < 90  # the mean of 20, 40, 60 and however many answers of 90 came until then
    gpu.wait_for(gpu.asked + 2)
    watched.epoch_values()
    gpu.wait_for(gpu.asked + 2)
    assert watched.epoch_values()["gpu_utilisation"] == 90
    watched.close()


@pytest.mark.parametrize("error", [ModuleNotFoundError("nvidia-ml-py"), RuntimeError("no driver")])
def test_without_a_driver_the_column_is_left_out(monkeypatch, error):
    gpu = FakeGpu(monkeypatch, [error])
    threads = threading.active_count()
    assert DeviceMonitor(GPU).epoch_values() == {"gpu_memory_gb": 0.0}
    assert threading.active_count() == threads
    assert gpu.asked == 1


def test_a_driver_that_falls_silent_leaves_the_cell_empty(monkeypatch):
    gpu = FakeGpu(monkeypatch, [30, RuntimeError("GPU is lost")])
    watched = DeviceMonitor(GPU)
    gpu.wait_for(3)
    assert math.isnan(watched.epoch_values()["gpu_utilisation"])
    watched.close()


@pytest.mark.parametrize("closed", [True, False])
def test_the_thread_ends_with_the_monitor(monkeypatch, closed):
    FakeGpu(monkeypatch, [50])
    before = set(threading.enumerate())
    watched = DeviceMonitor(GPU)
    (thread,) = set(threading.enumerate()) - before
    if closed:
        watched.close()
    del watched
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_the_memory_of_a_cpu_is_the_peak_of_the_process():
    watched = DeviceMonitor(torch.device("cpu"))
    before_gb = watched.epoch_values()["memory_gb"]
    filled = torch.ones(75_000_000)  # 0.3 GB
    grown_gb = watched.epoch_values()["memory_gb"]
    del filled
    assert watched.epoch_values()["memory_gb"] >= grown_gb
    assert 0.05 < before_gb <= grown_gb < 50


def test_a_step_that_stalls_is_reported_with_what_it_was_doing():
    """Uses a separate process, whose standard error is read."""
    script = """
import time
from speech_exp.training.monitor import Watchdog

def stalled_step():
    time.sleep(1.0)

with Watchdog(0.2) as watchdog:
    for _ in range(3):
        watchdog.step()
        time.sleep(0.05)
    print("fast steps are over", file=__import__("sys").stderr, flush=True)
    watchdog.step()
    stalled_step()
time.sleep(0.4)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, _, after = done.stderr.partition("fast steps are over")
    assert "stalled_step" not in before
    assert after.count("in stalled_step") == 1
    assert "Timeout (0:00:00.2" in after


def test_no_step_is_watched_while_the_watchdog_rests():
    """The watchdog is paused in validation, which may take longer than a step."""
    script = """
import sys
import time
from speech_exp.training.monitor import Watchdog

with Watchdog(0.2) as watchdog:
    watchdog.step()
    watchdog.pause()
    time.sleep(0.6)
    print("rest is over", file=sys.stderr, flush=True)
    watchdog.step()
    time.sleep(0.6)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, _, after = done.stderr.partition("rest is over")
    assert before == ""
    assert "Timeout (0:00:00.2" in after
