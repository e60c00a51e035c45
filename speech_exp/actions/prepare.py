"""action=prepare: get the data set ready and verify it."""

from __future__ import annotations

from speech_exp.experiment import Experiment
from speech_exp.progress import print_table

_SHOWN = 5  # dropped utterances; action=inspect lists them all


class Prepare:
    """Downloads the data set if that is possible, verifies it, and fills the feature cache."""

    def __call__(self, experiment: Experiment) -> None:
        dataset, root, data = experiment.dataset, experiment.dataset.fetch(), experiment.data
        print_table(
            {
                "data set": f"{dataset.name} at {root}",
                "content": dataset.summary,
                "parts": ", ".join(f"{len(part):,} {name}" for name, part in data.parts.items()),
                "dropped": "; ".join(f"{item.id}: {item.reason}" for item in data.dropped[:_SHOWN]) or "none",
                "dropped in total": f"{sum(1 for _ in data.every_dropped()):,}",
                "SHA-256": dataset.fingerprint,
                "kept in": str(data.folder or "memory only, computed anew in each run"),
            }
        )
