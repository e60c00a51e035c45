"""Check and rewrite the tables of README.md and RESULTS.md that are made from runs.

    python benchmarks/tables.py --check                   # exit status 3 if a table is stale
    python benchmarks/tables.py NAME RUN_FOLDER ...       # writes the table in its place

A table is between two comments. The first contains the command that made its runs, their commit, and a hash of the sources
that decide their numbers: the config files that the command composes, the classes that these name, and what those import.
Reports and figures do not count, because they only read results; nor do comments, docstrings and layout.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
from benchmarks import constraints  # noqa: E402
from speech_exp.comparison.formats.markdown import main_rows  # noqa: E402
from speech_exp.comparison.grouping import group_runs  # noqa: E402
from speech_exp.comparison.score_intervals import with_intervals  # noqa: E402
from speech_exp.runs.reading import Run, find_runs  # noqa: E402

PAGES = ("README.md", "benchmarks/RESULTS.md")
STALE = 3  # exit status; 1 means an error
ROOTS = ("speech_exp.experiment", "speech_exp.training.loop")
LEFT_OUT = tuple(f"speech_exp.{name}" for name in ("figures", "runs", "comparison", "sweeps"))
MARKED = re.compile(
    r"<!-- table (?P<name>\S+): (?P<command>.+); commit (?P<commit>\w+); sources (?P<sources>\w+) -->\n"
    r"(?P<text>(?:.*\n)*?)<!-- end of table -->"
)
Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table: `runs` are overrides that together cover the choices of all of the command's runs; `text` makes the table."""

    command: str
    runs: tuple[Overrides, ...]
    text: Callable[[list[Run]], str]


class Sources:
    """The sources of the project in `root`; finds those that decide the numbers of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[tuple[Overrides, ...], dict[str, str]] = {}

    def hashes(self, runs: tuple[Overrides, ...]) -> dict[str, str]:
        """Return {path: hash of its content} for everything that these runs depend on."""
        if runs not in self.found:
            self.found[runs] = {path: sha256(self._content(path)) for path in sorted(self._paths(runs))}
        return self.found[runs]

    def has(self, path: str) -> bool:
        return (self.root / path).is_file()

    def _paths(self, runs: tuple[Overrides, ...]) -> set[str]:
        configs, modules = {"conf/config.yaml"}, set(ROOTS)
        with initialize_config_dir(str(self.root / "conf"), version_base="1.3"):
            for overrides in runs:
                config = compose("config", list(overrides), return_hydra_config=True)
                chosen = [f"{group}/{choice}" for group, choice in config.hydra.runtime.choices.items()]
                paths = [f"conf/{choice}.yaml" for choice in chosen if not choice.startswith("hydra/")]
                configs |= {path for path in paths if self.has(path)}
                plain = OmegaConf.to_container(config, resolve=False)
                assert isinstance(plain, dict)
                modules |= set(_classes({key: node for key, node in plain.items() if key != "hydra"}))
        return configs | self._reached(modules)

    def _reached(self, modules: set[str]) -> set[str]:
        """Return the files of these modules and of everything that they import."""
        waiting, found = sorted(modules), set()
        while waiting:
            module = waiting.pop()
            path = f"{module.replace('.', '/')}.py"
            if path in found or not self.has(path) or module.startswith(LEFT_OUT):
                continue
            found.add(path)
            waiting += _imports(self._text(path))
        return found

    def _content(self, path: str) -> str:
        text = self._text(path)
        return _bare(text) if path.endswith(".py") else json.dumps(yaml.safe_load(text), sort_keys=True)

    def _text(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")


@cache
def _bare(text: str) -> str:
    """Return the code of a module without comments, docstrings and layout."""
    return ast.unparse(_Bare().visit(ast.parse(text)))


class _Bare(ast.NodeTransformer):
    """Removes the docstrings and other standalone strings from a module."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _classes(node: Any) -> Iterator[str]:
    """Yield the modules of the classes that a config names."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield str(value).rpartition(".")[0]
            yield from _classes(value)


@cache
def _imports(text: str) -> tuple[str, ...]:
    """Return the names of possible modules in the imports anywhere in a file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest(hashes: dict[str, str]) -> str:
    return sha256(json.dumps(hashes, sort_keys=True))[:12]


def sources_at(commit: str, runs: tuple[Overrides, ...]) -> dict[str, str]:
    """Return the hashes of the sources at a commit; empty if the commit is unknown here or cannot compose these runs."""
    asked = ["git", "archive", commit, "conf", "speech_exp"]
    archive = subprocess.run(asked, cwd=PROJECT, capture_output=True)
    if archive.returncode:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")
        try:
            return Sources(Path(folder)).hashes(runs)
        except HydraException:
            return {}


def typed(command: str) -> tuple[Overrides, ...]:
    """Return the overrides of each run of a `python run.py -m` command, with the first seed only."""
    words = [word.partition("=") for word in shlex.split(command)[2:] if word != "-m"]
    values = [value.split(",")[: 1 if key == "seed" else None] for key, _, value in words]
    return tuple(
        tuple(f"{key}={one}" for (key, _, _), one in zip(words, ones, strict=True)) for ones in product(*values)
    )


