"""Measure the seconds from `python run.py` to the first optimizer step with a warm cache, and where they go.

    python benchmarks/startup.py [--rounds 5] [run.py overrides ...]

Each round is a new process. `--imports` lists the slowest imports of one of them (python -X importtime).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).parents[1] / "run.py"
# The child stops at its first step and prints the time since its parent started it.
CHILD = """
import json, os, runpy, sys, time
started = float(sys.argv[1])
marks = {"python started": time.time() - started}
import functools, speech_exp.experiment as root
marks["hydra imported"] = time.time() - started
build_trainer = root.Experiment.trainer.func
def trainer(self):
    marks["config composed"] = time.time() - started
    built = build_trainer(self)
    marks["torch imported, trainer built"] = time.time() - started
    def first_step(*args, **kwargs):
        marks["first step"] = time.time() - started
        print("MARKS" + json.dumps(marks), flush=True)
        os._exit(0)
    from speech_exp.training.optimization import Optimization
    Optimization.step = first_step
    return built
root.Experiment.trainer = functools.cached_property(trainer)
root.Experiment.trainer.__set_name__(root.Experiment, "trainer")
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", action="store_true")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [str(RUN), f"hydra.run.dir={folder}", *overrides]
        rounds = [child(command) for _ in range(arguments.rounds + 1)][1:]  # the first round may have to fill the cache
        print("| until | seconds (median) | all rounds |\n| --- | ---: | --- |")
        for mark in rounds[0]:
            values = [marks[mark] for marks in rounds]
            print(f"| {mark} | {statistics.median(values):.2f} | {', '.join(f'{value:.2f}' for value in values)} |")
        if arguments.imports:
            done = subprocess.run(
                [sys.executable, "-X", "importtime", "-c", CHILD, str(time.time()), *command], capture_output=True, text=True, check=True
            )  # fmt: skip
            lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")][1:]
            lines.sort(key=lambda line: -int(line.split("|")[1]))
            print("\nslowest imports (self us | cumulative us | module):", *lines[:25], sep="\n")


def child(command: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(time.time()), *command], capture_output=True, text=True, check=True
    )
    marks = [line.removeprefix("MARKS") for line in done.stdout.splitlines() if line.startswith("MARKS")]
    if not marks:
        raise SystemExit(f"run.py ended before its first step:\n{done.stdout}{done.stderr}")
    return dict(json.loads(marks[0]))


if __name__ == "__main__":
    main()
