"""run.py as a user starts it: real processes, exit statuses, and files left behind."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from composition import CONF, choices

from speech_exp.command_line.credentials import PASSWORD
from speech_exp.command_line.help_text import help_text
from speech_exp.command_line.main import LateFolder, interruptible
from speech_exp.command_line.main import start as start_here
from speech_exp.training.state import states

RUN = Path(__file__).parents[2] / "run.py"


def start(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, str(RUN), *arguments, "dataset=digits_demo", "trainer.device=cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return f"cache_dir={tmp_path_factory.mktemp('cache')}"


def test_a_wrong_value_prints_one_line_only(tmp_path, cached):
    status, out, err = finish(start("trainer.epochs=many", cached, cwd=tmp_path))
    assert (status, out) == (1, "")
    assert err == "error: trainer.epochs=many: expected an integer of at least 1, change trainer.epochs\n"


ONE_LINE = {
    "modle=gru": "modle is not a key of this config (did you mean model?): python run.py --cfg job shows all keys",
    "trainer.epoch=3": "trainer.epoch is not a key of this config (did you mean trainer.epochs?)",
    "hidden_size=4": "hidden_size is not a key of this config (did you mean model.hidden_size?)",
    "encoder=asrr": "encoder=asrr: expected one of asr, asr_small, compact (did you mean asr?), change encoder",
    "model=gru,lstm": "model=gru,lstm has several values: add -m to run each of them",
    "slurm.partition=gpu": "slurm is not a key of this config (it belongs to launcher=slurm)",
    "checkpoint=a.pt": "checkpoint is not a key of this config (it belongs to action=evaluate and action=predict)",
    "kd=null": "kd=null: expected one of none, teacher, change kd",
    "trainer=[]": "trainer=[]: expected one of debug, default, change trainer",
    "-m model=gru,1": "model=gru,1: expected one of gru, lmu, lstm (did you mean gru?), change model",
    "~model": "~model removes what a run needs: leave it out",
    "~trainer.lr": "~trainer.lr removes what a run needs: leave it out",
    "--epochs 3": "--epochs is not a flag: a key is set by KEY=VALUE, as in trainer.epochs=20",
    "--cfg everything": "argument --cfg/-c: invalid choice: 'everything'",
    "--help model=null": "model=null: expected one of gru, lmu, lstm, change model",
    "dataset.held_out=emil": "dataset.held_out is not a key of this config: python run.py --cfg job shows all keys",
    "trainer.lr=${nope}": "trainer.lr: Interpolation key 'nope' not found",
    "hydra.run.dir=": "hydra.run.dir is empty: expected the name of a folder, change hydra.run.dir",
    "-m seed=0,1 hydra.sweep.dir=": "hydra.sweep.dir is empty: expected the name of a folder, change hydra.sweep.dir",
    f"hydra.run.dir={RUN} trainer=debug": f"{RUN} could not be written (File exists): set hydra.run.dir to a folder",
    "-m encoder=asrr,asr": "encoder=asrr: expected one of asr, asr_small, compact (did you mean asr?), change encoder",
    "seed=[": "seed=[ cannot be parsed: expected KEY=VALUE",
    "model": "model cannot be parsed: expected KEY=VALUE",
    "seed=range(0,0) -m": "the sweep has no run: one of its keys has an empty list or range of values",
    "-m hydra/sweeper=search hydra.sweeper.n_trials=0": "hydra.sweeper.n_trials=0: expected an integer of at least 1",
    "-m hydra/sweeper=search hydra.sweeper.n_jobs=0": "hydra.sweeper.n_jobs=0: expected an integer of at least 1",
    "experiment=search_lr dry_run=true": "dry_run=true cannot be used with a search, which must train",
    f"-m seed=0,1 hydra.sweep.dir={RUN}": f"{RUN} could not be written (File exists): set hydra.sweep.dir to a folder",
    "model.hidden_size=1000000": "the model has 6,000,152,000,010 parameters and needs",
    "encoder.num_layers=9999999": "encoder.num_layers=9999999: expected an integer from 1 to 1000",
    "encoder.front_channels=1000000": "encoder.front_channels=1000000: expected an integer from 0 to 10000",
    "trainer.threads=10000": "trainer.threads=10000: expected auto or at most",
    "trainer.batch_seconds=20": "trainer.batch_seconds asks for batches of 1250 frames, which only dataset=gigaspeech forms",
    "augment.speeds=1.1": "augment.speeds=1.1: expected null or a list of numbers from 0.5 to 2",
    "augment.speeds=[a]": "augment.speeds=['a']: expected null or a list of numbers from 0.5 to 2",
    "augment=strong augment.variants.snr_db=[40,5]": "augment.variants.snr_db=[40, 5]: expected the lowest and the highest",
    "cache_dir=3": "cache_dir=3: expected a folder or null",
    "features=mfcc13 features.extractor.f_max_hz=9000": "features.extractor.f_min_hz=60.0 and f_max_hz=9000: expected",
    "action=compare": "action=compare has no run folders: set runs=FOLDER",
    "action=status": "action=status has no sweep: set runs=FOLDER",
    "action=language_model text=/nope": "text=/nope cannot be read (No such file or directory): change text",
    "dataset.root=${oc.env:NOPE}": "dataset.root: Environment variable 'NOPE' not found",
    "features.extractor.n_mfcc=100": "features.extractor.n_mfcc=100: expected at most features.extractor.n_mels=40",
    "encoder.dropout=1.5": "encoder.dropout=1.5: expected a number of at least 0 and below 1, change encoder.dropout",
    "action=evaluate checkpoint=README.md part=dev": "part=dev: expected one of train, validation, test, change part",
    "experiment=unseen_speaker dataset.root=/nowhere": "dataset=digits_demo was not found at /nowhere",
    "hydra.run.dir=/proc/nope trainer=debug": "/proc/nope could not be written (No such file or directory): set hydra.run.dir",
}


@pytest.mark.filterwarnings("error:Callback")  # Hydra turns an error of a callback into a warning
@pytest.mark.parametrize(("typed", "expected"), ONE_LINE.items())
def test_each_error_of_the_user_is_one_line(tmp_path, monkeypatch, capfd, typed, expected):
    """Runs the command in this process, because starting a separate one takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", [str(RUN), *typed.split(), "dataset=digits_demo", "trainer.device=cpu"])
    monkeypatch.setattr(LateFolder, "one_line", False)
    monkeypatch.setattr(LateFolder, "sweep", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RUN), run_name="__main__")
    assert str(end.value.code).startswith(f"error: {expected}")
    assert "\n" not in str(end.value.code)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_this_project(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(RUN), "--version"])
    monkeypatch.setattr(LateFolder, "one_line", False)
    runpy.run_path(str(RUN), run_name="__main__")
    assert capsys.readouterr().out == f"speech_exp {version('speech_exp')}\n"


