"""Searches resume from their stored study: no trial is lost, repeated, or mixed with incomparable ones."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from composition import composing
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna import Study
from optuna.distributions import IntUniformDistribution, LogUniformDistribution

from speech_exp.objectives.classification import Classification
from speech_exp.objectives.ctc import Ctc
from speech_exp.sweeps.search_callback import Search
from speech_exp.sweeps.study import check_settings, finished, open_study, overrides_of, requeue_interrupted

RUN = Path(__file__).parents[2] / "run.py"
SPACE = {"model.hidden_size": IntUniformDistribution(1, 1000)}


def opened(folder: Path) -> Study:
    return open_study(f"sqlite:///{folder}/study.db", "study", "maximize")


def ask(to: Study, **typed: str):
    """Start a trial as the sweeper does."""
    trial = to.ask(SPACE)
    for key, value in typed.items():
        trial.set_user_attr(key, value)
    return trial


def test_interrupted_trials_are_run_next_with_their_values(tmp_path):
    study = opened(tmp_path)
    study.tell(ask(study), 0.5)
    interrupted = [ask(study).params for _ in range(2)]
    study = opened(tmp_path)
    assert requeue_interrupted(study) == 2
    assert [ask(study).params for _ in range(2)] == interrupted
    assert len(finished(study)) == 1
    assert requeue_interrupted(opened(tmp_path)) == 2  # killed once more


def test_trials_of_other_settings_are_refused_with_what_differs(tmp_path):
    study = opened(tmp_path)
    study.tell(ask(study, trainer="debug", dataset="fsdd", study="study", cache_dir="/old"), 0.5)
    check_settings(study, {"dataset": "fsdd", "trainer": "debug", "study": "study", "cache_dir": "/new"})
    with pytest.raises(
        ValueError,
        match=r"study=study contains trials with trainer=debug, but this command has model=lmu seed=1: .*study=NAME",
    ):
        check_settings(study, {"dataset": "fsdd", "model": "lmu", "seed": "1"})


def test_a_trial_records_the_overrides_of_its_run(tmp_path):
    study = opened(tmp_path)
    study.tell(trial := ask(study, dataset="fsdd"), 0.5)
    size = trial.params["model.hidden_size"]
    assert overrides_of(study.best_trial) == [f"model.hidden_size={size}", "dataset=fsdd"]


def test_a_study_of_another_goal_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(ValueError, match="study=study contains trials that do not minimize"):
        open_study(f"sqlite:///{tmp_path}/study.db", "study", "minimize")


def begin(folder: Path, *typed: str):
    """Compose a config, apply the callback, and return the sweeper's config."""
    with composing() as compose:
        config = compose(*typed, f"hydra.sweep.dir={folder}")
    Search().on_multirun_start(config=config)
    return config.hydra.sweeper


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["hydra.sweeper.direction=minimize"], "accuracy of objective=classification must be maximized"),
        (["dataset=fsdd_strings", "hydra.sweeper.direction=maximize"], "wer of objective=ctc must be minimized"),
        (["action=evaluate"], "action=evaluate cannot be used with a search"),
        (["dry_run=true"], "dry_run=true cannot be used with a search"),
    ],
)
def test_what_a_search_cannot_choose_by_is_reported_in_one_sentence_and_leaves_nothing(tmp_path, typed, expected):
    with pytest.raises(SystemExit, match=f"error: .*{expected}"):
        begin(tmp_path / "sweep", "experiment=search_lr", *typed)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(("dataset", "goal"), [("fsdd", Classification.goal), ("fsdd_strings", Ctc.goal)])
def test_the_direction_is_that_of_the_objectives_metric(tmp_path, dataset, goal):
    assert begin(tmp_path, "experiment=search_lr", f"dataset={dataset}").direction == goal


def test_the_sweeper_gets_what_the_study_lacks_and_another_seed(tmp_path):
    study = open_study(f"sqlite:///{tmp_path}/study.db", "mine", "maximize")
    for value in (0.1, 0.2):
        study.tell(ask(study, study="mine", experiment="search_lr", seed="5"), value)
    ask(study)
    sweeper = begin(tmp_path, "experiment=search_lr", "study=mine", "seed=5", "hydra.sweeper.n_trials=7")
    assert sweeper.n_trials == 5
    assert sweeper.sampler.seed == 5 + 4  # two finished trials, one interrupted, and its repetition


@pytest.mark.parametrize(
    ("preset", "space"),
    [
        ("search_lr", {"trainer.lr": (float, 1e-4, 0.05), "trainer.weight_decay": (float, 1e-4, 1.0)}),
        (
            "search_power_of_two",
            {"task.k_min": (int, -10, -4), "task.k_max": (int, -2, 4), "task.start_epoch": (int, 1, 40)},
        ),
    ],
)
def test_presets_vary_what_they_say_in_its_type(tmp_path, preset, space):
    params = begin(tmp_path, f"experiment={preset}").params
    distributions, fixed = create_params_from_overrides([f"{key}={value}" for key, value in params.items()])
    assert {key: (type(one.low), one.low, one.high) for key, one in distributions.items()} == space
    assert list(fixed) == ["study"]


