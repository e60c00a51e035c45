"""action=train: from the data to a tested model and its report."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from operator import eq
from pathlib import Path
from typing import Any

from torch import nn

from speech_exp import ranks
from speech_exp.actions.context import Context
from speech_exp.objectives.objective import Evaluation
from speech_exp.progress import print_table
from speech_exp.reporting.latency import latency_ms
from speech_exp.reporting.loggers import RunLogger, run_loggers
from speech_exp.reporting.run_record import RunRecord
from speech_exp.reporting.sizes import run_size, window_text
from speech_exp.tasks.storage import stored_in_float
from speech_exp.tasks.task import Certificate
from speech_exp.training import checkpoint
from speech_exp.training.fitting import Fit, Fitting
from speech_exp.training.resuming import alone, plan
from speech_exp.training.state import EpochRow, StateFiles, newest


class Train:
    """Returns the objective's validation metric of what deploys; `dry_run` prints sizes and stops before any training.

    `resume` says whether a run that was begun goes on (`speech_exp.training.resuming.plan`); a finished one is not
    repeated.
    """

    def __init__(self, dry_run: bool, resume: bool | str | None) -> None:
        self.dry_run, self.resume = dry_run, resume

    def __call__(self, experiment: Context) -> float | None:
        if self.dry_run:
            _describe(experiment)
            return None
        experiment.task.phases(experiment.trainer.epochs)  # too few epochs are told before any work
        with alone(experiment.folder) if ranks.number() == 0 else nullcontext():
            found = ranks.from_first(lambda: plan(experiment.folder, self.resume, experiment.config_hash()))
            if found.finished is not None:
                print(f"{experiment.folder} is finished; resume=false runs it anew")
                return float(found.finished["metrics"]["val"][experiment.objective.primary])
            return _train(experiment, found.start)


def _train(experiment: Context, start: Path | None) -> float:
    """The whole of a run, from the newest training state in `start` where that is a folder.

    All ranks train; rank 0 alone tests and reports what they found.
    """
    started = time.perf_counter()
    device, record = str(experiment.trainer.runtime.device), RunRecord(experiment.folder)
    loggers = [] if ranks.number() else _loggers(experiment)
    if start is not None:
        print(f"going on from {newest(start)}")
    running = record.running(
        seed=experiment.seed, config_hash=experiment.config_hash(), device=device, goes_on=start is not None
    )
    with ranks.last_words(record.ended_elsewhere), running, ExitStack() as opened:
        _note_data(experiment, record)
        experiment.network  # noqa: B018  (its hidden size is solved for here)
        if experiment.task.sizing:
            print(f"hidden size {experiment.task.sizing}")
        experiment.prepare_training()
        for logger in loggers:  # not before, for a teacher has loggers of its own
            opened.enter_context(logger)
        fit = _fit(experiment, record, loggers, start)
        _note_data(experiment, record)  # with what could not be read in training
        return ranks.from_first(lambda: _conclude(experiment, record, loggers, fit, started))


def _conclude(experiment: Context, record: RunRecord, loggers: list[RunLogger], fit: Fit, started: float) -> float:
    """Test and report what training found; returns the validation metric by which a run is told."""
    task = experiment.task
    record.write_history(fit.history)
    deployed = task.deployable(fit.best, experiment.features.parts["train"])
    certificate = task.certify(deployed)
    validation = _evaluate(experiment, deployed, "validation")
    test = _evaluate(experiment, deployed, "test")
    _save(experiment, deployed, fit)
    record.write_predictions(test.predictions)
    results = _results(experiment, deployed, fit, validation, test, certificate, time.perf_counter() - started)
    record.write_results(results)
    for logger in loggers:
        logger.results(results)
    _draw(experiment, deployed, fit, test, fit.history)
    size, primary = results["size"], experiment.objective.primary
    facts = {
        "best epoch": f"{fit.best_epoch} of {fit.epochs}",
        f"validation {primary}": f"{validation.metrics[primary]:.2%}",
        **{f"test {name}": f"{value:.2%}" for name, value in test.metrics.items() if name != "loss"},
        "bytes": f"{size['packed_bytes']:,} stored, {size['bits_per_weight']:.4g} bits a weight",
        **{
            f"engine {name}": f"{engine['metrics'][primary]:.2%}, {engine['model_bytes']:,} bytes, "
            f"{engine['latency_ms']:.2f} ms an utterance on the CPU"
            for name, engine in results.get("engines", {}).items()
        },
        "certificate": certificate.text(),
        "training": f"{fit.seconds:.1f} s, {fit.utterances_per_s:,.0f} utterances/s",
        "run folder": str(experiment.folder),
    }
    print_table(facts)
    return validation.metrics[primary]


def _evaluate(experiment: Context, network: nn.Module, part: str) -> Evaluation:
    batches = experiment.features.parts[part].by_length(experiment.trainer.batch_size)
    with experiment.trainer.runtime.autocast():
        return experiment.objective.evaluate(network, batches, experiment.class_names)


def _describe(experiment: Context) -> None:
    """Sizes of what would be trained; reads the index of the data, trains nothing."""
    network, trainer, task = experiment.network, experiment.trainer, experiment.task
    stored = stored_in_float(network)
    size, utterances = trainer.training_batch, experiment.dataset.utterances_per_epoch(experiment.loaded)
    print_table(
        {
            "model": experiment.choices["model"],
            "hidden size": task.sizing or str(network.encoder.recurrent_layers[0].hidden_size),
            "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
            "bytes a recurrent layer": ", ".join(f"{count:,}" for count in stored.recurrent_layer_bytes)
            + " in float32",
            "bytes of the model": f"{stored.model_bytes:,} in float32",
            "window": window_text(network, experiment.extractor.hop_s),
            "utterances an epoch": f"{utterances:,} in batches of "
            + (f"{size.utterances}" if size.frames is None else f"{size.frames * experiment.extractor.hop_s:g} s"),
            "epochs": ", then ".join(f"{phase.first} to {phase.last}" for phase in task.phases(trainer.epochs))
            or "none",
            "device": trainer.runtime.device_name,
        }
    )


def _note_data(experiment: Context, record: RunRecord) -> None:
    """With the recordings that any rank could not read."""
    dropped = {item.id: asdict(item) for of_rank in ranks.gathered(experiment.features.dropped) for item in of_rank}
    record.data_read(experiment.loaded.fingerprint, list(dropped.values()))


def _loggers(experiment: Context) -> list[RunLogger]:
    trainer, config = experiment.trainer, experiment.plain_config()["config"]
    return run_loggers(experiment.folder, config, trainer.tensorboard, trainer.mlflow, trainer.wandb)


def _fit(experiment: Context, record: RunRecord, loggers: list[RunLogger], start: Path | None) -> Fit:
    identity = {**experiment.identity(), "data_fingerprint": experiment.loaded.fingerprint}
    files = StateFiles(experiment.folder / "checkpoints", experiment.trainer.keep, identity, start)

    def on_epoch(history: list[EpochRow]) -> None:
        record.write_history(history)
        for logger in loggers:
            logger.epoch(history[-1])

    return Fitting(
        experiment.trainer,
        experiment.network,
        experiment.objective,
        experiment.task,
        experiment.augment,
        experiment.features.parts,
        experiment.class_names,
        experiment.seed,
        files,
        on_epoch,
    ).run()


def _save(experiment: Context, network: nn.Module, fit: Fit) -> None:
    content = {
        **experiment.plain_config(),
        "statistics": experiment.normalizer.statistics(),
        "network": network.state_dict(),
        "class_names": list(experiment.class_names),
        "data_fingerprint": experiment.loaded.fingerprint,
    }
    checkpoint.save_deployable(
        content, experiment.folder / "checkpoints" / f"checkpoint_epoch_{fit.best_epoch}_best.pt"
    )


def _results(
    experiment: Context,
    deployed: nn.Module,
    fit: Fit,
    validation: Evaluation,
    test: Evaluation,
    certificate: Certificate,
    total_s: float,
) -> dict[str, Any]:
    """results.json (DESIGN section 2)."""
    choices, task, parts = experiment.choices, experiment.task, experiment.features.parts
    train_frames = parts["train"].lengths_WU[0].double()
    metrics = {"val": validation.metrics, "test": test.metrics, **test.tables()}
    if task.reference is not None:
        metrics["test_float"] = _evaluate(experiment, task.reference, "test").metrics
    results = {
        "schema_version": 1,
        "dataset": choices["dataset"],
        "split": experiment.dataset.split,
        "test_speaker": experiment.dataset.test_speaker,
        **{name: choices[name] for name in ("features", "encoder", "objective", "model", "task")},
        "c_approach": None if choices["c_approach"] == "None" else choices["c_approach"],
        "kd": None if choices["kd"] == "none" else choices["kd"],
        "seed": experiment.seed,
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "metrics": metrics,
        "size": run_size(experiment.network, task, deployed),
        "certificate": asdict(certificate),
        "latency_ms": latency_ms(deployed, parts["test"]),
        "seconds": {"features": experiment.features_seconds, "train": fit.seconds, "total": total_s},
        "throughput": {
            "utterances_per_s": fit.utterances_per_s,
            "audio_s_per_s": fit.utterances_per_s * train_frames.mean().item() * experiment.extractor.hop_s,
        },
    }
    engines: dict[str, dict[str, Any]] = {}
    reference: list[str] = []
    for name, (network, model_bytes) in task.engines(deployed).items():
        batches = parts["test"].by_length(experiment.trainer.batch_size)  # in float32, whatever training computes in
        evaluation = experiment.objective.evaluate(network, batches, experiment.class_names)
        found = [row["prediction"] for row in evaluation.predictions]
        reference = found if name == "float" else reference
        engines[name] = {
            "metrics": evaluation.metrics,
            "model_bytes": model_bytes,
            "latency_ms": latency_ms(network, parts["test"])["mean"],
            "agreement": sum(map(eq, found, reference)) / len(found),
        }
    return results | {"engines": engines} if engines else results


def _draw(experiment: Context, deployed: nn.Module, fit: Fit, evaluation: Evaluation, history: list[EpochRow]) -> None:
    from speech_exp.reporting.run_figures import draw_evaluation, draw_flowchart, draw_recording

    folder, parts, choices = experiment.folder / "figures", experiment.features.parts, experiment.choices
    draw_evaluation(folder, evaluation, history, fit.best_epoch)
    draw_recording(
        folder,
        deployed,
        parts["test"],
        experiment.features.test_waveform(0),
        experiment.extractor,
        experiment.class_names,
    )
    facts = {
        **choices,
        "split": experiment.dataset.split,
        "normalization": experiment.normalizer.mode,
        "best_epoch": fit.best_epoch,
        "epochs": fit.epochs,
        "result": f"test {experiment.objective.primary} {evaluation.metrics[experiment.objective.primary]:.2%}",
        "constraint": experiment.task.constraint_lines(),
        "constrained": experiment.task.constrained,
    }
    draw_flowchart(folder, experiment.network, parts, facts, experiment.extractor.hop_s)