def test_ctrl_c_before_the_run_begins_is_one_line(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [str(RUN)])
    monkeypatch.setattr(LateFolder, "one_line", False)
    monkeypatch.setattr(LateFolder, "sweep", None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit, match="130"):
        start_here(stopped)
    assert capsys.readouterr().err == "stopped by the user\n"


def test_ctrl_c_between_the_runs_of_a_sweep_names_its_folder(tmp_path, monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "seed=0,1"])
    monkeypatch.setattr(LateFolder, "one_line", False)
    monkeypatch.setattr(LateFolder, "sweep", tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit, match="130"):
        start_here(stopped)
    assert capsys.readouterr().err == (
        f"stopped by the user; {tmp_path} contains the progress so far, resume with: python run.py -m seed=0,1 "
        f"hydra.sweep.dir={tmp_path} resume=true\n"
    )


def test_ctrl_c_ends_a_run_even_where_its_exception_is_lost():
    """Python drops an exception that is raised while an object is being deleted."""
    with pytest.raises(KeyboardInterrupt), interruptible(), suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tasks_of_srun_that_do_not_know_each_other_are_refused(tmp_path, cached):
    environment = {**os.environ, "SLURM_STEP_NUM_TASKS": "4"}
    status, _, err = finish(start(cached, cwd=tmp_path, env=environment))
    assert status == 1
    assert "error: srun started 4 processes that know nothing of each other: use launcher=slurm" in err
    assert not list(tmp_path.glob("runs/*/*/results.json"))


@pytest.mark.parametrize(
    "typed", [[], ["task=C", "model=lmu"], ["dataset=gigaspeech", "action=predict", "launcher=slurm"]]
)
def test_help_shows_each_key_with_its_value_and_comment(typed):
    lines = help_text([*typed, "trainer.epochs=7"]).splitlines()
    assert [line for line in lines if len(line) > 100] == []
    assert "trainer.epochs=7" in lines
    assert "trainer.device=auto                         auto | cpu | cuda" in lines
    keys = [line.partition("=")[0] for line in lines if re.match(r"[\w.]+=", line)]
    assert len(keys) == len(set(keys)) > 60
    assert ("model.theta" in keys) == ("model=lmu" in typed)
    assert ("checkpoint" in keys) == ("action=predict" in typed)


