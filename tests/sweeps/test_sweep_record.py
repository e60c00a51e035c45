"""sweep.json against the jobs that Hydra starts, and sweeps with failing jobs."""

import json
import os
import shlex
import socket
from pathlib import Path

import pytest
from composition import choices, composing
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.sweeps.record import (
    Job,
    finish_job,
    finish_sweep,
    read_sweep,
    rerun_command,
    start_job,
    start_sweep,
)

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "~hydra.callbacks.comparison")


@pytest.fixture
def multirun(tmp_path):
    """Return a function that runs Hydra's sweep of a function over overrides and returns the sweep folder."""

    def run(function, *overrides):
        hydra = GlobalHydra.instance().hydra
        hydra.multirun("config", function, [*overrides, *QUIET, f"hydra.sweep.dir={tmp_path}/sweep"])
        return tmp_path / "sweep"

    with composing():
        yield run


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        (["model=gru,lstm", "seed=range(0,2)"], 4),
        (["task=C", "kd=glob(*)"], len(choices("kd"))),
        (["model=lstm", "objective.pooling='mean','last'", "+note='a, b/c'"], 2),
        (["experiment=gru_vs_lstm", "seed=1"], 2),
        (["experiment=gru_vs_lstm,asr_multi_gpu"], 2),
        (["seed=0,1", "hydra.sweeper.max_batch_size=1", "hydra.sweep.subdir=job_${hydra.job.num}"], 2),
    ],
)
def test_every_job_is_recorded_before_the_first_starts(multirun, typed, count):
    recorded, started = [], []

    def function(config):
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        recorded.append(read_sweep(folder.parent).jobs)
        started.append(Job(folder.name, tuple(hydra.overrides.task)))

    folder = multirun(function, *typed)
    assert len(started) == count
    assert recorded == [tuple(started)] * count
    sweep = read_sweep(folder)
    assert (sweep.host, sweep.pid) == (socket.gethostname(), os.getpid())
    assert sweep.finished >= sweep.started


@pytest.mark.parametrize("failing", [{0}, {0, 1}])
def test_a_failing_job_takes_no_other_along(multirun, tmp_path, capsys, failing):
    started = []

    def function(config):
        started.append(config.seed)
        if config.seed in failing:
            raise ValueError(f"seed={config.seed} is unlucky")

    with pytest.raises(SystemExit, match="1"):
        multirun(function, "seed=0,1")
    assert started == [0, 1]
    for seed in started:
        outcome = json.loads((tmp_path / "sweep" / f"seed={seed}" / "outcome.json").read_text())
        assert outcome["status"] == ("failed" if seed in failing else "finished")
    out = capsys.readouterr().out
    assert f"{len(failing)} of 2 runs are not done" in out
    assert {seed for seed in started if f"ValueError: seed={seed} is unlucky" in out} == failing
    assert out.count("rerun: ") == 1
    assert f"hydra.sweep.dir={tmp_path}/sweep resume=true" in out


def test_an_earlier_failure_is_forgotten_when_the_job_starts_again(multirun, tmp_path):
    def fail(config):
        raise ValueError("first")

    def look(config):
        assert not (Path(HydraConfig.get().runtime.output_dir) / "outcome.json").exists()

    with pytest.raises(SystemExit):
        multirun(fail, "seed=0")
    multirun(look, "seed=0")
    assert json.loads((tmp_path / "sweep" / "seed=0" / "outcome.json").read_text())["status"] == "finished"


def test_a_dry_sweep_with_a_wrong_value_fails(multirun):
    seen = []

    def refuse_the_first(config):
        seen.append(config.seed)
        if config.seed == 0:
            raise ValueError("wrong")

    with pytest.raises(SystemExit, match="1"):
        multirun(refuse_the_first, "seed=0,1", "dry_run=true")
    assert seen == [0, 1]


@pytest.mark.parametrize("typed", [["seed=0,0"], ["cache_dir=a,b"], ["model=gru,lstm", "hydra.sweep.subdir=one"]])
def test_two_jobs_with_one_folder_are_refused_before_any_work(multirun, tmp_path, typed):
    with pytest.raises(SystemExit, match="error: jobs 0 and 1 of the sweep would share the folder"):
        multirun(lambda _: pytest.fail("started"), *typed)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(("typed", "error"), [("nokey=1,2", "nokey"), ("seed=interval(0,1)", "INTERVAL_SWEEP")])
def test_a_sweep_that_cannot_be_composed_is_reported_in_one_sentence(multirun, typed, error):
    with pytest.raises(SystemExit, match=f"error: .*{error}"):
        multirun(lambda _: pytest.fail("started"), typed)


def test_a_failed_run_that_is_not_a_sweep_still_raises(tmp_path):
    def fail(config):
        raise ValueError("alone")

    with composing(), pytest.raises(ValueError, match="alone"):
        GlobalHydra.instance().hydra.run("config", fail, [*QUIET, f"hydra.run.dir={tmp_path}/run"])
    assert not (tmp_path / "run" / "outcome.json").exists()


def test_a_record_reads_as_it_was_written(tmp_path):
    jobs = [Job("seed=0", ("seed=0", "model=gru")), Job("ä", ("note='ä, b'",))]
    start_sweep(tmp_path, jobs)
    started = read_sweep(tmp_path)
    assert started.jobs == tuple(jobs)
    assert started.finished is None
    finish_sweep(tmp_path)
    assert read_sweep(tmp_path).finished is not None
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_an_outcome_contains_the_cause_and_its_last_lines(tmp_path):
    try:
        try:
            {}["k"]
        except KeyError as error:
            raise RuntimeError("error: for users") from error
    except RuntimeError as error:
        finish_job(tmp_path, error)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["status"], outcome["error"]) == ("failed", "KeyError: 'k'")
    assert outcome["trace"][-1] == "KeyError: 'k'"
    start_job(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("python run.py -m seed=0,1", "python run.py -m seed=0,1 hydra.sweep.dir=S resume=true"),
        ("python run.py seed=0,1 -m", "python run.py seed=0,1 hydra.sweep.dir=S resume=true -m"),
        ("python run.py -m hydra.sweep.dir=old resume=true a=1", "python run.py -m a=1 hydra.sweep.dir=S resume=true"),
        ("python run.py -m 'c=glob(*)' -cd d", "python run.py -m 'c=glob(*)' hydra.sweep.dir=S resume=true -cd d"),
        ("python run.py -m", "python run.py -m hydra.sweep.dir=S resume=true"),
    ],
)
def test_the_command_that_resumes(typed, expected):
    assert rerun_command(shlex.split(typed), Path("S")) == expected


@given(st.text(alphabet="ab/ ,='\"\\()$", min_size=1, max_size=12).map(lambda text: f"s/{text.strip()}x"))
def test_hydra_reads_the_folder_from_the_command_whatever_its_name(name):
    word = shlex.split(rerun_command(["python", "run.py", "-m"], Path(name)))[3]
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert str(override.value()) == str(Path(name))
