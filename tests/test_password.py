"""A password that was typed works, and is written nowhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from speech_exp.password import VARIABLE, without_password

RUN = Path(__file__).parents[1] / "run.py"
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
    environment = {VARIABLE: "of before"}
    assert without_password(["-m", typed, "seed=0,1"], environment) == ["-m", "seed=0,1"]
    assert environment == {VARIABLE: password}


def test_anything_else_stays_as_it_was_typed():
    typed = ["dataset=gigaspeech", "dataset.password=null", "+note=dataset.password=x", "--help"]
    environment = {}
    assert without_password(typed, environment) == typed
    assert environment == {}


def test_the_data_set_gets_it(tmp_path):
    """Without it nothing would be downloaded: here it fails at a server that is not there, and names no secret."""
    where = (f"dataset.root={tmp_path / 'release'}", "dataset.host=http://127.0.0.1:9/x")
    done = run("action=prepare", *where, cwd=tmp_path)
    assert done.returncode == 1
    assert "http://127.0.0.1:9/x" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_no_file_below_the_folders_of_a_sweep_holds_it(small_release, tmp_path):
    where = (f"dataset.root={small_release}", f"dataset.prepared={tmp_path / 'prepared'}", "dataset.workers=0")
    tiny = ("trainer=debug", "encoder=asr_small", "encoder.width=16", "encoder.num_layers=1", "model.hidden_size=8")
    sweep = tmp_path / "sweep"
    done = run("-m", *tiny, *where, "trainer.device=cpu", "seed=0", f"hydra.sweep.dir={sweep}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = list(sweep.rglob("*"))
    assert {"multirun.yaml", "sweep.json", "run.json", "overrides.yaml", "hydra.yaml"} <= {path.name for path in paths}
    assert [path for path in paths if "password=" in path.name] == []
    assert [path for path in paths if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
