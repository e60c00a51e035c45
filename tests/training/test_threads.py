"""The number of CPU threads: from the size of the model, the idle cores, and what an earlier process recorded."""

import json
import os

import psutil
import pytest
import torch

from speech_exp.training import threads
from speech_exp.training.resuming import plan

SMALL, LARGE = 34_314, 3_761_321  # parameters of the compact GRU, and of encoder=asr


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine with 8 cores, `busy` of them in use; restores torch's settings afterwards."""
    before = torch.get_num_threads()

    def make(busy: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: [97.0] * busy + [2.0] * (8 - busy))
        monkeypatch.setattr(threads, "_DEFAULT_THREADS", 6)
        threads._idle_cores.cache_clear()

    yield make
    torch.set_num_threads(before)
    threads._idle_cores.cache_clear()


@pytest.mark.parametrize(
    ("setting", "parameters", "busy", "recorded", "expected"),
    [
        ("auto", SMALL, 0, None, 1),
        ("auto", LARGE, 0, None, 6),  # no more than torch's default
        ("auto", LARGE, 5, None, 3),
        ("auto", LARGE, 8, None, 1),
        ("auto", LARGE, 8, 4, 4),
        ("auto", SMALL, 0, 2, 2),
        (3, SMALL, 8, 2, 3),
    ],
)
def test_the_number_of_threads(machine, setting, parameters, busy, recorded, expected):
    machine(busy)
    threads.use_threads(setting, parameters, recorded)
    assert torch.get_num_threads() == expected


def test_processes_of_one_machine_divide_its_idle_cores(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    threads.use_threads("auto", LARGE)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("busy", "idle"), [(5, True), (6, False)])
def test_a_machine_without_idle_cores_is_noticed(machine, busy, idle):
    machine(busy)
    assert threads.cores_are_idle(3) is idle


@pytest.mark.parametrize("sessions", [[{"threads": 1}, {"threads": 2}], [], [{}], None])
def test_a_run_resumes_with_the_threads_that_its_record_names(tmp_path, sessions):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_epoch_1.pt").touch()
    (tmp_path / "run.json").write_text(json.dumps({"config_hash": "a", "sessions": sessions}))
    expected = 2 if sessions and len(sessions) == 2 else None
    assert plan(tmp_path, None, "a").threads == expected
    assert plan(tmp_path / "new", str(tmp_path), "a").threads == expected
