"""Accuracy under constraints: 3 models x tasks x approaches x seeds, in one command that can be stopped and resumed.

    python benchmarks/constraints.py [--budget-bytes 36864] [--out DIR] [--jobs 2] [--seeds 0,1,2] [--stages B1,rounded] [OVERRIDE ...]
    python benchmarks/constraints.py --unseen

Each float run (task B1) is trained once; all other runs with its model and seed start from it. "Rounded" rows are the
control: the float weights, rounded once without further training. Finished runs are not repeated. At the end the table is
printed and written to OUT/table.md, next to the whole comparison. --unseen does the same for speakers that are not in the
training data (experiment=unseen_speaker, GRU, each of six speakers). Overrides such as trainer=debug apply to all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from speech_exp.comparison import measures
from speech_exp.comparison.compare import compare, find_runs
from speech_exp.comparison.formats.markdown import estimate_text
from speech_exp.comparison.grouping import group_runs
from speech_exp.comparison.score_intervals import with_intervals
from speech_exp.runs.reading import Run

PROJECT = Path(__file__).parents[1]
MODELS = ("gru", "lstm", "lmu")
APPROACHES = tuple(sorted(path.stem for path in (PROJECT / "conf" / "c_approach").glob("*.yaml")))
LEVELS = {
    "snap_epoch": "powers of two",
    "apot2": "two powers",
    "row_shared": "one power a row",
}  # what the control rounds to
DISTILLED = ("ema", "row_shared")
UNSEEN_APPROACHES = ("ste", "apot2")
STAGES = ("B1", "rounded", "C", "B2", "C_kd")  # the most important first, in case the benchmark is stopped
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
QAT_EPOCHS = 5
TITLES = {"accuracy": "(%)", "lost_against_float": "lost", "bits_per_weight": "bits", "packed_bytes": "bytes"}
COLUMNS: dict[str, Sequence[str]] = dict.fromkeys(MODELS, tuple(TITLES))


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one key, each in a subfolder named after its value."""

    folder: Path
    overrides: tuple[str, ...]
    key: str
    values: tuple[str, ...]

    def missing(self) -> list[str]:
        return [value for value in self.values if not finished(self.folder / value / "run.json")]

    def command(self) -> list[str]:
        varied = f"{self.key}={','.join(self.missing())}"
        placed = [
            f"hydra.sweep.dir={self.folder}",
            f"hydra.sweep.subdir=${{{self.key}}}",
            "~hydra.callbacks.comparison",
        ]
        if self.key == "c_approach":
            placed[1] = "hydra.sweep.subdir=${hydra.runtime.choices.c_approach}"
        return [sys.executable, str(PROJECT / "run.py"), "-m", *self.overrides, varied, *placed]


def finished(record: Path) -> bool:
    return record.exists() and json.loads(record.read_text())["status"] == "finished"


def digits(out: Path, seeds: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, list[Sweep]]:
    """Return the float runs and the runs that start from them, by stage."""
    typed = [(model, (*overrides, f"model={model}")) for model in MODELS]
    floats = [Sweep(out / "B1" / model, (*own, "task=B1"), "seed", seeds) for model, own in typed]
    starts = [(f"{model}/{seed}", (*own, f"seed={seed}")) for model, own in typed for seed in seeds]
    return {"B1": floats, **constrained(out, starts, APPROACHES)}


def constrained(
    out: Path, starts: list[tuple[str, tuple[str, ...]]], approaches: tuple[str, ...]
) -> dict[str, list[Sweep]]:
    """Return the runs that start from the float runs in OUT/B1, by stage; `starts` are those runs' folders and overrides."""
    found: dict[str, list[Sweep]] = {stage: [] for stage in STAGES[1:]}
    for place, overrides in starts:
        start = out / "B1" / place
        own = (*overrides, f"task.float_checkpoint={start}")
        taught = (*own, "task=C", "kd=teacher", f"kd.run={start}")
        found["rounded"].append(
            Sweep(out / "rounded" / place, (*own, "task=C", "task.fine_tune=false"), "c_approach", tuple(LEVELS))
        )
        found["C"].append(Sweep(out / "C" / place, (*own, "task=C"), "c_approach", approaches))
        found["B2"].append(Sweep(out / "B2" / place, (*own, "task=B2"), "task.qat_epochs", ("0", str(QAT_EPOCHS))))
        found["C_kd"].append(Sweep(out / "C_kd" / place, taught, "c_approach", DISTILLED))
    return found


