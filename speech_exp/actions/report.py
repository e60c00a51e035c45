"""The report of a training run: results.json, the figures, and the summary in the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from operator import eq
from typing import Any

from torch import nn

from speech_exp.experiment import Experiment
from speech_exp.objectives.objective import Evaluation
from speech_exp.runs.latency import latency_ms
from speech_exp.runs.sizes import run_size
from speech_exp.tasks.deployment import Certificate
from speech_exp.tasks.task import Deployed
from speech_exp.training.loop import TrainingResult


@dataclass(frozen=True)
class Outcome:
    """What a training run produced: the fit, the deployed model with its certificate, and its evaluations."""

    fit: TrainingResult
    deployed: Deployed
    certificate: Certificate
    validation: Evaluation
    test: Evaluation


def evaluate(experiment: Experiment, network: nn.Module, part: str) -> Evaluation:
    """Evaluate a network on one part of the data."""
    batches = experiment.data.parts[part].by_length(experiment.trainer.batch_size)
    with experiment.trainer.runtime.autocast():
        return experiment.objective.evaluate(network, batches, experiment.class_names)


def results_of(experiment: Experiment, outcome: Outcome, total_s: float) -> dict[str, Any]:
    """Return the content of results.json; `total_s` is the time that the run took."""
    fit, deployed, test = outcome.fit, outcome.deployed, outcome.test
    choices, task, parts = experiment.choices, experiment.task, experiment.data.parts
    train_frames = parts["train"].lengths_WU[0].double()
    metrics = {"val": outcome.validation.metrics, "test": test.metrics, **test.tables()}
    if deployed.reference is not None:
        metrics["test_float"] = evaluate(experiment, deployed.reference, "test").metrics
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
        "size": run_size(experiment.network, task.sizing.budget_bytes, task.deployment.stored(deployed.network)),
        "certificate": asdict(outcome.certificate),
        "latency_ms": latency_ms(deployed.network, parts["test"]),
        "seconds": {"features": experiment.features_seconds, "train": fit.seconds, "total": total_s},
        "throughput": {
            "utterances_per_s": fit.utterances_per_s,
            "audio_s_per_s": fit.utterances_per_s * train_frames.mean().item() * experiment.front_end.extractor.hop_s,
        },
    }
    engines = _engines(experiment, deployed)
    return results | {"engines": engines} if engines else results


def _engines(experiment: Experiment, deployed: Deployed) -> dict[str, dict[str, Any]]:
    """Return the metrics, bytes and latency of each alternative engine, and how often it agrees with the float engine."""
    test = experiment.data.parts["test"]
    engines: dict[str, dict[str, Any]] = {}
    reference: list[str] = []
    for name, (network, model_bytes) in experiment.task.engines(deployed).items():
        batches = test.by_length(experiment.trainer.batch_size)  # in float32, whatever precision training used
        evaluation = experiment.objective.evaluate(network, batches, experiment.class_names)
        found = [row["prediction"] for row in evaluation.predictions]
        reference = found if name == "float" else reference
        engines[name] = {
            "metrics": evaluation.metrics,
            "model_bytes": model_bytes,
            "latency_ms": latency_ms(network, test)["mean"],
            "agreement": sum(map(eq, found, reference)) / len(found),
        }
    return engines


def summary(experiment: Experiment, outcome: Outcome, results: dict[str, Any]) -> dict[str, str]:
    """Return what the terminal shows at the end of a run."""
    fit, size, primary = outcome.fit, results["size"], experiment.objective.primary
    return {
        "best epoch": f"{fit.best_epoch} of {fit.epochs}",
        f"validation {primary}": f"{outcome.validation.metrics[primary]:.2%}",
        **{f"test {name}": f"{value:.2%}" for name, value in outcome.test.metrics.items() if name != "loss"},
        "bytes": f"{size['packed_bytes']:,} stored, {size['bits_per_weight']:.4g} bits per weight; between frames the "
        f"recurrent layers keep {sum(size['recurrent_state_bytes']):,}",
        **{
            f"engine {name}": f"{engine['metrics'][primary]:.2%}, {engine['model_bytes']:,} bytes, "
            f"{engine['latency_ms']:.2f} ms per utterance on the CPU"
            + (", emulated in PyTorch" if name == "integer" else "")
            for name, engine in results.get("engines", {}).items()
        },
        "certificate": outcome.certificate.text(),
        "training": f"{fit.seconds:.1f} s, {fit.utterances_per_s:,.0f} utterances/s",
        "run folder": str(experiment.folder),
    }


def draw(experiment: Experiment, outcome: Outcome) -> None:
    """Draw all figures of the run into its folder."""
    from speech_exp.runs.figures import draw_evaluation, draw_flowchart, draw_recording

    fit, deployed, test = outcome.fit, outcome.deployed.network, outcome.test
    folder, parts, choices = experiment.folder / "figures", experiment.data.parts, experiment.choices
    run = f"{choices['model']}, task {choices['task']}, seed {experiment.seed} ({experiment.folder.name})"
    draw_evaluation(folder, test, fit.history, fit.best_epoch, run)
    draw_recording(
        folder,
        deployed,
        parts["test"],
        experiment.data.waveform("test", 0),
        experiment.front_end.extractor,
        experiment.class_names,
        test,
        run,
    )
    constraint = experiment.task.constraint(deployed, experiment.trainer.epochs)
    facts = {
        **choices,
        "split": experiment.dataset.split,
        "normalization": experiment.front_end.normalizer.mode,
        "best_epoch": fit.best_epoch,
        "epochs": fit.epochs,
        "result": f"test {experiment.objective.primary} {test.metrics[experiment.objective.primary]:.2%}",
        "constraint": constraint.lines,
        "constrained": constraint.parts,
    }
    draw_flowchart(folder, experiment.network, parts, facts, experiment.front_end.extractor.hop_s, run)
