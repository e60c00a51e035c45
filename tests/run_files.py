"""Read the files of a run folder."""

import csv
import json

from speech_exp.runs.schema import validate_results


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    validate_results(found)
    return found


def best(folder):
    """Return the path of the run's deployable model."""
    (path,) = folder.glob("checkpoints/*_best.pt")
    return path


def evaluation(checkpoint, part="test"):
    """Return the results that action=evaluate wrote beside a checkpoint."""
    return json.loads(checkpoint.with_name(f"{checkpoint.stem}_{part}.json").read_text())


def table(path):
    """Return the rows of a CSV file as dicts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def epochs_done(folder):
    """Return how many epochs are done; the history grows, whereas a training state may be replaced between two polls."""
    history = folder / "history.csv"
    return max(0, len(history.read_text(encoding="utf-8").splitlines()) - 1) if history.exists() else 0
