"""The README is correct: its commands compose, its files exist, its tables name every choice."""

import re
import shlex
from pathlib import Path

import pytest
from composition import choices, composing

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]
RUNS = [command for command in COMMANDS if " run.py " in command]


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


def test_it_is_short_and_has_its_commands():
    assert len(README.splitlines()) <= 200
    assert len(RUNS) >= 12


@pytest.mark.parametrize("command", RUNS)
def test_every_command_composes(compose, command):
    words = shlex.split(command.partition(" run.py ")[2].partition("#")[0])
    swept = [word for word in words if not word.startswith("-")]
    first = []
    for word in swept:
        key, _, values = word.partition("=")
        first.append(f"{key}={choices(key)[0] if values == 'glob(*)' else values.partition(',')[0]}")
    config = compose(*first)
    for word in first:
        key = word.partition("=")[0]
        assert key in config.hydra.runtime.choices or key.split(".")[0] in config, word


def test_ci_runs_the_two_set_up_commands():
    ci = (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    set_up = [command for command in COMMANDS if command.startswith("pip install") and "&&" in command]
    assert len(set_up) == 2
    for command in set_up:
        for part in command.split(" && "):
            install, _, rest = part.partition("pip install ")
            assert (f"pip install -q {rest}" if not install and rest else part) in ci, part


EXTENDED = ("dataset", "model", "c_approach")  # users add choices to these groups without changing the README
COMPLETE = ("features", "augment", "encoder", "objective", "decoder", "task", "kd", "trainer", "action")


@pytest.mark.parametrize("group", [*EXTENDED, *COMPLETE])
def test_the_table_names_the_choices(group):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
    named = set(re.findall(r"`([^`]+)`", row.split("|")[2]))
    assert named and named <= set(choices(group))
    assert group in EXTENDED or named == set(choices(group))


def test_every_path_in_it_exists():
    paths = re.findall(r"`((?:conf|speech_exp|benchmarks|tests)/[^`*]*)`", README) + re.findall(
        r"\]\(([^)]+)\)", README
    )
    assert len(paths) >= 10
    for path in paths:
        assert (PROJECT / path).exists(), path
    benchmarks = set(re.findall(r"python (benchmarks/\w+\.py)", README))
    programs = [
        path for path in (PROJECT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    ]
    assert benchmarks == {f"benchmarks/{path.name}" for path in programs}


def test_no_placeholder_is_left():
    assert re.findall(r"RESULTS_\w+|SPEED_\w+|TODO|XXX", README) == []
