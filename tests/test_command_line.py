"""run.py as a user starts it: real processes, exit statuses, what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from speech_exp.command_line import interruptible

RUN = Path(__file__).parents[1] / "run.py"


def start(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(RUN), *arguments, "dataset=digits_demo", "trainer.device=cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


def test_a_wrong_value_is_one_line_without_a_trace(tmp_path, cache):
    status, _, err = finish(start("trainer.epochs=many", cache, cwd=tmp_path))
    assert status == 1
    assert "error: trainer.epochs=many: expected a whole number, change trainer.epochs" in err
    assert "Traceback" not in err


def test_ctrl_c_ends_a_run_even_where_its_exception_is_lost():
    """As Python loses those that are raised while it deletes an object."""
    with pytest.raises(KeyboardInterrupt), interruptible(), suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tasks_of_srun_that_do_not_know_each_other_are_refused(tmp_path, cache):
    environment = {**os.environ, "SLURM_STEP_NUM_TASKS": "4"}
    status, _, err = finish(start(cache, cwd=tmp_path, env=environment))
    assert status == 1
    assert "error: srun started 4 processes that know nothing of each other: use launcher=slurm" in err
    assert not list(tmp_path.glob("runs/*/*/results.json"))


def test_help_lists_the_groups(tmp_path):
    status, out, _ = finish(start("--help", cwd=tmp_path))
    assert status == 0
    assert "model       recurrent layer             gru | lstm | lmu" in out


@pytest.mark.slow
def test_a_sweep_ends_in_a_comparison_that_compare_makes_again(tmp_path, cache):
    sweep = tmp_path / "sweep"
    status, out, err = finish(
        start("-m", "model=gru,lstm", "seed=0,1", "trainer=debug", cache, f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    )
    assert status == 0, err
    names = {path.name for path in sweep.iterdir() if path.is_dir()}
    pairs = [(model, seed) for model in ("gru", "lstm") for seed in (0, 1)]
    expected = {f"model={m},seed={s},trainer=debug,dataset=digits_demo,trainer.device=cpu" for m, s in pairs}
    assert names == expected
    markdown, table = (sweep / "comparison.md").read_bytes(), (sweep / "comparison.csv").read_bytes()
    assert b"| gru | lstm |" in markdown
    assert "the whole comparison" in out
    assert len(list(sweep.glob("comparison_*.png"))) == 6
    for path in sweep.glob("comparison*"):
        path.unlink()
    status, _, err = finish(start("action=compare", f"runs={sweep}", cwd=tmp_path))
    assert status == 0, err
    assert (sweep / "comparison.md").read_bytes() == markdown
    assert (sweep / "comparison.csv").read_bytes() == table


@pytest.mark.slow
def test_a_sweep_over_all_approaches_from_one_float_run_ends_in_a_comparison(tmp_path, cache):
    status, _, err = finish(start("task=B1", "trainer.epochs=2", cache, f"hydra.run.dir={tmp_path}/B1", cwd=tmp_path))
    assert status == 0, err
    typed = ["task=C", "c_approach=glob(*)", "trainer.epochs=4", f"task.float_checkpoint={tmp_path}/B1"]
    status, out, err = finish(start("-m", *typed, cache, f"hydra.sweep.dir={tmp_path}/C", cwd=tmp_path))
    assert status == 0, err
    assert out.count("power_of_two, ") == 9
    found = [json.loads(path.read_text()) for path in (tmp_path / "C").glob("*/results.json")]
    approaches = ["apot2", "ema", "inq", "mixed_pot", "row_shared", "snap_epoch", "snap_step", "ste", "stochastic"]
    assert sorted(one["c_approach"] for one in found) == approaches
    assert all(one["certificate"]["passed"] for one in found)
    status, _, err = finish(start("action=compare", f"runs={tmp_path}", cwd=tmp_path))
    assert status == 0, err
    report = (tmp_path / "comparison.md").read_text()
    assert all(f"C {approach} |" in report for approach in approaches)
    assert "lost against float" in report
    assert (tmp_path / "comparison_bytes.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_leaves_a_readable_run_folder(tmp_path, cache):
    run = tmp_path / "run"
    process = start("trainer.epochs=500", cache, f"hydra.run.dir={run}", cwd=tmp_path)
    history = run / "history.csv"
    deadline = time.monotonic() + 300
    while not (history.exists() and len(history.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "stopped by the user" in err
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    header, *rows = history.read_text().splitlines()
    assert all(len(row.split(",")) == len(header.split(",")) for row in rows)
    assert not (run / "results.json").exists()
    epochs = [int(path.stem.rpartition("_")[2]) for path in (run / "checkpoints").glob("checkpoint_epoch_*.pt")]
    assert epochs == [len(rows)] or epochs == [len(rows) - 1]


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_numbers(tmp_path, cache):
    found = []
    for name in ("one", "two"):
        run = tmp_path / name
        status, _, err = finish(start("trainer=debug", "seed=7", cache, f"hydra.run.dir={run}", cwd=tmp_path))
        assert status == 0, err
        found.append(json.loads((run / "results.json").read_text())["metrics"])
    assert found[0] == found[1]
