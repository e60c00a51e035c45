"""Read the files of a run folder."""

import csv
import json

from speech_exp.runs.schema import validate_results


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    validate_results(found)
    return found


def best(folder):
    """The file of the deployable model."""
    (path,) = folder.glob("checkpoints/*_best.pt")
    return path


def evaluation(checkpoint, part="test"):
    """What action=evaluate wrote beside a checkpoint."""
    return json.loads(checkpoint.with_name(f"{checkpoint.stem}_{part}.json").read_text())


def table(path):
    """Rows of a CSV file by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def epochs_done(folder):
    """So far; unlike a training state, which a later one replaces, this is seen however seldom one looks."""
    history = folder / "history.csv"
    return max(0, len(history.read_text(encoding="utf-8").splitlines()) - 1) if history.exists() else 0
