"""action=prepare: get the data set ready and verify it."""

from __future__ import annotations

from speech_exp.actions.context import Context
from speech_exp.progress import print_table


class Prepare:
    """Downloads what can be downloaded, verifies it, and computes the features into the cache."""

    def __call__(self, experiment: Context) -> None:
        root = experiment.dataset.prepare()
        loaded, features = experiment.loaded, experiment.features
        print_table(
            {
                "data set": f"{experiment.dataset.name} at {root}",
                "recordings": f"{len(loaded.recordings):,} of {len({r.speaker for r in loaded.recordings})} speakers",
                "parts": ", ".join(f"{len(part):,} {name}" for name, part in features.parts.items()),
                "dropped": "; ".join(f"{item.id}: {item.reason}" for item in features.dropped) or "none",
                "SHA-256": loaded.fingerprint,
                "feature cache": str(experiment.cache_folder),
            }
        )
