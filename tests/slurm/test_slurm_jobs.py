"""launcher=slurm on a real cluster of one node: states of the jobs, output and exit status of the submitting command."""

import json
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from run_files import epochs_done
from slurm_cluster import RUN, SMALL

pytestmark = pytest.mark.slow


def finish(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def number_of(out: str) -> str:
    found = re.search(r"submitted as job (\d+)", out)
    assert found, out
    return found[1]


def run_folders(sweep) -> dict[str, bool]:
    """Return whether each run has results, by the first override in its folder's name."""
    folders = [path for path in sweep.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name.partition(",")[0]: (path / "results.json").exists() for path in folders}


def test_one_run_is_one_job_without_m(start, cluster, tmp_path):
    status, out, err = finish(start())
    assert status == 0, err
    ((_, state, _, _),) = cluster.accounts(number_of(out))
    assert state == "COMPLETED"
    assert run_folders(tmp_path / "sweep") == {"dataset=digits_demo": True}
    (run,) = (tmp_path / "sweep").glob("dataset=*")
    assert "launcher" not in run.name
    assert "slurm" not in run.name
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "omparison" not in out + err  # there is only one run


def test_a_sweep_is_an_array_of_which_few_run_at_a_time(start, cluster, tmp_path):
    status, out, err = finish(start("-m", "seed=range(6)", "hydra.launcher.array_parallelism=2"))
    assert status == 0, err
    jobs = cluster.accounts(number_of(out))
    assert sorted((number, state) for number, state, *_ in jobs) == [
        (f"{number_of(out)}_{index}", "COMPLETED") for index in range(6)
    ]
    times = [(datetime.fromisoformat(began), datetime.fromisoformat(ended)) for _, _, began, ended in jobs]
    assert max(sum(began <= moment < ended for began, ended in times) for moment, _ in times) == 2
    assert run_folders(tmp_path / "sweep") == {f"seed={seed}": True for seed in range(6)}
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert sorted(result["seed"] for result in results) == list(range(6))
    assert "6 runs in 1 group" in (tmp_path / "sweep" / "comparison.md").read_text()


def test_a_failing_run_is_named_with_its_trace_and_the_others_end_well(start, cluster, tmp_path):
    status, out, err = finish(start("-m", "trainer.lr=0.005,-1,0.006", "slurm.array_parallelism=2"))
    assert status == 1
    assert "error: 1 of 3 runs failed" in err
    named = err.partition("runs failed")[2]
    assert "trainer.lr=-1" in named.splitlines()[1]
    assert "UserError: error: trainer.lr=-1: expected a number above 0, change trainer.lr" in named
    assert "lr=0.005" not in named
    states = {number.partition("_")[2]: state for number, state, *_ in cluster.accounts(number_of(out))}
    assert states == {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED"}
    done = {"trainer.lr=0.005": True, "trainer.lr=-1": False, "trainer.lr=0.006": True}
    assert run_folders(tmp_path / "sweep") == done
    (log,) = (tmp_path / "sweep").glob("trainer.lr=-1,*/run.log")
    assert "Traceback" in log.read_text()
    assert "2 runs in " in (tmp_path / "sweep" / "comparison.md").read_text()


def test_a_cancelled_job_is_distinguished_from_the_others(start, cluster, tmp_path):
    process = start("-m", "trainer.epochs=1,100000", "slurm.array_parallelism=2")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("sweep/trainer.epochs=100000,*/history.csv")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (long,) = [number for number in cluster.jobs() if number.endswith("_1")]
    cluster.ask("scancel", long)
    status, _, err = finish(process)
    assert status == 1
    assert "error: 1 of 2 runs failed" in err
    named = err.partition("runs failed")[2]
    assert "trainer.epochs=100000" in named
    assert "SLURM says CANCELLED" in named
    assert run_folders(tmp_path / "sweep") == {"trainer.epochs=1": True, "trainer.epochs=100000": False}


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("slurm.partition=nowhere", "Invalid partition name specified"),
        ("slurm.nodes=3", "Node count specification invalid"),
        ("slurm.gpus_per_node=3", "Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_has_not_is_reported_in_one_error_at_once(start, cluster, tmp_path, option, expected):
    status, _, err = finish(start(option))
    assert status == 1
    assert re.search(rf"error: SLURM rejected the job \(.*{expected}\): change the keys under slurm", err), err
    assert "Traceback" not in err
    assert cluster.jobs() == {}
    assert run_folders(tmp_path / "sweep") == {}


def test_ctrl_c_stops_waiting_and_leaves_the_job(start, cluster):
    process = start("trainer.epochs=100000")
    cluster.wait_until(lambda states: "RUNNING" in states.values())
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130
    assert f"the runs go on, and `scancel {number_of(out)}` ends them" in err
    assert cluster.jobs()[number_of(out)] == "RUNNING"


def test_dry_run_submits_nothing(start, cluster):
    status, out, err = finish(start("dry_run=true"))
    assert status == 0, err
    assert out.startswith("#!/bin/bash\n")
    assert cluster.jobs() == {}


def whole(cluster, folder, *typed):
    """Carry out the same run without disturbance, in one local process; return its folder."""
    small = [*SMALL, *typed, f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, RUN, *small], check=True, capture_output=True, env=cluster.environment)
    return folder


def check_equal(one, other):
    for part in ("val", "test"):
        found, expected = (
            json.loads((folder / "results.json").read_text())["metrics"][part] for folder in (one, other)
        )
        assert found == expected
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()


DISTURBANCES = ["scontrol requeue", "scancel --signal=USR2"]


def disturb(disturbance, process, cluster, sweep):
    """Disturb the job after five epochs; return the run's folder once the submitter has ended successfully."""
    deadline = time.monotonic() + 120
    while not any(epochs_done(folder) >= 5 for folder in sweep.glob("*/")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (number,) = cluster.jobs()
    cluster.ask(*disturbance.split(), number)
    status, _, err = finish(process)
    assert status == 0, err
    (run,) = (path.parent for path in sweep.glob("*/results.json"))
    return run


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_a_disturbed_job_resumes_to_the_numbers_of_an_undisturbed_one(start, cluster, tmp_path, disturbance):
    """A requeue kills the job after a while; after USR2, the warning before the time limit, submitit requeues the job.
    In both cases the job starts again in its folder and resumes the training."""
    long = (
        "trainer.epochs=200",
        "trainer.checkpoint_every_s=0.2",
        "seed=3",
    )  # longer than the time between signal and kill
    disturbed = disturb(disturbance, start(*long), cluster, tmp_path / "sweep")
    assert json.loads((disturbed / "run.json").read_text())["resumes"] is True
    check_equal(disturbed, whole(cluster, tmp_path / "whole", *long))


def test_a_job_that_times_out_resumes_in_another(start, cluster, tmp_path):
    """Here SLURM sends the signal itself, 30 s before the time limit of one minute."""
    long = ("trainer.epochs=1000", "seed=4")
    process = start(*long, "slurm.time_min=1", "slurm.signal_delay_s=30", "slurm.max_num_timeout=20")
    status, out, err = finish(process)
    assert status == 0, err
    (run,) = (path.parent for path in tmp_path.glob("sweep/*/results.json"))
    assert json.loads((run / "run.json").read_text())["resumes"] is True
    ((_, state, _, _),) = cluster.accounts(number_of(out))
    assert state == "COMPLETED"
    logs = "".join(path.read_text() for path in tmp_path.glob("sweep/.submitit/*/*_log.err"))
    assert "this job is timed-out" in logs
    check_equal(run, whole(cluster, tmp_path / "whole", *long))


TWO = ("slurm.tasks_per_node=2", "augment=none", "trainer.batch_size=16")


def test_two_tasks_train_one_model(start, cluster, tmp_path):
    status, out, err = finish(start(*TWO))
    assert status == 0, err
    ((_, state, _, _),) = cluster.accounts(number_of(out))
    assert state == "COMPLETED"
    (run,) = (tmp_path / "sweep").glob("augment=*")
    assert json.loads((run / "run.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "sweep").glob("*/results.json"))) == 1
    assert (run / "run.log").exists()
    alone = whole(cluster, tmp_path / "whole", *TWO[1:])
    found, expected = (json.loads((one / "results.json").read_text())["metrics"]["val"] for one in (run, alone))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_two_tasks_are_put_into_the_queue_again_together(start, cluster, tmp_path, disturbance):
    process = start(*TWO, "trainer.epochs=100", "trainer.checkpoint_every_s=0.2")
    run = disturb(disturbance, process, cluster, tmp_path / "sweep")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["resumes"], record["processes"]) == ("finished", True, 2)
    assert epochs_done(run) == 100


def test_an_error_of_one_task_ends_both_and_is_shown(start, cluster, tmp_path):
    status, out, err = finish(start(*TWO, "trainer.batch_size=15"))
    assert status == 1
    assert "trainer.batch_size=15 is shared by 2 processes, so it must be a multiple of their number" in err
    ((_, state, _, _),) = cluster.accounts(number_of(out))
    assert state == "FAILED"


def test_a_search_learns_from_jobs_and_completes_its_trials(start, cluster, tmp_path):
    """The trials are jobs, two at a time; repeating the command adds only the missing trials."""
    typed = ("experiment=search_lr", "hydra.sweeper.n_jobs=2")
    status, out, err = finish(start(*typed, "hydra.sweeper.n_trials=2"))
    assert status == 0, err
    status, out, err = finish(start(*typed, "hydra.sweeper.n_trials=4"))
    assert status == 0, err
    assert "2 of 4 trials are already finished" in out
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert len(results) == 4
    best = max(one["metrics"]["val"]["accuracy"] for one in results)
    assert f"validation accuracy {best:.2%}" in out
    status, out, err = finish(start(*typed, "hydra.sweeper.n_trials=4"))
    assert status == 0, err
    assert "submitted" not in out