def constrained(stages: dict[str, list[constraints.Sweep]]) -> tuple[Overrides, ...]:
    """Return the overrides of every model in the float stage, and of one model in the other stages."""
    sweeps = [*stages["B1"], *(stages[stage][0] for stage in constraints.STAGES[1:])]
    return tuple((*sweep.overrides, f"{sweep.key}={value}") for sweep in sweeps for value in sweep.values)


def measured(runs: list[Run], titles: tuple[str, ...]) -> str:
    """Return a table with the groups as columns, and those rows of a comparison that have these titles."""
    groups = with_intervals(group_runs(runs)).groups
    lines = [["", *(group.label for group in groups)], ["---", *["---:"] * len(groups)]]
    lines += [[row.title, *row.texts] for row in main_rows(groups) if row.title in titles]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


RUNS, SIZES = "runs (seeds)", ("directions", "parameters", "model (bytes)", "training (s)")
RECOGNITION = ("word error rate (%)", "character error rate (%)", "parameters", "training (s)")
UNSEEN = (RUNS, "accuracy (%)", "worst speaker (%)", "F1, mean of classes (%)", *SIZES)
IN_SHORT = ("B1", *(name for name in map("rounded: {}".format, constraints.LEVELS.values())))
IN_SHORT += ("rounded: INT8 (B2)", "C apot2", "C ste", "C row_shared")
BRIEFLY = {"gru": ("accuracy",), "lstm": ("accuracy",), "lmu": ("accuracy", "bits_per_weight", "packed_bytes")}


def of_run(command: str, titles: tuple[str, ...]) -> Table:
    return Table(command, typed(command), partial(measured, titles=titles))


def under(budget_bytes: int, brief: bool = False) -> Table:
    command = f"python benchmarks/constraints.py --budget-bytes {budget_bytes}"
    runs = constrained(constraints.digits(Path("OUT"), ("0",), (f"task.budget_bytes={budget_bytes}",)))
    shown = {"names": IN_SHORT, "columns": BRIEFLY} if brief else {}
    return Table(command, runs, partial(constraints.table, **shown))


TABLES = {
    "digits": of_run("python run.py -m model=gru,lstm,lmu seed=0,1,2,3,4", ("accuracy (%)", *SIZES)),
    "strings": of_run("python run.py -m dataset=fsdd_strings model=lmu,gru,lstm seed=0,1,2", RECOGNITION),
    "unseen": of_run("python run.py -m experiment=unseen_speaker", UNSEEN),
    "constraints_36864": under(36864),
    "constraints_2304": under(2304),
    "constraints_2304_brief": under(2304, brief=True),
}


def problem(marked: re.Match[str], now: Sources) -> str | None:
    """Return why a table is stale; None if it is not."""
    table = TABLES[marked["name"]]
    if marked["command"] != table.command:
        return f"was made by `{marked['command']}`, not by `{table.command}`"
    hashes = now.hashes(table.runs)
    if digest(hashes) == marked["sources"]:
        return None
    before = sources_at(marked["commit"], table.runs)
    changed = sorted(path for path in hashes.keys() | before.keys() if hashes.get(path) != before.get(path))
    named = f": {', '.join(changed[:5])}{', ...' * (len(changed) > 5)}" if before else ""
    return f"its sources changed since commit {marked['commit']}{named}"


def check() -> bool:
    """Print the state of every table; return whether any is stale."""
    now, stale = Sources(PROJECT), False
    for page in PAGES:
        for marked in MARKED.finditer((PROJECT / page).read_text(encoding="utf-8")):
            why = problem(marked, now)
            stale |= why is not None
            print(f"{page}: {marked['name']} is {'fresh' if why is None else f'stale: {why}'}")
    return stale


def write(name: str, folders: list[Path]) -> None:
    """Write the table of the runs in these folders in its place on every page."""
    runs = [run for folder in folders for run in find_runs(folder)]
    commits = {(run.run_info.get("git") or {}).get("commit") for run in runs}
    if None in commits or len(commits) != 1 or any((run.run_info.get("git") or {}).get("dirty") for run in runs):
        raise SystemExit(f"{name}: expected runs of one commit without changes, got {commits}")
    lacking = [run.name for run in runs if run.results is None]
    if lacking:
        print(f"without results, and so not in the table: {', '.join(lacking)}")
    table, (commit,) = TABLES[name], commits
    head = f"<!-- table {name}: {table.command}; commit {commit[:10]}; sources {digest(sources_at(commit, table.runs))} -->"
    seeds = ", ".join(map(str, sorted({run.results["seed"] for run in runs if run.results is not None})))
    text = f"{head}\n{table.text(runs)}\nCommit {commit[:10]}; seeds {seeds}.\n<!-- end of table -->"
    for page in PAGES:
        before = (PROJECT / page).read_text(encoding="utf-8")
        after = MARKED.sub(lambda marked: text if marked["name"] == name else marked[0], before)
        (PROJECT / page).write_text(after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("name", nargs="?", choices=list(TABLES))
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.name:
        write(arguments.name, arguments.folders)
    if arguments.check:
        raise SystemExit(STALE if check() else 0)


if __name__ == "__main__":
    main()
