"""Processes that are killed (SIGKILL) at fixed points and restarted end like an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speech_exp.training.state import states

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")]

RUN = Path(__file__).parents[1] / "run.py"
COMMON = ["dataset=digits_demo", "trainer.device=cpu"]
SHORT = [
    *COMMON,
    "seed=1",
    "trainer.epochs=5",
    "task=C",
    "c_approach=inq",
    "task.start_epoch=2",
    "trainer.checkpoint_every_s=1e-9",  # after each batch
]


def start(folder, *more, program=(RUN,)):
    where = [f"hydra.run.dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    return subprocess.Popen(
        [sys.executable, *program, *SHORT, *where, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder, *more):
    process = start(folder, *more)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def found(folder):
    results = json.loads((folder / "run" / "results.json").read_text())
    (best,) = (folder / "run" / "checkpoints").glob("*_best.pt")
    predictions = (folder / "run" / "predictions.csv").read_bytes()
    return results["metrics"], results["best_epoch"], predictions, torch.load(best, weights_only=True)["network"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


def wait_for(condition, process, limit_s=120):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, "the run ended before the moment to kill it"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill(folder, event, pattern):
    """Start a run that is killed at the first file operation of this kind."""
    process = start(folder, program=(RUN.parent / "tests" / "killed_run.py", event, str(folder / pattern)))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == -(signal.SIGXFSZ if event == "write" else signal.SIGKILL), printed


MOMENTS = {
    "while the cache is built": ("open", "cache/*/frames.npy"),
    "within an epoch": ("os.rename", "run/checkpoints/checkpoint_epoch_2_batch_5.pt"),
    "while a checkpoint is written": ("write", "run/checkpoints/.checkpoint_epoch_3.pt.*.tmp"),
    "before a checkpoint is in its place": ("os.rename", "run/checkpoints/checkpoint_epoch_3.pt"),
    "in the report": ("os.rename", "run/predictions.csv"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path, moment):
    kill(tmp_path, *MOMENTS[moment])
    assert not (tmp_path / "run" / "results.json").exists()
    unwritten = [
        path.stat().st_size for path in (tmp_path / "run" / "checkpoints").glob(".checkpoint_epoch_3.pt.*.tmp")
    ]
    assert (unwritten == [4096]) == (moment == "while a checkpoint is written")
    printed = finish(tmp_path)
    assert ("resuming from" in printed) == (moment != "while the cache is built")
    assert not list((tmp_path / "cache").glob("*.part-*"))
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))
    expected, again = found(whole), found(tmp_path)
    assert expected[:3] == again[:3]
    assert expected[3].keys() == again[3].keys()
    for name, weights in expected[3].items():
        assert torch.equal(weights, again[3][name]), name
    assert "is finished; resume=false runs it again" in finish(tmp_path)


@pytest.mark.parametrize("pattern", ["cache/*", "run/predictions.csv"])
def test_a_signal_outside_the_fit_leaves_a_stopped_run(tmp_path, pattern):
    """The signal comes while features are computed or while the report is written."""
    process = start(tmp_path, program=(RUN.parent / "tests" / "killed_run.py", "terminate", str(tmp_path / pattern)))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, printed
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "SIGTERM: stopped by a signal")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    "name", ["history.csv", "checkpoints/checkpoint_epoch_2.pt", "predictions.csv", "figures/confusion_matrix.png"]
)
def test_a_full_disk_is_reported_in_one_sentence_that_names_the_file(whole, tmp_path, name):
    shutil.copytree(whole / "cache", tmp_path / "cache")
    path = tmp_path / "run" / name
    aside = path.with_name(f".{path.name}.*.tmp")
    process = start(
        tmp_path,
        "trainer.checkpoint_every_s=null",
        program=(RUN.parent / "tests" / "killed_run.py", "fill", str(aside)),
    )
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    (sentence,) = [line for line in printed.splitlines() if "error" in line]
    assert sentence.endswith(
        f"error: {path} could not be written (File too large): free space there, or set hydra.run.dir to a folder on "
        "another disk"
    )
    assert not path.exists()
    assert not list(path.parent.glob(aside.name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_the_state_before_the_process_ends(whole, tmp_path, number):
    """The signal comes in step 20 of phase two, within the third epoch, where no state would otherwise be saved."""
    killed_run = (RUN.parent / "tests" / "killed_run.py", number.name, "20")
    process = start(tmp_path, "trainer.checkpoint_every_s=null", program=killed_run)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, printed
    assert states(tmp_path / "run" / "checkpoints")[-1].name.startswith("checkpoint_epoch_2_batch_")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    finish(tmp_path)
    assert found(whole)[:3] == found(tmp_path)[:3]


def test_a_run_resumes_from_another_folder_and_refuses_another_config(whole, tmp_path):
    kill(tmp_path, *MOMENTS["within an epoch"])
    elsewhere = tmp_path / "elsewhere"
    refused = start(elsewhere, f"resume={tmp_path / 'run'}", "trainer.lr=0.1")
    printed, _ = refused.communicate(timeout=120)
    assert refused.returncode != 0
    assert "belongs to a different run (trainer.lr=0.006 in the state and 0.1 now)" in printed
    finish(elsewhere, f"resume={tmp_path / 'run'}")
    assert found(whole)[:3] == found(elsewhere)[:3]


def sweep_command(folder):
    swept = ["model=gru,lstm,lmu", "task=A,B1,C", "seed=0,1,2,3", "trainer.epochs=2", "trainer.epoch_batches=2"]
    where = [f"hydra.sweep.dir={folder / 'sweep'}", f"cache_dir={folder / 'cache'}"]
    return [sys.executable, RUN, "-m", *COMMON, *swept, *where]


def test_a_sweep_killed_twice_ends_with_every_run_once(tmp_path):
    def finished():
        """Return when the results of each finished run were written; a run killed while drawing is not finished."""
        runs = {path.parent: json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/run.json")}
        done = [folder for folder, run in runs.items() if run["status"] == "finished"]
        return {folder.name: (folder / "results.json").stat().st_mtime_ns for folder in done}

    known = {}
    for least, more in ((8, []), (20, ["resume=true"])):
        process = subprocess.Popen(
            [*sweep_command(tmp_path), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda least=least: len(finished()) >= least, process, limit_s=900)
        process.kill()
        process.wait()
        now = finished()
        assert known.items() <= now.items()  # no finished run was repeated
        known = now
    assert len(known) < 36
    last = subprocess.run([*sweep_command(tmp_path), "resume=true"], capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert known.items() <= finished().items()
    assert len(finished()) == 36
    assert last.stdout.count("is finished; resume=false runs it again") >= len(known)
    comparison = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "36 runs in 9 groups" in comparison


def test_eight_processes_on_a_cold_cache_build_it_once(tmp_path):
    command = [sys.executable, RUN, *COMMON, "action=prepare", f"cache_dir={tmp_path / 'cache'}"]
    processes = [
        subprocess.Popen(
            [*command, f"hydra.run.dir={tmp_path / str(number)}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    # Only the process that built the cache showed its progress.
    assert sum("features: 1,200/1,200" in err for _, err in outputs) == 1
    assert len({out.partition("SHA-256")[2] for out, _ in outputs}) == 1
    assert len(list((tmp_path / "cache").glob("*/frames.npy"))) == 1
