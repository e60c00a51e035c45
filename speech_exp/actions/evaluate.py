"""action=evaluate: the metrics of a checkpoint, again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from speech_exp.actions.context import Context
from speech_exp.progress import print_table
from speech_exp.reporting.files import write_json
from speech_exp.training.checkpoint import load_deployable


class Evaluate:
    """Tests the deployable model in `checkpoint` on a part of the data that it was trained on; prints every digit."""

    def __init__(self, checkpoint: str | None, part: Literal["train", "validation", "test"]) -> None:
        self.checkpoint, self.part = checkpoint, part

    def __call__(self, experiment: Context) -> None:
        content = load_deployable(self.checkpoint)
        original = experiment.of_checkpoint(content)
        found = original.loaded.fingerprint
        if found != content["data_fingerprint"]:
            raise ValueError(
                f"checkpoint={self.checkpoint} was made from other data (fingerprint {content['data_fingerprint'][:12]}, "
                f"found {found[:12]}): set dataset.root to the recordings it was trained on"
            )
        assert original.deployed is not None
        certificate = original.task.certify(original.deployed)
        with original.trainer.runtime.autocast():
            evaluation = original.objective.evaluate(
                original.deployed,
                original.features.parts[self.part].by_length(original.trainer.batch_size),
                original.class_names,
            )
        facts = {f"{self.part} {name}": repr(value) for name, value in evaluation.metrics.items()}
        print_table(facts | {"certificate": certificate.text()})
        write_json(
            experiment.folder / "evaluation.json",
            {
                "checkpoint": self.checkpoint,
                "metrics": {self.part: evaluation.metrics},
                "certificate": asdict(certificate),
            },
        )