def test_a_missing_extra_is_reported_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper", None)
    with pytest.raises(SystemExit, match=r"error: a search needs the extra sweep .*pip install 'speech_exp\[sweep\]'"):
        begin(tmp_path, "experiment=search_power_of_two")


def test_the_figure_shows_every_finished_trial_with_the_scale_it_was_drawn_from(tmp_path, monkeypatch):
    with composing() as compose:
        config = compose("experiment=search_lr", f"hydra.sweep.dir={tmp_path}")
    search = Search()
    search.on_multirun_start(config=config)
    study = open_study(config.hydra.sweeper.storage, config.hydra.sweeper.study_name, "maximize")
    space = {"trainer.lr": LogUniformDistribution(1e-4, 0.05)}
    for value in (0.1, 0.3, 0.2):
        study.tell(study.ask(space), value)
    study.ask(space)  # interrupted
    drawn = []
    monkeypatch.setattr("speech_exp.sweeps.search_callback.search_figure", lambda *given: drawn.append(given))
    search.on_multirun_end(config=config)
    ((trials, metric, maximize, logarithmic, _, path),) = drawn
    assert [trial.value for trial in trials] == [0.1, 0.3, 0.2]
    assert (metric, maximize, logarithmic, path) == ("accuracy", True, ["trainer.lr"], tmp_path / "search.png")


def test_two_processes_never_share_a_study(tmp_path):
    begin(tmp_path, "experiment=search_lr")
    with pytest.raises(SystemExit, match="error: another process is searching in"):
        begin(tmp_path, "experiment=search_lr")


def start(folder: Path, *typed: str) -> subprocess.Popen:
    typed = (*typed, "dataset=digits_demo", "trainer.device=cpu", f"cache_dir={folder}/cache")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(RUN), *typed], cwd=folder, **pipes)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def wait_for_run(process: subprocess.Popen, sweep: Path, number: int) -> None:
    """Wait until the search has started its `number`-th run."""
    deadline = time.monotonic() + 300
    while len(list(sweep.glob("*/run.json"))) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def results(sweep: Path) -> dict[Path, dict]:
    return {path.parent: json.loads(path.read_text()) for path in sweep.glob("*/results.json")}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has neither signal for another process")
def test_killed_and_interrupted_the_same_command_completes_to_n_trials(tmp_path):
    command = ["experiment=search_lr", "trainer=debug", "trainer.epoch_batches=5", "hydra.sweeper.n_trials=4"]
    sweep = tmp_path / "runs" / "searches" / "search_lr_digits_demo_gru_A_seed0"
    process = start(tmp_path, *command)
    wait_for_run(process, sweep, 2)
    process.kill()
    process.communicate()
    process = start(tmp_path, *command)
    wait_for_run(process, sweep, 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopped by the user" in err
    assert "1 of 4 trials are already finished" in (out := finish(start(tmp_path, *command))) or "2 of 4" in out
    study = open_study(f"sqlite:///{sweep}/study.db", "search_lr_digits_demo_gru_A_seed0", "maximize")
    done = results(sweep)
    assert len(finished(study)) == len(done) == len(list(sweep.glob("*/run.json"))) == 4
    values = sorted(one["metrics"]["val"]["accuracy"] for one in done.values())
    assert sorted(trial.value for trial in finished(study)) == values
    assert len({trial.params["trainer.lr"] for trial in finished(study)}) == 4
    assert f"{values[-1]:.2%}" in out
    assert str((sweep / "search.png").relative_to(tmp_path)) in out and (sweep / "search.png").is_file()

    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/run.json")}
    out = finish(start(tmp_path, *command))
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/run.json")} == before
    shown = dict(line.split("  ", 1) for line in out.splitlines() if "  " in line)
    best = Path(shown["its run folder"].strip())
    assert done[sweep / best.name]["metrics"]["val"]["accuracy"] == values[-1]
    words = shlex.split(shown["to train it alone"].strip())[2:]
    finish(start(tmp_path, *words, f"hydra.run.dir={tmp_path}/alone"))
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert alone["metrics"] == done[sweep / best.name]["metrics"]


@pytest.mark.slow
def test_a_search_of_powers_of_two_survives_failing_trials(tmp_path):
    command = ["experiment=search_power_of_two", "c_approach=snap_epoch", "trainer=debug", "trainer.epoch_batches=5"]
    # Trials have one epoch, so one that starts phase two in epoch 2 fails; with this seed only the first trial does.
    drawn = ["task.start_epoch=int(interval(1, 2))", "seed=4", "hydra.sweeper.n_trials=4"]
    sweep = tmp_path / "runs" / "searches" / "search_power_of_two_digits_demo_gru_snap_epoch_seed4"
    out = finish(start(tmp_path, *command, *drawn))
    done = results(sweep)
    assert len(done) == 3
    assert all(one["c_approach"] == "snap_epoch" and one["certificate"]["passed"] for one in done.values())
    assert "task.start_epoch=2, but trainer.epochs=1: no epoch is left" in out
    assert "3 of 4 finished; repeat the command to replace those that failed" in out
