"""Several ranks train like one: the same gradients, weights and metrics, in real processes over gloo."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from rank_worker import CASES, main

from speech_exp import ranks

TRAINING, ENDS = (Path(__file__).with_name(name) for name in ("rank_worker.py", "rank_ends.py"))
# Float64 has a rounding error of 1.1e-16. Sums over some thousand terms in another order differ by 1e-13 of their size at
# most, and 60 steps of AdamW add such differences. The gradient of attention's bias is 0 but for rounding errors, which
# AdamW enlarges to 1e-10.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def start(world_size, script, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        variables = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, (script.parents[2], script.parents[1])))
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        command = [sys.executable, str(script), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def finish(processes, statuses=(0,)):
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert {process.returncode for process in processes} <= set(statuses), printed
    return printed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a function that gives the results of a case; it trains at the first call, a single rank in this process."""

    @cache
    def folder_of(world_size):
        folder = tmp_path_factory.mktemp("ranks")
        if world_size == 1:
            for case in CASES:
                main(case, folder / case)
        else:
            finish(start(world_size, TRAINING, ",".join(CASES), folder))
        return folder

    return lambda world_size, case: read(folder_of(world_size), case)


def read(folder, case):
    return torch.load(folder / case / "found.pt", weights_only=True)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("noise", "drifting")])
def test_more_ranks_equal_one(results, world_size, case):
    """There are 70 utterances in batches of 12, so the last batch is shared unevenly."""
    one, other = results(1, case), results(world_size, case)
    assert other["before"] == one["before"]  # no sum has a different order
    assert other["ids"] == one["ids"]
    assert len(set(other["ids"])) == len(other["ids"]) == 30
    for part in ("gradients", "weights"):
        assert other[part].keys() == one[part].keys()
        for name, expected in one[part].items():
            torch.testing.assert_close(other[part][name], expected, **CLOSE, msg=lambda text, at=name: f"{at}: {text}")
    for row, expected in zip(other["history"], one["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-9)


def test_each_epoch_begins_with_the_weights_of_rank_0(results):
    """Otherwise the weights of the ranks would drift apart from epoch to epoch."""
    for name, expected in results(2, "gru")["weights"].items():
        assert torch.equal(results(2, "drifting")["weights"][name], expected), name


def test_ranks_drop_out_and_vary_other_things(results):
    one, two = results(1, "noise"), results(2, "noise")
    assert one["before"] == two["before"]
    assert one["history"][0]["train_loss"] != pytest.approx(two["history"][0]["train_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_all_and_they_resume_bit_for_bit(results, tmp_path):
    """Uses three ranks, because the sum of two gradients does not depend on their order."""
    whole = results(3, "noise")
    broken = tmp_path / "broken"
    processes = start(3, TRAINING, "noise", broken, 9)
    processes[0].wait(timeout=120)
    for process in processes[1:]:
        process.terminate()  # as the launcher does
    finish(processes, statuses=(128 + signal.SIGUSR2, -signal.SIGTERM, 1))
    assert processes[0].returncode == 128 + signal.SIGUSR2
    (state,) = (broken / "noise" / "states").iterdir()
    assert "_batch_" in state.name
    shutil.copytree(broken, tmp_path / "fewer")
    finish(start(3, TRAINING, "noise", broken))
    again = read(broken, "noise")
    assert again["history"] == whole["history"]
    for name, value in whole["weights"].items():
        assert torch.equal(again["weights"][name], value)

    # A different number of ranks can resume too, with different noise.
    finish(start(2, TRAINING, "noise", tmp_path / "fewer"))
    of_fewer = read(tmp_path / "fewer", "noise")["history"]
    assert [row["lr"] for row in of_fewer] == [row["lr"] for row in whole["history"]]
    assert of_fewer[-1]["train_loss"] != whole["history"][-1]["train_loss"]


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_error_of_one_rank_is_shown_once_and_ends_all(world_size):
    """Rank 0 waits for the failing rank in an exchange; rank 2 sleeps for longer than the test waits for torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    environment = {**os.environ, "PYTHONPATH": str(ENDS.parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*torchrun, ENDS, "fail"], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.count("ValueError: the disk of rank 1 is full") == 1
    assert "rank 0 knows: ('rank 1: ValueError: the disk of rank 1 is full', True)" in ended.stdout
    assert re.search(r"Root Cause.*\n.*\n.*\n.*\n  rank      : 1 ", ended.stderr), ended.stderr


def test_only_an_error_of_the_all_reduce_counts_as_the_end_of_another_rank():
    with pytest.raises(ValueError, match=r"another process of this run has ended"), ranks.exchange():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"out of memory"), ranks.exchange():
        raise RuntimeError("out of memory")


def test_a_stalled_step_is_reported_with_the_stack_of_each_rank():
    printed = finish(start(2, ENDS, "stall"))
    for rank, doing in enumerate(("in all_gather_object", "in stall")):
        report, _, rest = printed[rank].partition(f"rank {rank} (process ")
        assert "Timeout (0:00:00.5" in report + rest
        assert doing in report + rest
        assert "stalled, as shown above" in rest


@pytest.mark.slow
def test_the_end_of_rank_0_is_reported_in_one_sentence_although_it_hosts_the_store():
    processes = start(2, ENDS, "stall")
    assert processes[1].stdout.readline() == "all have met\n"
    processes[0].kill()
    _, printed = finish(processes, statuses=(-signal.SIGKILL, 1))
    assert printed.count("another process of this run has ended") == 1
