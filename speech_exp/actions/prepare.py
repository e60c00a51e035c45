"""action=prepare: get the data set ready and verify it."""

from __future__ import annotations

from speech_exp.actions.context import Context
from speech_exp.features.survey import every_dropped
from speech_exp.progress import print_table

_SHOWN = 5  # dropped utterances; action=inspect names them all


class Prepare:
    """Downloads what can be downloaded, verifies it, and computes what is kept of its features."""

    def __call__(self, experiment: Context) -> None:
        root = experiment.dataset.prepare()
        loaded, features = experiment.loaded, experiment.features
        print_table(
            {
                "data set": f"{experiment.dataset.name} at {root}",
                "content": loaded.summary,
                "parts": ", ".join(f"{len(part):,} {name}" for name, part in features.parts.items()),
                "dropped": "; ".join(f"{item.id}: {item.reason}" for item in features.dropped[:_SHOWN]) or "none",
                "dropped in all": f"{sum(1 for _ in every_dropped(features)):,}",
                "SHA-256": loaded.fingerprint,
                "kept in": str(features.folder or "memory alone, made for each run"),
            }
        )