def unseen(out: Path, seeds: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, list[Sweep]]:
    """Like `digits`, for each speaker; explicit overrides replace the preset's own sweep over speakers and seeds."""
    shared = ("experiment=unseen_speaker", *overrides)
    typed = [(speaker, (*shared, f"dataset.test_speaker={speaker}")) for speaker in SPEAKERS]
    floats = [Sweep(out / "B1" / speaker, (*own, "task=B1"), "seed", seeds) for speaker, own in typed]
    starts = [(f"{speaker}/{seed}", (*own, f"seed={seed}")) for speaker, own in typed for seed in seeds]
    return {"B1": floats, **constrained(out, starts, UNSEEN_APPROACHES)}


def run_all(stages: Iterable[list[Sweep]], jobs: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run_one(sweep: Sweep) -> str | None:
        if not sweep.missing():
            return None
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with (sweep.folder / "sweep.log").open("w") as log:
            status = subprocess.run(sweep.command(), env=environment, stdout=log, stderr=log, cwd=PROJECT).returncode
        print(f"{sweep.folder}: {'done' if status == 0 else f'failed, see {log.name}'}", flush=True)
        return None if status == 0 else str(sweep.folder)

    for stage in stages:
        with ThreadPoolExecutor(jobs) as pool:
            failed = [folder for folder in pool.map(run_one, stage) if folder]
        if failed:
            raise SystemExit(f"{len(failed)} sweeps failed; run the same command again for what is missing")


def row_name(run: Run) -> str:
    assert run.results is not None
    task, approach = run.results["task"], run.results["c_approach"]
    if task == "B2":
        qat = int(run.config["task.qat_epochs"])
        return f"B2, {qat} QAT epochs" if qat else "rounded: INT8 (B2)"
    if task == "C" and not run.config["task.fine_tune"]:
        return f"rounded: {LEVELS[approach]}"
    return f"C {approach}{' + kd' if run.results['kd'] else ''}" if task == "C" else task


def row_order(name: str) -> tuple[int, str]:
    """Return the sort key of a row: float, then the control without training, then training for the constraint."""
    return next((number for number, start in enumerate(("B1", "rounded", "B2")) if name.startswith(start)), 3), name


def table(runs: list[Run], names: Sequence[str] = (), columns: dict[str, Sequence[str]] = COLUMNS) -> str:
    """Return a table with one row per task and approach and one group of columns per model.

    `names` selects rows, `columns` the measures of each model. A cell stays empty until all of its runs are finished:
    means over different seeds cannot be compared.
    """
    groups = with_intervals(group_runs(runs)).groups
    whole = max(len(group.runs) for group in groups)
    estimates = {row.measure.key: (row.measure, row.estimates) for row in measures.rows(groups)}
    cells: dict[tuple[str, str, str], str] = {}
    for number, group in enumerate(groups):
        if len(group.runs) < whole:
            continue
        assert group.runs[0].results is not None
        own = row_name(group.runs[0]), group.runs[0].results["model"]
        for key, (measure, of_groups) in estimates.items():
            cells[(*own, key)] = estimate_text(of_groups[number], measure)
    heads = [f"{model} {TITLES[key]}" for model, keys in columns.items() for key in keys]
    lines = [["task", *heads], ["---", *["---:"] * len(heads)]]
    there = {name for name, _, _ in cells}
    for name in [name for name in names if name in there] or sorted(there, key=row_order):
        lines.append([name, *(cells.get((name, model, key), "") for model, keys in columns.items() for key in keys)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--budget-bytes", type=int, default=36864)
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    name = "constraints_unseen" if arguments.unseen else f"constraints_{arguments.budget_bytes}"
    out = (arguments.out or Path("runs") / name).resolve()
    seeds = tuple(arguments.seeds.split(","))
    overrides = (f"task.budget_bytes={arguments.budget_bytes}", *arguments.overrides)
    stages = (unseen if arguments.unseen else digits)(out, seeds, overrides)
    run_all([stages[stage] for stage in arguments.stages.split(",")], arguments.jobs)
    runs = find_runs(out)
    text = table(runs)
    (out / "table.md").write_text(text)
    compare(runs, out)
    print(text)
    failed = [run.name for run in runs if run.results is None]
    print(json.dumps({"runs": len(runs), "without results": failed}))


if __name__ == "__main__":
    main()
