"""A typed password or tracking URI works and is written nowhere."""

import subprocess
import sys
from pathlib import Path

import pytest
from composition import composing, experiment

from speech_exp.command_line.credentials import PASSWORD, refuse_written_secrets, without_secrets
from speech_exp.safe_text import without_credentials
from speech_exp.sweeps.record_callback import RecordSweep

RUN = Path(__file__).parents[2] / "run.py"
SECRET = "open/sesame"


def run(*arguments, cwd):
    typed = [*arguments, "dataset=gigaspeech", f"dataset.password={SECRET}"]
    return subprocess.run([sys.executable, str(RUN), *typed], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("typed", "password"),
    [
        ("dataset.password=open/sesame", "open/sesame"),
        ("++dataset.password='open, sesame'", "open, sesame"),
        ('dataset.password="0123"', "0123"),
        ("dataset.password=a=b'", "a=b'"),
        ("dataset.password=", ""),
    ],
)
def test_a_typed_password_is_moved_to_the_environment(typed, password):
    environment = {PASSWORD: "of before"}
    assert without_secrets(["-m", typed, "seed=0,1"], environment) == ["-m", "seed=0,1"]
    assert environment == {PASSWORD: password}


@pytest.mark.parametrize("quote", ["", "'"])
def test_a_typed_tracking_uri_with_a_password_is_moved_to_the_environment_and_the_user_warned(capsys, quote):
    environment = {}
    kept = without_secrets([f"trainer.mlflow={quote}http://me:{SECRET}@host:5000{quote}", "seed=1"], environment)
    assert kept == ["trainer.mlflow=${oc.env:MLFLOW_TRACKING_URI}", "seed=1"]
    assert environment == {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@host:5000"}
    warning = capsys.readouterr().err
    assert "can read trainer.mlflow in the list of processes: set MLFLOW_TRACKING_URI" in warning
    assert SECRET not in warning


@pytest.mark.parametrize(
    "typed", ["trainer.mlflow=http://host:5000", "trainer.mlflow=null", "+note=http://me:you@host"]
)
def test_a_uri_without_a_password_stays_as_it_was_typed(typed, capsys):
    environment = {}
    assert without_secrets([typed], environment) == [typed]
    assert environment == {}
    assert capsys.readouterr().err == ""


def test_credentials_in_a_text_are_starred():
    text = f"no answer from http://me:{SECRET}@host/api and mysql://you:b@c@db/x, mail me@here"
    assert without_credentials(text) == "no answer from http://***@host/api and mysql://***@db/x, mail me@here"


def test_records_and_checkpoints_contain_a_config_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@host")
    with composing() as compose:
        built = experiment(compose("trainer.mlflow=${oc.env:MLFLOW_TRACKING_URI}"), tmp_path)
    assert built.trainer.mlflow == f"http://me:{SECRET}@host"
    assert built.plain_config()["config"]["trainer"]["mlflow"] == "http://***@host"


def test_a_refused_tracking_server_leaks_no_password(few_digits, tmp_path):
    """Holds whether or not the package mlflow is installed."""
    typed = ["dataset=digits_demo", "trainer=debug", "trainer.device=cpu", "hydra.run.dir=run", "cache_dir=cache"]
    typed += [f"dataset.root={few_digits}"]
    uri = f"trainer.mlflow=http://me:{SECRET}@127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, str(RUN), *typed, uri], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "trainer.mlflow=http://***@127.0.0.1:9" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_sweep_that_its_tracking_server_refuses_keeps_no_password(tmp_path):
    typed = [
        "-m",
        "dataset=digits_demo",
        "trainer=debug",
        "trainer.device=cpu",
        "hydra.sweep.dir=sweep",
        "cache_dir=cache",
    ]
    uri = f"trainer.mlflow=http://me:{SECRET}@127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, str(RUN), *typed, uri, "seed=0,1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert (tmp_path / "sweep" / "sweep.json").is_file()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("key", "value", "variable"),
    [("trainer.mlflow", f"http://me:{SECRET}@host", "MLFLOW_TRACKING_URI"), ("dataset.password", SECRET, PASSWORD)],
)
def test_a_sweep_refuses_a_password_in_a_file_of_conf(key, value, variable):
    group, name = key.split(".")
    refuse_written_secrets({group: {name: f"${{oc.env:{variable}}}"}})
    refuse_written_secrets({"trainer": {"mlflow": "http://host"}, "dataset": {"password": None}})
    with pytest.raises(ValueError, match=f"set {variable} in the environment") as refusal:
        refuse_written_secrets({group: {name: value}})
    assert SECRET not in str(refusal.value)


def test_a_sweep_of_a_preset_with_a_password_ends_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with composing() as compose:
        config = compose("seed=0", "hydra.sweep.dir=sweep")
        config.trainer.mlflow = f"http://me:{SECRET}@host"  # as if set in a file of conf/
        with pytest.raises(SystemExit, match=r"trainer\.mlflow contains a password in a file of conf/"):
            RecordSweep().on_multirun_start(config)
    assert list(tmp_path.iterdir()) == []


def test_anything_else_stays_as_it_was_typed():
    typed = ["dataset=gigaspeech", "dataset.password=null", "+note=dataset.password=x", "--help"]
    environment = {}
    assert without_secrets(typed, environment) == typed
    assert environment == {}


def test_the_data_set_gets_it(tmp_path):
    """With a password the download is attempted: it fails because there is no server, without revealing the secret."""
    where = (f"dataset.root={tmp_path / 'release'}", "dataset.host=http://127.0.0.1:9/x")
    done = run("action=prepare", *where, cwd=tmp_path)
    assert done.returncode == 1
    assert "http://127.0.0.1:9/x" in done.stderr
    assert "warning: every user of this machine can read dataset.password" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_no_file_of_a_sweep_contains_the_password(small_release, tmp_path):
    where = (f"dataset.root={small_release}", f"dataset.prepared={tmp_path / 'prepared'}", "dataset.workers=0")
    tiny = ("trainer=debug", "encoder=asr_small", "encoder.width=16", "encoder.num_layers=1", "model.hidden_size=8")
    sweep = tmp_path / "sweep"
    done = run("-m", *tiny, *where, "trainer.device=cpu", "seed=0", f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = list(sweep.rglob("*"))
    assert {"multirun.yaml", "sweep.json", "run.json"} <= {path.name for path in paths}
    assert [path for path in paths if "password=" in path.name] == []
    assert [path for path in paths if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
