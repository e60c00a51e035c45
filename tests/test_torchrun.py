"""`torchrun run.py` as a user starts it: one run folder, one log, each error once, and no loss if a process is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_files import epochs_done

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="gloo and signals of another kind")]

RUN = Path(__file__).parents[1] / "run.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
SMALL = ("trainer.device=cpu", "model.hidden_size=16", "trainer.checkpoint_every_s=0.2")
LONG = ("dataset=digits_demo", "trainer.epochs=12", "augment=strong")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture
def start(tmp_path, cache):
    def popen(*typed, ranks=2):
        data = () if any(one.startswith("dataset=") for one in typed) else ("dataset=digits_demo",)
        return subprocess.Popen(
            [*TORCHRUN, f"--nproc_per_node={ranks}", str(RUN), *typed, *SMALL, *data, cache],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            start_new_session=True,  # as in a terminal, which sends Ctrl-C to all its processes
        )

    return popen


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read(path):
    return json.loads(path.read_text())


def found(folder):
    (best,) = (folder / "checkpoints").glob("*_best.pt")
    predictions = (folder / "predictions.csv").read_bytes()
    return read(folder / "results.json")["metrics"], predictions, torch.load(best, weights_only=True)["network"]


def wait_for_epochs(number, run, process):
    deadline = time.monotonic() + 120
    while epochs_done(run) < number:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process):
    printed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in printed.split()]


def test_two_processes_leave_one_folder_and_one_log_as_one_does(start, tmp_path):
    for ranks in (1, 2):
        # Only one state is kept: the earlier ones were saved by the clock.
        status, out, err = finish(start("trainer=debug", "trainer.keep=1", f"hydra.run.dir={ranks}", ranks=ranks))
        assert status == 0, err
        assert out.count("best epoch") == 1
        assert err.count(", epoch 1  val_") == 1
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert read(tmp_path / "2" / "run.json")["processes"] == 2
    one, two = (read(tmp_path / str(ranks) / "results.json")["metrics"]["val"] for ranks in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], rel=0.2)  # augmentation draws different noise
    before = (tmp_path / "2" / "results.json").stat().st_mtime_ns
    status, out, _ = finish(start("trainer=debug", "trainer.keep=1", "hydra.run.dir=2"))
    assert status == 0
    assert "is finished; resume=false runs it again" in out
    assert (tmp_path / "2" / "results.json").stat().st_mtime_ns == before


def test_a_folder_named_by_the_clock_is_one_for_all(start, tmp_path):
    status, _, err = finish(start("trainer=debug", "trainer.batch_size=15", ranks=3))
    assert status == 0, err
    assert len(list(tmp_path.glob("runs/*/*"))) == 1


def test_one_torchrun_a_node_trains_one_model(tmp_path):
    """This machine acts as both nodes; the first process builds the feature cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    typed = ["dataset=digits_demo", "trainer=debug", *SMALL, f"cache_dir={tmp_path}/cache"]
    processes = [
        subprocess.Popen(
            [*TORCHRUN[:3], *nodes, f"--node_rank={node}", str(RUN), *typed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        for node in (0, 1)
    ]
    (first, out, err), (second, other_out, other_err) = map(finish, processes)
    assert (first, second) == (0, 0), err + other_err
    assert "best epoch" in out
    assert not other_out
    assert (err + other_err).count("features: 1,200/1,200") == 1
    (run,) = tmp_path.glob("runs/*/*")
    assert read(run / "run.json")["processes"] == 4
    assert (run / "results.json").exists()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            "trainer.batch_size=63",
            "trainer.batch_size=63 is shared by 2 processes, so it must be a multiple of their number",
        ),
        ("encoder.front_channels=8", "encoder.front_channels normalises over the batch"),
        ("action=status", "2 processes were started, but action=status takes one"),
        ("trainer.epochs=many", "trainer.epochs=many: expected an integer"),
        ("experiment=search_lr", "a search runs in one process"),
        ("launcher=slurm", "start launcher=slurm without torchrun, and set slurm.tasks_per_node=2"),
        ("nothing=1", "nothing is not a key of this config"),
        (
            "-m trainer.batch_size=63,64",
            "trainer.batch_size=63 is shared by 2 processes, so it must be a multiple of their number",
        ),
        ("-m trainer=debug,nothing", "trainer=nothing: expected one of debug, default"),
    ],
)
def test_an_error_is_shown_once(start, tmp_path, typed, expected):
    began_s = time.monotonic()
    status, _, err = finish(start(*typed.split(), "hydra.run.dir=run"))
    assert status != 0
    assert err.count(expected) == 1, err
    assert "speech_exp/" not in err  # no trace of internals
    assert time.monotonic() - began_s < 60
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_teacher_is_trained_by_all_and_a_sweep_runs_one_after_the_other(start, tmp_path):
    typed = (
        "task=C",
        "c_approach=ste,ema",
        "kd=teacher",
        "trainer=debug",
        "task.start_epoch=1",
        "hydra.sweep.dir=sweep",
    )
    status, out, err = finish(start("-m", *typed))
    assert status == 0, err
    runs = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert len(runs) == 2
    for run in runs:
        assert read(run / "results.json")["certificate"]["passed"]
        assert read(run / "teacher" / "run.json")["processes"] == 2
    assert "full comparison: sweep/comparison.html" in out
    assert "2 runs in 2 groups" in (tmp_path / "sweep" / "comparison.md").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("whole")
    command = [*TORCHRUN, "--nproc_per_node=2", str(RUN), *SMALL, *LONG, cache, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return folder


ENDS = {
    "kill -9 of one process": ("failed", lambda torchrun: os.kill(children(torchrun)[1], signal.SIGKILL)),
    "SIGTERM to torchrun": ("interrupted", lambda torchrun: torchrun.terminate()),
    "Ctrl-C": ("interrupted", lambda torchrun: os.killpg(torchrun.pid, signal.SIGINT)),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_interrupted_run_resumes_bit_for_bit(start, tmp_path, whole, end):
    status, break_off = ENDS[end]
    process, run = start(*LONG, "hydra.run.dir=run"), tmp_path / "run"
    wait_for_epochs(3, run, process)
    ranks = children(process)
    assert len(ranks) == 2
    break_off(process)
    returned, _, err = finish(process)
    assert returned != 0
    assert not (run / "results.json").exists()
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    assert read(run / "run.json")["status"] == status
    if status == "failed":
        assert err.count("another process of this run has ended") == 1
    returned, _, err = finish(start(*LONG, "hydra.run.dir=run"))
    assert returned == 0, err
    metrics, predictions, weights = found(run)
    expected = found(whole)
    assert (metrics, predictions) == expected[:2]
    assert all(torch.equal(weights[name], value) for name, value in expected[2].items())


def test_the_documented_command_trains_connected_digits(start, tmp_path, fsdd_root):
    """The README's command, `torchrun --nproc_per_node=2 run.py dataset=fsdd_strings model=lmu`, for two short epochs."""
    typed = ("dataset=fsdd_strings", "model=lmu", "trainer.epochs=2", "trainer.epoch_batches=4", "hydra.run.dir=run")
    status, _, err = finish(start(*typed))
    assert status == 0, err
    metrics = read(tmp_path / "run" / "results.json")["metrics"]
    assert metrics["test"]["wer"] > 0
    assert (tmp_path / "run" / "history.csv").read_text().count("\n") == 3
