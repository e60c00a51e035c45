"""Several processes train as one would: the same gradients, weights and metrics, in real processes that talk by gloo."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_worker import CASES

WORKER = Path(__file__).with_name("rank_worker.py")
# Float64 has a rounding error of 1.1e-16. Sums over some thousand terms in another order differ by 1e-13 of their size at
# most; AdamW divides a gradient by its own size, so that 60 steps carry such differences on, and not more than add them.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def start(ranks, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        told["PYTHONPATH"] = os.pathsep.join(map(str, (WORKER.parents[2], WORKER.parents[1])))
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        command = [sys.executable, str(WORKER), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def finish(processes, statuses=(0,)):
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert {process.returncode for process in processes} <= set(statuses), printed
    return printed


def found(folder, case):
    return torch.load(folder / case / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where one, two and three ranks saved what they found."""
    of_ranks = {}
    for ranks in (1, 2, 3):
        of_ranks[ranks] = tmp_path_factory.mktemp("ranks")
        finish(start(ranks, ",".join(CASES), of_ranks[ranks]))
    return of_ranks


@pytest.mark.parametrize("case", [case for case in CASES if case != "noise"])
def test_one_two_and_three_ranks_are_equal(folders, case):
    """Of 70 utterances in batches of 12, so that the last batch is shared unevenly."""
    one, two, three = (found(folder, case) for folder in folders.values())
    for other in (two, three):
        assert other["before"] == one["before"]  # no sum is formed in another order
        assert other["ids"] == one["ids"]
        assert len(set(other["ids"])) == len(other["ids"]) == 30
        for part in ("gradients", "weights"):
            assert other[part].keys() == one[part].keys()
            for name, expected in one[part].items():
                torch.testing.assert_close(
                    other[part][name], expected, **CLOSE, msg=lambda text, at=name: f"{at}: {text}"
                )
        for row, expected in zip(other["history"], one["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-9)


def test_ranks_drop_out_and_vary_other_things(folders):
    one, two = found(folders[1], "noise"), found(folders[2], "noise")
    assert one["before"] == two["before"]
    assert one["history"][0]["train_loss"] != pytest.approx(two["history"][0]["train_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_all_and_they_go_on_bit_for_bit(folders, tmp_path):
    whole = found(folders[2], "noise")
    broken = tmp_path / "broken"
    processes = start(2, "noise", broken, 9)
    finish(processes, statuses=(128 + signal.SIGUSR2, 1))
    assert processes[0].returncode == 128 + signal.SIGUSR2
    (state,) = (broken / "noise" / "states").iterdir()
    assert "_batch_" in state.name
    shutil.copytree(broken, tmp_path / "more")
    finish(start(2, "noise", broken))
    again = found(broken, "noise")
    assert again["history"] == whole["history"]
    for name, value in whole["weights"].items():
        assert torch.equal(again["weights"][name], value)

    # More ranks go on, too; what they drop out is not the same then.
    finish(start(3, "noise", tmp_path / "more"))
    of_more = found(tmp_path / "more", "noise")["history"]
    assert [row["lr"] for row in of_more] == [row["lr"] for row in whole["history"]]
    assert of_more[-1]["train_loss"] != whole["history"][-1]["train_loss"]


def test_an_error_of_one_rank_is_the_only_one_and_ends_all_soon():
    """The others wait for the failing rank in an exchange, or do something long of their own."""
    began_s = time.monotonic()
    printed = finish(start(3, "fail"), statuses=(1,))
    assert time.monotonic() - began_s < 60
    assert "ValueError: the disk of rank 1 is full" in printed[1]
    assert "Traceback" not in printed[0] + printed[2]
    for rank in (0, 2):
        assert (
            printed[rank].splitlines()[-1] == f"rank {rank} hears: rank 1: ValueError: the disk of rank 1 is full, True"
        )


def test_a_stalled_step_is_reported_with_the_stack_of_each_rank():
    printed = finish(start(2, "stall"))
    for rank, doing in enumerate(("in all_gather_object", "in stall")):
        report, _, rest = printed[rank].partition(f"rank {rank} (process ")
        assert "Timeout (0:00:00.5" in report + rest
        assert doing in report + rest
        assert "stalls, as shown above" in rest


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 300])
def test_a_rank_that_is_killed_ends_the_others_even_where_it_held_what_they_share(seconds):
    """Rank 0 keeps the store by which they tell each other of errors; the other one waits for it, or does not yet."""
    processes = start(2, "stall", seconds)
    assert processes[1].stdout.readline() == "all have met\n"
    processes[0].kill()
    _, printed = finish(processes, statuses=(-signal.SIGKILL, 1))
    assert printed.count("another process that trains with this one is gone") == 1
