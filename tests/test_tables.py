"""Which sources a table of the README depends on, and how a table is replaced."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import tables
from speech_exp.runs.reading import Run

PROJECT = Path(__file__).parents[1]
GRU = (("model=gru", "task=B1"),)
RUNS = {"gru": GRU, "lmu": (("model=lmu", "task=C", "c_approach=row_shared"),)}
MARKED = "<!-- table {}: python run.py; commit abc; sources def -->\n{}<!-- end of table -->"


@pytest.fixture
def project(tmp_path):
    """Return a copy of the project's sources that tests may change."""
    for folder in ("conf", "speech_exp"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.wav", "__pycache__"))
    return tmp_path


@pytest.fixture(scope="module")
def unchanged():
    return {name: digest(PROJECT, runs) for name, runs in RUNS.items()}


def edit(project, path, old, new):
    text = (project / path).read_text()
    assert old in text
    (project / path).write_text(text.replace(old, new, 1))


def digest(project, runs):
    return tables.digest(tables.Sources(project).hashes(runs))


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("speech_exp/models/recurrent.py", "return ", "return 2 * ", ("gru",)),
        ("speech_exp/tasks/approaches/row_shared.py", "return ", "return 2 * ", ("lmu",)),
        ("speech_exp/tasks/approaches/ste.py", "progress >= 1", "progress > 1", ("lmu",)),  # what row_shared inherits
        ("speech_exp/tasks/approaches/inq.py", "progress >= 1", "progress > 1", ()),
        ("speech_exp/training/optimization.py", "0.5 *", "0.6 *", ("gru", "lmu")),
        ("conf/trainer/default.yaml", "weight_decay: 0.01", "weight_decay: 0.02", ("gru", "lmu")),
        ("conf/model/lmu.yaml", "activation: relu", "activation: tanh", ("lmu",)),
        ("conf/task/B2.yaml", "qat_epochs: 0", "qat_epochs: 1", ()),
        ("conf/hydra/help/speech_exp.yaml", "what is recognised", "the recordings", ()),
        ("speech_exp/training/optimization.py", '"""One phase', '"""A phase', ()),
        ("speech_exp/training/optimization.py", "\n\n\n", "\n\n\n# a comment\n", ()),
        ("conf/trainer/default.yaml", "weight_decay: 0.01", "weight_decay:   0.01  # of matrices", ()),
        ("speech_exp/runs/latency.py", "\n", "\n\n", ()),
        ("speech_exp/runs/latency.py", "return ", "return 2 * ", ()),
    ],
)
def test_a_table_is_stale_where_a_source_of_its_runs_says_something_else(unchanged, project, path, old, new, stale):
    edit(project, path, old, new)
    assert {name for name, runs in RUNS.items() if digest(project, runs) != unchanged[name]} == set(stale)


def test_a_table_knows_its_runs_by_its_command():
    assert tables.typed("python run.py -m model=gru,lmu seed=0,1,2 trainer.lr=1") == (
        ("model=gru", "seed=0", "trainer.lr=1"),
        ("model=lmu", "seed=0", "trainer.lr=1"),
    )
    chosen = {word for overrides in tables.TABLES["constraints_2304"].runs for word in overrides}
    assert {f"c_approach={name}" for name in tables.constraints.APPROACHES} <= chosen
    assert {"model=gru", "model=lstm", "model=lmu", "task=B1", "task=B2", "kd=teacher"} <= chosen


def test_the_control_is_listed_between_float_and_trained_constraints():
    def named(task, approach=None, kd=None, **config):
        results = {"task": task, "c_approach": approach, "kd": kd}
        return tables.constraints.row_name(Run("run", Path("run"), "finished", results, config=config))

    rounded, trained = {"task.fine_tune": False}, {"task.fine_tune": True}
    names = [
        named("C", "ste", "teacher", **trained),
        named("C", "ste", **trained),
        named("B2", **{"task.qat_epochs": 5}),
        named("C", "row_shared", **rounded),
        named("B2", **{"task.qat_epochs": 0}),
        named("B1"),
    ]
    expected = ["B1", "rounded: INT8 (B2)", "rounded: one power a row", "B2, 5 QAT epochs", "C ste", "C ste + kd"]
    assert sorted(names, key=tables.constraints.row_order) == expected
    assert set(tables.IN_SHORT) >= {name for name in expected if name.startswith(("B1", "rounded"))}


@pytest.mark.parametrize("page", tables.PAGES)
def test_every_table_of_a_page_is_known_and_names_its_command(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    marked = list(tables.MARKED.finditer(text))
    assert len(marked) == len(re.findall("<!-- table", text)) == len(re.findall("end of table", text)) >= 2
    for one in marked:
        assert one["command"] == tables.TABLES[one["name"]].command
        assert one["command"] in text.replace(one[0], ""), "readers see the command beside the table"


def run(commit, dirty=False, seed=0):
    return Run("run", Path("run"), "finished", {"seed": seed}, run_info={"git": {"commit": commit, "dirty": dirty}})


@pytest.fixture
def written(project, monkeypatch):
    """Return a function that writes a table of runs into README.md and RESULTS.md and returns both."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "conf", "speech_exp"], check=True)
    subprocess.run([*git, "commit", "-qm", "Begin"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (project / "benchmarks").mkdir()
    for page in tables.PAGES:
        other, own = MARKED.format("other", "| 1 |\n"), MARKED.format("one", "| 2 |\n| 3 |\n")
        (project / page).write_text(f"Before.\n\n{other}\n\n{own}\n\nAfter.\n")
    table = tables.Table("python run.py -m model=gru", GRU, lambda runs: f"| {len(runs)} new |\n")
    monkeypatch.setattr(tables, "PROJECT", project)
    monkeypatch.setattr(tables, "TABLES", {"one": table, "other": table})

    def write(*runs):
        monkeypatch.setattr(tables, "find_runs", lambda _: list(runs))
        tables.write("one", [Path("runs")])
        return [(project / page).read_text() for page in tables.PAGES]

    return write, commit


def test_a_table_is_written_in_its_place_with_the_sources_of_its_commit(project, written, capsys):
    write, commit = written
    at_commit = digest(project, GRU)
    edit(project, "conf/trainer/default.yaml", "weight_decay: 0.01", "weight_decay: 0.02")
    own = f"<!-- table one: python run.py -m model=gru; commit {commit[:10]}; sources {at_commit} -->\n| 2 new |\n\nCommit {commit[:10]}; seeds 1, 2.\n<!-- end of table -->"
    expected = f"Before.\n\n{MARKED.format('other', '| 1 |' + chr(10))}\n\n{own}\n\nAfter.\n"
    assert write(run(commit, seed=2), run(commit, seed=1)) == [expected, expected]
    assert tables.check()
    printed = capsys.readouterr().out
    assert f"one is stale: its sources changed since commit {commit[:10]}: conf/trainer/default.yaml\n" in printed
    edit(project, "conf/trainer/default.yaml", "weight_decay: 0.02", "weight_decay: 0.01")
    tables.check()
    assert "README.md: one is fresh\n" in capsys.readouterr().out


def test_runs_of_two_commits_or_of_changed_sources_make_no_table(written):
    write, commit = written
    for runs in ([run(commit), run("0" * 40)], [run(commit, dirty=True)], []):
        with pytest.raises(SystemExit, match="one: expected runs of one commit without changes"):
            write(*runs)