def test_help_names_every_choice_of_every_group():
    text = help_text([])
    for group in (path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        row = re.search(rf"^{group.name} .*(\n {{40}}.*)*", text, re.MULTILINE)
        assert row, group.name
        for choice in choices(group.name):
            assert choice in row.group(), f"{group.name}={choice} is not in the help page"


def test_help_shows_no_password(monkeypatch, capsys):
    monkeypatch.setenv(PASSWORD, "open sesame")
    monkeypatch.setattr(LateFolder, "one_line", False)
    typed = ["dataset=gigaspeech", "--help", "dataset.password=swordfish", "trainer.mlflow=http://me:xyzzy@host"]
    monkeypatch.setattr(sys, "argv", [str(RUN), *typed])
    runpy.run_path(str(RUN), run_name="__main__")
    out = capsys.readouterr().out
    assert f"dataset.password=${{oc.env:{PASSWORD}" in out
    assert "trainer.mlflow=${oc.env:MLFLOW_TRACKING_URI}" in out
    assert not [secret for secret in ("open sesame", "swordfish", "xyzzy") if secret in out]


def test_help_is_what_the_command_prints(tmp_path):
    status, out, _ = finish(start("--help", "model=lstm", cwd=tmp_path))
    assert status == 0
    assert out == help_text(["model=lstm", "dataset=digits_demo", "trainer.device=cpu"]) + "\n"


@pytest.mark.slow
def test_a_sweep_ends_in_a_comparison_that_compare_makes_again(tmp_path, cached):
    sweep = tmp_path / "sweep"
    status, out, err = finish(
        start("-m", "model=gru,lstm", "seed=0,1", "trainer=debug", cached, f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    )
    assert status == 0, err
    names = {path.name for path in sweep.iterdir() if path.is_dir()}
    pairs = [(model, seed) for model in ("gru", "lstm") for seed in (0, 1)]
    expected = {f"model={m},seed={s},trainer=debug,dataset=digits_demo,trainer.device=cpu" for m, s in pairs}
    assert names == expected
    markdown, table = (sweep / "comparison.md").read_bytes(), (sweep / "comparison.csv").read_bytes()
    assert b"| gru | lstm |" in markdown
    assert "full comparison" in out
    assert len(list(sweep.glob("comparison_*.png"))) == 6
    for path in sweep.glob("comparison*"):
        path.unlink()
    status, _, err = finish(start("action=compare", f"runs={sweep}", cwd=tmp_path))
    assert status == 0, err
    assert (sweep / "comparison.md").read_bytes() == markdown
    assert (sweep / "comparison.csv").read_bytes() == table


@pytest.mark.slow
def test_a_sweep_over_all_approaches_from_one_float_run_ends_in_a_comparison(tmp_path, cached):
    status, _, err = finish(start("task=B1", "trainer.epochs=2", cached, f"hydra.run.dir={tmp_path}/B1", cwd=tmp_path))
    assert status == 0, err
    typed = ["task=C", "c_approach=glob(*)", "trainer.epochs=4", f"task.float_checkpoint={tmp_path}/B1"]
    status, out, err = finish(start("-m", *typed, cached, f"hydra.sweep.dir={tmp_path}/C", cwd=tmp_path))
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
def test_ctrl_c_leaves_a_readable_run_folder(tmp_path, cached):
    run = tmp_path / "run"
    process = start("trainer.epochs=500", cached, f"hydra.run.dir={run}", cwd=tmp_path)
    history = run / "history.csv"
    deadline = time.monotonic() + 300
    while not (history.exists() and len(history.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert err.endswith(
        f"stopped by the user; {run} contains the progress so far, resume with: python {RUN} trainer.epochs=500 {cached} "
        f"dataset=digits_demo trainer.device=cpu hydra.run.dir={run} resume=true\n"
    )
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    header, *rows = history.read_text().splitlines()
    assert all(len(row.split(",")) == len(header.split(",")) for row in rows)
    assert not (run / "results.json").exists()
    epochs = [int(path.stem.rpartition("_")[2]) for path in states(run / "checkpoints")]
    assert epochs[-1] in (len(rows) - 1, len(rows))


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_numbers(tmp_path, cached):
    found = []
    for name in ("one", "two"):
        run = tmp_path / name
        status, _, err = finish(start("trainer=debug", "seed=7", cached, f"hydra.run.dir={run}", cwd=tmp_path))
        assert status == 0, err
        found.append(json.loads((run / "results.json").read_text())["metrics"])
    assert found[0] == found[1]
