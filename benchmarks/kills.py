"""Kill runs (SIGKILL) at random moments, start them again, and check that they equal an undisturbed run bit for bit.

    python benchmarks/kills.py [--kills 20] [--epochs 40]

Each run has a separate feature cache, empty at first: kills hit cache building, training, validation, checkpoint writing
and reporting. Kill times are uniform over the duration of the undisturbed run. Prints one row per kill: what the process was
doing, judged by the files it left, and whether the finished run has the same metrics and weights as the undisturbed one.
The exit status is 1 if any run differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[1]
SHORT = ["dataset=digits_demo", "trainer.checkpoint_every_s=0.3", "trainer.device=cpu", "seed=1"]
TASKS = {"A": ["task=A"], "C inq": ["task=C", "c_approach=inq", "task.start_epoch=3"]}


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROJECT / "run.py"), *SHORT, *overrides]
    where = [f"hydra.run.dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    return subprocess.Popen([*command, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(folder: Path, overrides: list[str]) -> None:
    if status := start(folder, overrides).wait():
        raise SystemExit(f"{folder} ended with exit status {status}")


def found(folder: Path) -> tuple[object, dict[str, torch.Tensor]]:
    """Return metrics, best epoch and predictions of a finished run, and the weights of its deployable model."""
    results = json.loads((folder / "run" / "results.json").read_text())
    (best,) = (folder / "run" / "checkpoints").glob("*_best.pt")
    told = (results["metrics"], results["best_epoch"], (folder / "run" / "predictions.csv").read_bytes())
    return told, torch.load(best, weights_only=True)["network"]


def same(one: Path, other: Path) -> bool:
    (told, weights), (other_told, other_weights) = found(one), found(other)
    return told == other_told and all(torch.equal(weights[name], other_weights[name]) for name in weights)


def doing(folder: Path) -> str:
    """Return what the killed process was doing, judged by the files it left."""
    run = folder / "run"
    if (run / "results.json").exists():
        return "reporting"
    if any((run / "checkpoints").glob(".*.tmp")):
        return "writing a checkpoint"
    if states := sorted(path.stem for path in (run / "checkpoints").glob("checkpoint_epoch_*.pt")):
        return f"after {states[-1].removeprefix('checkpoint_')}"
    if (folder / "cache").exists() and not any((folder / "cache").glob("*/frames.npy")):
        return "building the cache"
    return "starting" if not run.exists() else "before the first state"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each task")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    kills, epochs = arguments.kills, f"trainer.epochs={arguments.epochs}"
    moments = random.Random(0)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for task, chosen in TASKS.items():
            overrides = [*chosen, epochs]
            whole = Path(scratch) / f"{task} whole"
            started = time.perf_counter()
            finish(whole, overrides)
            duration_s = time.perf_counter() - started
            print(
                f"\ntask {task}, undisturbed {duration_s:.1f} s\n\n| killed after (s) | while | same |\n| ---: | --- | --- |"
            )
            for number in range(kills):
                folder, moment_s = Path(scratch) / f"{task} {number}", moments.uniform(0, duration_s)
                process = start(folder, overrides)
                time.sleep(moment_s)
                process.kill()
                process.wait()
                while_doing = doing(folder)
                finish(folder, overrides)
                equal = same(whole, folder)
                wrong += not equal
                print(f"| {moment_s:.1f} | {while_doing} | {'yes' if equal else 'NO'} |", flush=True)
    print(f"\n{wrong} of {kills * len(TASKS)} differ")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
