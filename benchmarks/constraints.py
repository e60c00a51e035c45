"""Accuracy under constraints: 3 models x tasks x approaches x 5 seeds, in one command that can be stopped and resumed.

    python benchmarks/constraints.py [--out runs/constraints] [--jobs 2] [--seeds 0,1,2,3,4] [--unseen]

Every float run (task B1) is trained once; B2 and all approaches of C start from the one of their model and seed. Runs that are
finished are not run again. At the end the table of README is printed and written to OUT/table.md, beside the whole comparison.
--unseen does the same for speakers never heard (experiment=unseen_speaker, GRU, 3 seeds, each of six speakers).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from speech_exp.reporting.comparison import compare, find_runs
from speech_exp.reporting.estimates import student_interval
from speech_exp.reporting.runs import Run

PROJECT = Path(__file__).parents[1]
MODELS = ("gru", "lstm", "lmu")
APPROACHES = ("ema", "snap_epoch", "snap_step", "stochastic", "row_shared", "apot2", "mixed_pot", "inq", "ste")
DISTILLED = ("ema", "row_shared")
UNSEEN_APPROACHES = ("ste", "apot2")  # the best two of the table above
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
QAT_EPOCHS = 5


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one key, each in a subfolder named by its value."""

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
            placed[1] = "hydra.sweep.subdir=${hydra:runtime.choices.c_approach}"
        return [sys.executable, str(PROJECT / "run.py"), "-m", *self.overrides, varied, *placed]


def finished(record: Path) -> bool:
    return record.exists() and json.loads(record.read_text())["status"] == "finished"


def digits(out: Path, seeds: tuple[str, ...]) -> Iterator[list[Sweep]]:
    """Two stages: the float runs, then what starts from them."""
    yield [Sweep(out / "B1" / model, (f"model={model}", "task=B1"), "seed", seeds) for model in MODELS]
    yield [
        sweep
        for model in MODELS
        for seed in seeds
        for sweep in constrained(out, f"{model}/{seed}", (f"model={model}", f"seed={seed}"), APPROACHES)
    ]


def constrained(out: Path, place: str, overrides: tuple[str, ...], approaches: tuple[str, ...]) -> list[Sweep]:
    start = out / "B1" / place
    own = (*overrides, f"task.float_checkpoint={start}")
    taught = (*own, "kd=teacher", f"kd.run={start}")
    return [
        Sweep(out / "C" / place, (*own, "task=C"), "c_approach", approaches),
        Sweep(out / "C_kd" / place, (*taught, "task=C"), "c_approach", DISTILLED),
        Sweep(out / "B2" / place, (*own, "task=B2"), "task.qat_epochs", ("0", str(QAT_EPOCHS))),
    ]


def unseen(out: Path, seeds: tuple[str, ...]) -> Iterator[list[Sweep]]:
    """As `digits`, for each speaker; what is typed takes the place of the preset's own sweep over speakers and seeds."""

    def held_out(speaker: str) -> tuple[str, ...]:
        return ("experiment=unseen_speaker", f"dataset.test_speaker={speaker}")

    yield [Sweep(out / "B1" / speaker, (*held_out(speaker), "task=B1"), "seed", seeds) for speaker in SPEAKERS]
    yield [
        sweep
        for speaker in SPEAKERS
        for seed in seeds
        for sweep in constrained(out, f"{speaker}/{seed}", (*held_out(speaker), f"seed={seed}"), UNSEEN_APPROACHES)
        if "C_kd" not in sweep.folder.parts
    ]


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
    task, kd = run.results["task"], " + kd" if run.results["kd"] else ""
    if task == "B2":
        qat = int(run.config.get("task.qat_epochs", 0))
        return f"B2, {qat} QAT epochs" if qat else "B2"
    return f"C {run.results['c_approach']}{kd}" if task == "C" else task


def table(runs: list[Run]) -> str:
    """One row a task and approach, one group of columns a model: accuracy, points lost against float, bits, packed bytes."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.results is not None:
            found.setdefault((row_name(run), run.results["model"]), []).append(run)
    models = [model for model in MODELS if any(model == one for _, one in found)]
    names = sorted({name for name, _ in found})  # B1, B2, then C by approach
    lines = ["| task | " + " | ".join(f"{model} (%) | lost | bits | bytes" for model in models) + " |"]
    lines.append("| --- |" + " ---: | ---: | ---: | ---: |" * len(models))
    for name in names:
        cells = [name]
        for model in models:
            group = [run.results for run in found.get((name, model), []) if run.results is not None]
            if not group:
                cells += ["", "", "", ""]
                continue
            accuracy = student_interval(per_seed(group, lambda metrics: metrics["test"]["accuracy"]))
            lost = student_interval(
                per_seed(
                    group,
                    lambda metrics: (
                        metrics.get("test_float", metrics["test"])["accuracy"] - metrics["test"]["accuracy"]
                    ),
                )
            )
            bits = sum(one["size"]["bits_per_weight"] for one in group) / len(group)
            packed = sum(one["size"]["packed_bytes"] for one in group) / len(group)
            cells += [
                with_interval(accuracy),
                "" if name == "B1" else with_interval(lost),
                f"{bits:.2f}",
                f"{packed:,.0f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def per_seed(group: list[dict], value) -> list[float]:
    """Mean over test speakers for each seed, in points."""
    seeds: dict[int, list[float]] = {}
    for results in group:
        seeds.setdefault(results["seed"], []).append(100 * value(results["metrics"]))
    return [sum(values) / len(values) for _, values in sorted(seeds.items())]


def with_interval(estimate) -> str:
    return f"{estimate.mean:.2f}" + (f" ± {estimate.half_width:.2f}" if estimate.half_width is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--seeds")
    parser.add_argument("--unseen", action="store_true")
    arguments = parser.parse_args()
    out = (arguments.out or Path("runs") / ("constraints_unseen" if arguments.unseen else "constraints")).resolve()
    seeds = tuple((arguments.seeds or ("0,1,2" if arguments.unseen else "0,1,2,3,4")).split(","))
    run_all((unseen if arguments.unseen else digits)(out, seeds), arguments.jobs)
    runs = find_runs(out)
    text = table(runs)
    (out / "table.md").write_text(text)
    compare(runs, out)
    print(text)
    failed = [run.name for run in runs if run.results is None]
    print(json.dumps({"runs": len(runs), "without results": failed}))


if __name__ == "__main__":
    main()
