"""action=train: from the data to a tested model and its report."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from speech_exp.actions.context import Context
from speech_exp.objectives.classification import ClassificationNetwork, Evaluation
from speech_exp.progress import print_table
from speech_exp.reporting.run_record import RunRecord
from speech_exp.reporting.sizes import network_size, window_text
from speech_exp.reporting.tensorboard import event_writer
from speech_exp.tasks.task import Certificate
from speech_exp.training import checkpoint
from speech_exp.training.trainer import EpochRow, Fit


class Train:
    """Returns the validation accuracy of the best epoch; `dry_run` prints sizes and stops before any training."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run

    def __call__(self, experiment: Context) -> float | None:
        if self.dry_run:
            _describe(experiment)
            return None
        started = time.perf_counter()
        device = str(experiment.trainer.runtime.device)
        record = RunRecord(experiment.folder)
        with record.running(seed=experiment.seed, config_hash=experiment.config_hash(), device=device):
            network, parts = experiment.network, experiment.features.parts
            record.data_read(experiment.loaded.fingerprint, [asdict(item) for item in experiment.features.dropped])
            fit, history = _fit(experiment, record)
            network = experiment.task.deployable(fit.best)
            certificate = experiment.task.certify(network)
            with experiment.trainer.runtime.autocast():
                evaluation = experiment.objective.evaluate(
                    network, parts["test"].by_length(experiment.trainer.batch_size), experiment.dataset.class_names
                )
            _save(experiment, network, fit)
            record.write_predictions(evaluation.predictions)
            record.write_results(
                _results(experiment, network, fit, evaluation, certificate, time.perf_counter() - started)
            )
            _draw(experiment, network, fit, evaluation, history)
        metrics = evaluation.metrics
        print_table(
            {
                "best epoch": f"{fit.best_epoch} of {fit.epochs}",
                "validation accuracy": f"{fit.best_metrics['accuracy']:.2%}",
                "test accuracy": f"{metrics['accuracy']:.2%}",
                "test macro F1": f"{metrics['f1_macro']:.2%}",
                "training": f"{fit.seconds:.1f} s, {fit.utterances_per_s:,.0f} utterances/s",
                "run folder": str(experiment.folder),
            }
        )
        return fit.best_metrics["accuracy"]


def _describe(experiment: Context) -> None:
    """Sizes of what would be trained; reads the index of the data, trains nothing."""
    network, trainer = experiment.network, experiment.trainer
    size = network_size(network, experiment.task.budget_bytes)
    batches = trainer.batches_per_epoch(len(experiment.loaded.parts["train"]))
    print_table(
        {
            "model": f"{experiment.choices['model']}, hidden size {size['hidden_size']}",
            "parameters": f"{size['parameters']:,}",
            "bytes a recurrent layer": ", ".join(f"{count:,}" for count in size["recurrent_layer_bytes"]),
            "bytes of the model": f"{size['model_bytes']:,}",
            "window": window_text(network, experiment.extractor.hop_s),
            "batches an epoch": f"{batches} of {trainer.batch_size}",
            "device": trainer.runtime.device_name,
        }
    )


def _fit(experiment: Context, record: RunRecord) -> tuple[Fit, list[EpochRow]]:
    history: list[EpochRow] = []
    with event_writer(experiment.folder, experiment.trainer.tensorboard) as events:

        def on_epoch(row: EpochRow) -> None:
            history.append(row)
            record.append_epoch(row)
            events(row)

        fit = experiment.trainer.fit(
            experiment.network,
            experiment.objective,
            experiment.task,
            experiment.augment,
            experiment.features.parts,
            experiment.dataset.class_names,
            experiment.seed,
            experiment.folder / "checkpoints",
            on_epoch,
        )
    return fit, history


def _save(experiment: Context, network: ClassificationNetwork, fit: Fit) -> None:
    content = {
        "format": checkpoint.FORMAT,
        **experiment.plain_config(),
        "statistics": experiment.normalizer.statistics(),
        "network": network.state_dict(),
        "class_names": list(experiment.dataset.class_names),
        "data_fingerprint": experiment.loaded.fingerprint,
    }
    checkpoint.save(content, experiment.folder / "checkpoints" / f"checkpoint_epoch_{fit.best_epoch}_best.pt")


def _results(
    experiment: Context,
    network: ClassificationNetwork,
    fit: Fit,
    evaluation: Evaluation,
    certificate: Certificate,
    total_s: float,
) -> dict[str, Any]:
    """results.json (DESIGN section 2)."""
    from speech_exp.reporting.latency import latency_ms

    choices, parts = experiment.choices, experiment.features.parts
    train_frames = parts["train"].lengths_WU[0].double()
    return {
        "schema_version": 1,
        "dataset": choices["dataset"],
        "split": experiment.dataset.split,
        "test_speaker": experiment.dataset.test_speaker,
        **{name: choices[name] for name in ("features", "encoder", "objective", "model", "task")},
        "c_approach": None,
        "kd": None,
        "seed": experiment.seed,
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "metrics": {"val": fit.best_metrics, "test": evaluation.metrics, "test_per_class": evaluation.per_class},
        "size": network_size(network, experiment.task.budget_bytes),
        "certificate": asdict(certificate),
        "latency_ms": latency_ms(network, parts["test"]),
        "seconds": {"features": experiment.features_seconds, "train": fit.seconds, "total": total_s},
        "throughput": {
            "utterances_per_s": fit.utterances_per_s,
            "audio_s_per_s": fit.utterances_per_s * train_frames.mean().item() * experiment.extractor.hop_s,
        },
    }


def _draw(
    experiment: Context, network: ClassificationNetwork, fit: Fit, evaluation: Evaluation, history: list[EpochRow]
) -> None:
    from speech_exp.reporting.run_figures import draw_evaluation, draw_flowchart, draw_recording

    folder, parts, choices = experiment.folder / "figures", experiment.features.parts, experiment.choices
    draw_evaluation(folder, evaluation, history, fit.best_epoch)
    first = next(i for i, r in enumerate(experiment.loaded.recordings) if r.id == parts["test"].ids[0])
    draw_recording(
        folder,
        network,
        parts["test"],
        experiment.loaded.waveform(first),
        experiment.extractor,
        experiment.dataset.class_names,
    )
    facts = {
        **choices,
        "split": experiment.dataset.split,
        "normalization": experiment.normalizer.mode,
        "best_epoch": fit.best_epoch,
        "epochs": fit.epochs,
        "accuracy": evaluation.metrics["accuracy"],
        "constraint": experiment.task.constraint_text(),
    }
    draw_flowchart(folder, network, parts, facts, experiment.extractor.hop_s)
