"""Measure what the constraints cost in time on FSDD, as ratios within one execution.

    python benchmarks/tasks.py [--epochs 4] [--rounds 4] [--models gru,lstm,lmu]

First, the training seconds of task C with each approach, compared with task B1 for as many epochs; all epochs of C are in
phase two, the more expensive one. Then, the seconds that the engines of task B2 need to classify the test split (300
recordings), with untrained weights. Rounds alternate and the fastest counts, because other work on the machine can only add
time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from training import CONF, experiment

from speech_exp.tasks.dynamic import dynamic_int8
from speech_exp.tasks.integer.calibration import calibration_batches
from speech_exp.tasks.integer.conversion import convert
from speech_exp.training.loop import TrainingLoop
from speech_exp.training.state import StateFiles

APPROACHES = sorted(path.stem for path in (CONF / "c_approach").glob("*.yaml"))
EXPANDED = "task.expand_to_budget=true"


def train_s(folder: Path, overrides: list[str]) -> float:
    """Return the seconds of training alone, with the features ready."""
    run = experiment(folder, ["dataset=fsdd", "trainer.device=cpu", *overrides])
    parts, network = run.data.parts, run.network
    started = time.perf_counter()
    TrainingLoop(
        run.trainer,
        network,
        run.objective,
        run.task.phases(run.trainer.epochs),
        run.augment,
        parts,
        run.dataset.class_names,
        run.seed,
        StateFiles(folder, 1, {}, None),
        lambda _: None,
    ).run()
    return time.perf_counter() - started


def training(models: list[str], epochs: int, rounds: int, folder: Path) -> None:
    print(f"Training, {epochs} epochs, {rounds} rounds: seconds, and times those of B1\n")
    print("| task | " + " | ".join(models) + " |\n| --- |" + " ---: |" * len(models))
    ways = {"B1": ["task=B1"]}
    ways |= {f"C {one}": ["task=C", f"c_approach={one}", "task.start_epoch=1"] for one in APPROACHES}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for model in models:
            for name, typed in ways.items():
                spent = train_s(folder, [*typed, f"model={model}", f"trainer.epochs={epochs}"])
                seconds.setdefault((name, model), []).append(spent)
    fastest_s = {key: min(values) for key, values in seconds.items()}
    for name in ways:
        cells = [
            f"{fastest_s[name, model]:.1f} ({fastest_s[name, model] / fastest_s['B1', model]:.2f})" for model in models
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def engines(models: list[str], rounds: int, folder: Path) -> None:
    print("\nTest split of 300 recordings in batches of 64 by length: seconds\n")
    print("| model | hidden size | float | dynamic | integer |\n| --- | ---: | ---: | ---: | ---: |")
    for model in models:
        for typed in ([], [EXPANDED]):
            run = experiment(folder, ["dataset=fsdd", "task=B2", f"model={model}", "trainer.device=cpu", *typed])
            parts, network = run.data.parts, run.network.eval()
            integer = convert(network, calibration_batches(parts["train"]))
            ways = {"float": network, "dynamic": dynamic_int8(network), "integer": integer}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds + 1):
                for name, engine in ways.items():
                    started = time.perf_counter()
                    with torch.no_grad():
                        for batch in parts["test"].by_length(64):
                            engine(batch.features_BTF, batch.lengths_B)
                    seconds[name].append(time.perf_counter() - started)
            cells = [f"{min(values):.2f}" for values in seconds.values()]
            hidden = network.encoder.recurrent_layers[0].hidden_size
            print(f"| {model} | {hidden} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--models", default="gru,lstm,lmu")
    arguments = parser.parse_args()
    models = arguments.models.split(",")
    folder = Path(tempfile.mkdtemp())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    train_s(folder, ["task=B1", "trainer.epochs=1"])  # imports what all runs need and fills the feature cache
    training(models, arguments.epochs, arguments.rounds, folder)
    engines(models, arguments.rounds, folder)


if __name__ == "__main__":
    main()
