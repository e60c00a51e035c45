"""The batch script that the keys under `slurm` produce, without a cluster."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from composition import composing
from hydra.types import RunMode
from omegaconf import OmegaConf

from speech_exp.command_line.main import UserError  # importing this module makes the plugin importable
from speech_exp.launching.jobs import Executor
from speech_exp.launching.options import read_options

PROJECT = Path(__file__).parents[2]
SlurmLauncher = importlib.import_module("hydra_plugins.speech_exp_slurm").SlurmLauncher


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.fixture
def executor(compose, tmp_path):
    """Return a function that builds the executor of the launcher composed from overrides."""

    def make(*overrides: str) -> Executor:
        config = compose("launcher=slurm", f"hydra.sweep.dir={tmp_path}", *overrides)
        launcher = SlurmLauncher(config.hydra.launcher.array_parallelism)
        launcher.setup(hydra_context=SimpleNamespace(callbacks=None), task_function=print, config=config)
        return launcher.executor

    return make


def options_of(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (shlex.split(line)[0].partition("=") for line in lines)}


def test_it_submits_without_m(compose):
    assert compose("launcher=slurm").hydra.mode == RunMode.MULTIRUN
    assert compose().hydra.mode is None


def test_plain_keys_become_options_of_sbatch(executor, tmp_path):
    keys = ["slurm.partition=gpu", "slurm.account=speech", "slurm.qos=high", "slurm.nodes=2", "slurm.gpus_per_node=4"]
    keys += ["slurm.cpus_per_task=8", "slurm.memory_gb=1.5", "slurm.time_min=90", "slurm.exclusive=true"]
    keys += ["slurm.signal_delay_s=300", "slurm.sbatch=['--constraint=a100','--contiguous']"]
    options = options_of(executor(*keys).batch_script(runs=1))
    expected = {"partition": "gpu", "account": "speech", "qos": "high", "nodes": "2", "gpus-per-node": "4"}
    expected |= {"cpus-per-task": "8", "mem": "1536M", "time": "90", "exclusive": "", "signal": "USR2@300"}
    expected |= {"constraint": "a100", "contiguous": "", "requeue": "", "ntasks-per-node": "4"}
    assert expected.items() <= options.items()
    assert "array" not in options
    assert options["output"] == f"{tmp_path}/.submitit/%j/%j_0_log.out"


def test_unset_options_are_left_to_the_cluster(executor):
    options = options_of(executor().batch_script(runs=1))
    assert {"partition", "account", "qos", "gpus-per-node", "mem", "exclusive"}.isdisjoint(options)


@pytest.mark.parametrize(
    ("keys", "tasks"),
    [([], "1"), (["slurm.gpus_per_node=8"], "8"), (["slurm.gpus_per_node=8", "slurm.tasks_per_node=2"], "2")],
)
def test_one_task_for_each_gpu_where_the_user_says_nothing(executor, keys, tasks):
    assert options_of(executor(*keys).batch_script(runs=1))["ntasks-per-node"] == tasks


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], "0-5%6"),
        (["slurm.array_parallelism=2"], "0-5%2"),
        (["slurm.array_parallelism=2", "hydra.launcher.array_parallelism=3"], "0-5%3"),
    ],
)
def test_a_sweep_is_an_array(executor, keys, expected):
    assert options_of(executor(*keys).batch_script(runs=6))["array"] == expected


def test_the_run_is_set_up_by_shell_lines_that_bash_understands(executor, tmp_path):
    made = executor(
        "slurm.setup=['export SEEN=$HOME']",
        "+slurm.environment.NCCL_SOCKET_IFNAME=ib0",
        "slurm.environment.NCCL_DEBUG=INFO",
        "slurm.python='apptainer exec --nv speech.sif python3'",
        "slurm.srun=['--container-image=a b']",
    )
    script = made.batch_script(runs=1)
    command = next(line for line in script.splitlines() if line.startswith("srun "))
    assert "'--container-image=a b' apptainer exec --nv speech.sif python3 -u -m submitit" in command
    assert "--kill-on-bad-exit=1" in command
    shown = script.replace(command, 'echo "$SEEN|$NCCL_SOCKET_IFNAME|$NCCL_DEBUG|$OMP_NUM_THREADS|$PYTHONPATH"')
    environment = {"HOME": "/home/me", "SLURM_CPUS_PER_TASK": "3", "PYTHONPATH": "/mine", "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-e"], input=shown, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"/home/me|ib0|INFO|3|{PROJECT}:/mine\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("slurm.nodes=two", "slurm.nodes=two: expected an integer of at least 1, change slurm.nodes"),
        ("slurm.nodes=0", "slurm.nodes=0: expected an integer of at least 1, change slurm.nodes"),
        ("slurm.memory_gb=-1", "slurm.memory_gb=-1: expected a number above 0 or null"),
        ("slurm.time_min=1h", "slurm.time_min=1h: expected an integer"),
        ("slurm.time_min=2", r"slurm.signal_delay_s=120: expected less than the time limit, slurm.time_min=2 minutes"),
        ("hydra.launcher.array_parallelism=0", "slurm.array_parallelism=0: expected an integer of at least 1"),
        ("slurm.gpus_per_node=-1", "slurm.gpus_per_node=-1: expected an integer of at least 0"),
        ("slurm.sbatch=[exclusive]", "'exclusive' under slurm.sbatch or slurm.srun: expected an option like"),
        ("slurm.setup=module load cuda", "slurm.setup=module load cuda: expected a list, each item text"),
        ("+slurm.memory=3", "slurm.memory is unknown to"),
    ],
)
def test_a_wrong_value_is_reported_in_one_sentence_naming_the_key(executor, key, expected):
    with pytest.raises(UserError, match=f"error: {expected}"):
        executor(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slurm.partition", "gpu\n#SBATCH --uid=0"),
        ("slurm.account", "it's"),
        ("slurm.qos", 'a"b'),
        ("slurm.sbatch", ["--comment=a\nrm -r x"]),
        ("slurm.sbatch", ["--comment='a b'"]),
        ("slurm.sbatch", ["--comment\nrm=1"]),
        ("slurm.srun", ["--export=a\nb"]),
        ("slurm.setup", ["true\nrm -r x"]),
        ("slurm.python", "python3\nrm"),
        ("slurm.environment.A", 'x"; rm -r y; "'),
        ("slurm.environment.A", "$(rm -r y)"),
        ("slurm.environment.A", "`rm -r y`"),
        ("slurm.environment.A", "x\\"),
        ("slurm.environment.A", "x\nrm -r y"),
    ],
)
def test_what_would_be_more_than_a_value_in_the_script_is_refused(compose, key, value):
    node = compose("launcher=slurm").slurm
    OmegaConf.update(node, key.removeprefix("slurm."), value, force_add=True)
    with pytest.raises(ValueError, match=r"slurm\.") as refused:
        read_options(OmegaConf.to_container(node))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["A-B", "A=1;B", "1A", "A B"])
def test_a_name_that_is_not_a_variable_is_refused(compose, name):
    node = OmegaConf.to_container(compose("launcher=slurm").slurm)
    node["environment"][name] = "x"
    with pytest.raises(ValueError, match=r"slurm\.environment has .*: expected the name of a variable"):
        read_options(node)


def test_a_folder_that_the_script_cannot_name_is_refused(executor):
    with pytest.raises(UserError, match=r"error: hydra\.sweep\.dir=.*contains"):
        executor('hydra.sweep.dir="/tmp/it\'s"')


@pytest.mark.parametrize("package", ["submitit", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"])
def test_without_the_packages_the_error_names_the_extra(executor, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "speech_exp.launching.jobs")
    with pytest.raises(UserError, match=r"error: launcher=slurm needs pip install 'speech_exp\[slurm\]'"):
        executor()


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run run.py with launcher=slurm where no SLURM program is installed."""
    command = [sys.executable, PROJECT / "run.py", *arguments, "launcher=slurm", "dataset=digits_demo"]
    nowhere = {**os.environ, "PATH": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=nowhere, capture_output=True, text=True, check=False)


def test_dry_run_prints_the_batch_script_on_any_machine(tmp_path):
    done = run("-m", "model=gru,lstm", "dry_run=true", "slurm.partition=gpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --array=0-1%2" in done.stdout
    assert "#SBATCH --partition=gpu" in done.stdout
    assert "dry_run=true: nothing was submitted" in done.stderr
    assert not list(tmp_path.rglob(".submitit"))


def test_without_slurm_the_error_says_where_to_start(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 1
    assert "error: launcher=slurm found no sbatch: start it on a machine of the cluster" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_that_would_share_a_folder_are_refused(tmp_path):
    done = run("-m", "slurm.nodes=1,2", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: jobs 0 and 1 of the sweep would share the folder" in done.stderr
