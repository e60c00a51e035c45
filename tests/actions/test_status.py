"""action=status on run folders in every state, and on a real sweep in progress."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from composition import experiment

from speech_exp.config_roles import config_hash
from speech_exp.runs.environment import process, process_lives
from speech_exp.sweeps.record import Job, finish_job, finish_sweep, start_sweep
from speech_exp.sweeps.status import missing_text, status_text, sweep_status

RUN = Path(__file__).parents[2] / "run.py"
HISTORY = "epoch,train_loss,val_accuracy,val_loss,lr\n1,2.3,0.25,2.2,0.1\n2,1.9,0.5,1.7,0.1\n"
CONFIG = {"trainer": {"epochs": 40}}


@pytest.fixture(scope="module")
def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def make(tmp_path):
    """Return a function that writes a run folder of the sweep in tmp_path; `record` None writes no run.json."""

    def write(name, record, history=HISTORY, silent_s=0.0):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if record is not None:
            started = datetime.now(timezone.utc) - timedelta(seconds=100 + silent_s)
            here = {"host": socket.gethostname(), **process(), "started": started.isoformat()}
            here |= {"config": CONFIG, "config_hash": config_hash(CONFIG)}
            (folder / "run.json").write_text(json.dumps(here | record))
        if history:
            (folder / "history.csv").write_text(history)
        if record and record.get("status") == "finished":
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "checkpoint_epoch_2_best.pt").touch()
        for path in [*folder.glob("*.*"), folder]:
            os.utime(path, (time.time() - silent_s,) * 2)
        return folder

    return write


def states(folder, silent_after_s=600.0):
    return {run.name: run.state for run in sweep_status(folder, silent_after_s).runs}


def test_every_state_is_reported(make, tmp_path, ended_pid):
    names = [f"seed={number}" for number in range(10)]
    start_sweep(tmp_path, [Job(name, (name,)) for name in names])
    make("seed=0", {"status": "finished"})
    make("seed=1", {"status": "failed", "error": "ValueError: x", "trace": ["a", "  ^^^", "b", "ValueError: x"]})
    make("seed=2", {"status": "interrupted", "error": "KeyboardInterrupt: stopped by the user"})
    make("seed=3", {"status": "running"}, silent_s=5000)  # alive, however long an epoch takes
    make("seed=4", {"status": "running", "pid": ended_pid})
    make("seed=5", {"status": "running", "host": "node7"})
    make("seed=6", {"status": "running", "host": "node7"}, silent_s=5000)
    make("seed=7", None, history="")  # just started
    finish_job(make("seed=8", None, history=""), ValueError("no such file"))
    expected = ["done", "failed", "stopped", "running", "stopped", "running", "silent", "running", "failed", "waiting"]
    assert states(tmp_path) == dict(zip(names, expected, strict=True))
    assert states(tmp_path, silent_after_s=6000)["seed=6"] == "running"
    text = status_text(sweep_status(tmp_path))
    assert "10 runs, 1 done, 3 running, 1 waiting, 1 silent, 2 stopped, 2 failed" in text
    assert re.search(r"running  seed=3  epoch 2 of 40  5,10\d s  val_accuracy 0.5  val_loss 1.7\n", text)
    assert "\nwaiting  seed=9\n" in text
    assert "\nfailed seed=1\n    a\n    b\n    ValueError: x\n" in text
    assert "ValueError: no such file" in text
    assert "\nstopped seed=2\n    KeyboardInterrupt: stopped by the user\n" in text
    assert f"\nstopped seed=4\n    its process {ended_pid} has ended" in text
    assert "\nsilent seed=6\n    nothing written for 83 minutes on node7" in text
    assert "rerun" not in text  # the process that started the sweep, this one, is still running


def test_a_new_epoch_or_checkpoint_is_a_sign_of_life(make, tmp_path):
    folder = make("a", {"status": "running", "host": "node7"}, silent_s=5000)
    assert states(tmp_path) == {"a": "silent"}
    (folder / "checkpoints").mkdir()
    os.utime(folder, (time.time() - 5000,) * 2)
    assert states(tmp_path) == {"a": "running"}
    os.utime(folder / "checkpoints", (time.time() - 5000,) * 2)
    assert states(tmp_path) == {"a": "silent"}
    with open(folder / "history.csv", "a") as file:
        file.write("3,1.5,0.6,1.5,0.1\n")
    assert states(tmp_path) == {"a": "running"}


def test_a_jobs_outcome_takes_precedence_over_its_record(make, tmp_path, ended_pid):
    finish_job(make("evaluated", None), None)
    finish_job(make("killed then found finished", {"status": "running", "pid": ended_pid}), None)
    assert set(states(tmp_path).values()) == {"done"}


def test_missing_runs_are_listed_with_the_command_after_the_sweep(make, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "seed=0,1,2"])
    start_sweep(tmp_path, [Job(f"seed={seed}", (f"seed={seed}",)) for seed in range(3)])
    make("seed=0", {"status": "finished"})
    make("seed=1", {"status": "failed", "error": "E: x", "trace": [f"line {number}" for number in range(20)]})
    assert "rerun" not in missing_text(sweep_status(tmp_path))
    finish_sweep(tmp_path)
    text = missing_text(sweep_status(tmp_path))
    assert text.startswith("2 of 3 runs are not done:\nwaiting seed=2\n\nfailed seed=1\n    line 14\n")
    assert text.endswith(f"run.py -m seed=0,1,2 hydra.sweep.dir={tmp_path} resume=true")
    make("seed=2", {"status": "finished"})
    whole = {"status": "finished", "config": CONFIG, "config_hash": config_hash(CONFIG)}
    (tmp_path / "seed=1" / "run.json").write_text(json.dumps(whole))
    assert missing_text(sweep_status(tmp_path)) == ""


@pytest.mark.parametrize(("change", "told"), [({"pid": None}, True), ({"host": "node7"}, False)])
def test_the_command_is_not_offered_while_jobs_may_still_start(make, tmp_path, ended_pid, change, told):
    start_sweep(tmp_path, [Job("seed=0", ("seed=0",)), Job("seed=1", ("seed=1",))])
    make("seed=0", {"status": "failed", "error": "E: x"})
    record = json.loads((tmp_path / "sweep.json").read_text()) | {"pid": ended_pid} | change
    record["pid"] = record["pid"] or ended_pid
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert ("rerun: " in status_text(sweep_status(tmp_path))) is told


def test_runs_that_no_sweep_started_are_found_without_their_teachers(make, tmp_path):
    make("gru/one", {"status": "finished"})
    make("gru/one/teacher", {"status": "failed", "error": "E"})
    make("lstm", {"status": "finished"})
    assert states(tmp_path) == {"gru/one": "done", "lstm": "done"}


@pytest.mark.parametrize("broken", ["run.json", "history.csv", "outcome.json"])
def test_a_broken_record_is_reported_and_hides_no_other_run(make, tmp_path, broken):
    make("a", {"status": "finished"})
    (make("b", {"status": "running"}) / broken).write_text("{]\n1,2\n")
    found = {run.name: run for run in sweep_status(tmp_path).runs}
    assert found["a"].state == "done"
    assert found["b"].state == "failed"
    assert found["b"].reason.startswith(f"broken record: {Path(broken).name}")


def test_a_process_lives_until_it_has_ended(ended_pid):
    own = process()
    assert process_lives(*own.values())
    assert process_lives(1, psutil.Process(1).create_time())  # a process of another user counts too
    assert not process_lives(ended_pid, time.time())
    for broken in (None, "1", 10**30, -1):
        assert not process_lives(broken, own["process_started_s"])


def test_a_later_process_with_the_same_pid_is_not_mistaken_for_the_run(make, tmp_path):
    own = process()
    make("a", {"status": "running", **own, "process_started_s": own["process_started_s"] - 3600})
    make("b", {"status": "running"})
    assert states(tmp_path) == {"a": "stopped", "b": "running"}


def test_a_finished_run_without_its_best_checkpoint_is_reported(make, tmp_path):
    (best,) = (make("a", {"status": "finished"}) / "checkpoints").iterdir()
    assert "gone" not in status_text(sweep_status(tmp_path))
    best.unlink()
    assert "\ndone a\n    its best checkpoint is missing" in status_text(sweep_status(tmp_path))


def test_folders_that_hold_no_training_run_are_not_counted(make, tmp_path):
    make("a", {"status": "finished"})
    make("evaluation", None, history="")
    assert states(tmp_path) == {"a": "done"}


def test_the_action_prints_it_and_writes_nothing(compose, make, tmp_path, capsys):
    make("a", {"status": "finished"})
    before = sorted(tmp_path.rglob("*"))
    built = experiment(compose("action=status", f"runs={tmp_path}"), tmp_path)
    built.build("action")(built)
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 1 run, 1 done\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("runs", "error"),
    [
        ("null", "action=status has no sweep: set runs=FOLDER"),
        ("{empty}", "set runs to the folder of a sweep"),
    ],
)
def test_a_folder_without_runs_is_refused(compose, tmp_path, runs, error):
    built = experiment(compose("action=status", f"runs={runs.format(empty=tmp_path)}"), tmp_path)
    with pytest.raises(ValueError, match=error):
        built.build("action")(built)


def start(*arguments, cwd):
    command = [sys.executable, str(RUN), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def status_of(sweep):
    out, err = start("action=status", f"runs={sweep}", cwd=sweep.parent).communicate(timeout=300)
    return out, re.findall(r"^(waiting|running|stopped|failed|done) ", out.partition("\n\n")[0], re.M), err


def started(sweep, process, seed):
    """Wait until the run with this seed has finished an epoch."""
    deadline = time.monotonic() + 300
    while not list(sweep.glob(f"*seed={seed}*/history.csv")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


SWEEP = ("-m", "dataset=digits_demo", "trainer=debug", "trainer.device=cpu", "trainer.epochs=8", "seed=0,1,2,3")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_a_sweep_with_a_failing_run_is_followed_from_another_process(cache, tmp_path):
    sweep = tmp_path / "sweep"
    failing = "model.hidden_size=16,0"
    typed = [*SWEEP[:-1], "seed=0,1", failing, f"cache_dir={cache}", f"hydra.sweep.dir={sweep}"]
    process = start(*typed, cwd=tmp_path)
    started(sweep, process, 1)
    process.send_signal(signal.SIGSTOP)  # keeps the third run from ending before its status is read
    out, found, err = status_of(sweep)
    process.send_signal(signal.SIGCONT)
    assert found == ["done", "failed", "running", "waiting"], out + err
    assert re.search(r"^done .*epoch 8 of 8 .* s  val_accuracy", out, re.M)
    assert "model.hidden_size=0: expected an integer of at least 1" in out
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "full comparison" in out
    assert "2 of 4 runs are not done" in out
    assert out.endswith(f"seed=0,1 {failing} cache_dir={cache} hydra.sweep.dir={sweep} resume=true\n")
    assert "Traceback" not in err
    assert status_of(sweep)[1] == ["done", "failed", "done", "failed"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_sweep_is_reported_with_the_command_that_resumes(cache, tmp_path):
    sweep = tmp_path / "sweep"
    process = start(*SWEEP, f"cache_dir={cache}", f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    started(sweep, process, 1)
    process.send_signal(signal.SIGSTOP)  # keeps the second run from ending before its status is read
    assert status_of(sweep)[1] == ["done", "running", "waiting", "waiting"]
    process.kill()
    process.communicate()
    out, found, _ = status_of(sweep)
    assert found == ["done", "stopped", "waiting", "waiting"]
    assert f"its process {process.pid} has ended" in out
    assert f"\nrerun: {Path(sys.executable).name} {RUN} -m" in out
    assert out.rstrip().endswith("resume=true")
