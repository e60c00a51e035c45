"""The package installed from a wheel, and its metadata."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from run_files import best

import speech_exp
from speech_exp.__main__ import main
from speech_exp.data.digits import BUNDLED

PROJECT = Path(__file__).parents[1]
RECORDING = BUNDLED / "digits_demo" / "3_emil_0.flac"


def test_citation_and_package_are_of_one_version():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"] == speech_exp.__version__
    assert citation["license"] == project["license"]
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in project["authors"]]


def test_what_needs_the_clone_is_reported_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 2
    assert "training needs a clone of the project: python run.py there" in " ".join(capsys.readouterr().err.split())


def test_a_missing_checkpoint_is_reported_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "nowhere.pt", str(RECORDING)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: checkpoint=nowhere.pt is not a file")


def finish(*command, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_predicts_as_the_clone_does(tmp_path):
    source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
    shutil.copytree(PROJECT / "speech_exp", source / "speech_exp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    finish("-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, source, cwd=tmp_path)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"speech_exp/py.typed", "speech_exp/data/digits_demo/3_emil_0.flac"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"speech_exp", "speech_exp-0.1.0.dist-info"}
    finish("-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=tmp_path)

    typed = ("trainer=debug", "dataset=digits_demo", "trainer.device=cpu", "hydra.run.dir=run")
    finish(PROJECT / "run.py", *typed, cwd=tmp_path)
    predicting = ("action=predict", f"checkpoint={best(tmp_path / 'run')}", f"audio={RECORDING}")
    expected = finish(PROJECT / "run.py", *predicting, "hydra.run.dir=predicted", cwd=tmp_path)
    installed = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = finish("-c", "import speech_exp; print(speech_exp.__file__)", cwd=tmp_path, **installed)
    assert Path(where.strip()).is_relative_to(site)
    found = finish("-m", "speech_exp", "predict", best(tmp_path / "run"), RECORDING, cwd=tmp_path, **installed)
    assert found == expected
