"""action=evaluate: compute the metrics of a checkpoint again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from speech_exp.experiment import Experiment
from speech_exp.files import write_json
from speech_exp.progress import print_table
from speech_exp.runs.record import write_predictions
from speech_exp.runs.sizes import parameters
from speech_exp.training.checkpoint import load_deployable
from speech_exp.training.threads import use_threads


class Evaluate:
    """Evaluates the deployable model in `checkpoint` on one part of its data set; prints metrics at full precision.

    Writes metrics and predictions next to the checkpoint, in files named after the checkpoint and the part.
    """

    def __init__(self, checkpoint: str | None, part: Literal["train", "validation", "test"]) -> None:
        self.checkpoint, self.part = checkpoint, part

    def __call__(self, experiment: Experiment) -> None:
        content = load_deployable(self.checkpoint)
        original = experiment.from_checkpoint(content)
        fingerprint = original.dataset.fingerprint
        if fingerprint != content["data_fingerprint"]:
            raise ValueError(
                f"checkpoint={self.checkpoint} was trained on different data (fingerprint {content['data_fingerprint'][:12]}, "
                f"this data set has {fingerprint[:12]}): set dataset.root to the recordings it was trained on"
            )
        assert original.deployed is not None
        use_threads(original.trainer.threads, parameters(original.network))
        certificate = original.task.deployment.certify(original.deployed, original.untrained())
        with original.trainer.runtime.autocast():
            evaluation = original.objective.evaluate(
                original.deployed,
                original.data.parts[self.part].by_length(original.trainer.batch_size),
                original.class_names,
            )
        facts = {f"{self.part} {name}": repr(value) for name, value in evaluation.metrics.items()}
        tables = {f"{self.part}{name.removeprefix('test')}": table for name, table in evaluation.tables().items()}
        record = {
            "checkpoint": self.checkpoint,
            "overrides": list(experiment.overrides),
            "metrics": {self.part: evaluation.metrics, **tables},
            "certificate": asdict(certificate),
        }
        path = Path(str(self.checkpoint))
        json, csv = (path.with_name(f"{path.stem}_{self.part}{ending}") for ending in (".json", "_predictions.csv"))
        try:
            write_json(json, record)
            write_predictions(csv, original.data.with_origins(evaluation.predictions, self.part))
        except OSError as error:
            raise ValueError(
                f"{json} cannot be written ({error.strerror}): copy the checkpoint to a writable folder and set checkpoint to the copy"
            ) from None
        print_table(facts | {"certificate": certificate.text(), "written": f"{json} and {csv.name}"})
