"""action=train: train a model, test it and write a report."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict

from torch import nn

from speech_exp import ranks
from speech_exp.actions.description import introduction, sizes
from speech_exp.actions.packing import save_packed
from speech_exp.actions.report import Outcome, draw, evaluate, results_of, summary
from speech_exp.experiment import Experiment
from speech_exp.folder_names import best_checkpoints
from speech_exp.objectives.objective import Network
from speech_exp.progress import print_table, table_lines
from speech_exp.runs import environment
from speech_exp.runs.loggers import RunLogger, run_loggers
from speech_exp.runs.record import RunRecord
from speech_exp.runs.sizes import parameters
from speech_exp.training import checkpoint
from speech_exp.training.loop import TrainingLoop, TrainingResult
from speech_exp.training.resuming import Plan, plan, run_lock
from speech_exp.training.state import EpochRow, StateFiles, epoch_text
from speech_exp.training.threads import use_threads

_SHOWN_REASONS = 3  # why recordings are left out


class Train:
    """Trains and tests a model; returns the validation metric of the deployable model.

    `dry_run` prints sizes and stops before training. `resume` decides whether an unfinished run is resumed
    (`speech_exp.training.resuming.plan`); a finished run is repeated only with resume=false.
    """

    def __init__(self, dry_run: bool, resume: bool | str | None) -> None:
        self.dry_run, self.resume = dry_run, resume

    def __call__(self, experiment: Experiment) -> float | None:
        if self.dry_run:
            print_table(sizes(experiment))
            return None
        started_s = time.perf_counter()
        experiment.task.phases(experiment.trainer.epochs)  # raises for too few epochs before any work is done
        planned = self._plan(experiment)
        files = None
        if planned.finished is None:
            experiment.check()
            if planned.start not in (None, experiment.folder / "checkpoints"):
                files = _state_files(experiment, planned)
                files.check()  # refuse a state from a different run before this folder is created
        loggers = [] if ranks.rank() else _loggers(experiment)
        with run_lock(experiment.folder) if ranks.rank() == 0 else nullcontext():
            found = self._plan(experiment)  # plan again: another process may have worked in the folder until now
            if found.note:
                print(found.note)
            if found.finished is not None:
                missing = "" if best_checkpoints(experiment.folder) else ", but its best checkpoint is missing"
                print(f"{experiment.folder} is finished{missing}; resume=false runs it again")
                return float(found.finished["metrics"]["val"][experiment.objective.primary])
            if files is None or found != planned:
                files = _state_files(experiment, found)
            return _train(experiment, files, loggers, started_s)

    def _plan(self, experiment: Experiment) -> Plan:
        return ranks.broadcast_object(lambda: plan(experiment.folder, self.resume, experiment.config_hash()))


def _train(experiment: Experiment, files: StateFiles, loggers: list[RunLogger], started_s: float) -> float:
    """Carry out a whole run, resuming from the newest training state in `files` if there is one.

    All ranks train; only rank 0 tests the model and writes the report.
    """
    device, record = str(experiment.trainer.runtime.device), RunRecord(experiment.folder)
    files.check()  # before run.json names this process
    running = record.start(
        seed=experiment.seed,
        config_hash=experiment.config_hash(),
        device=device,
        setup={**experiment.plain_config(), "overrides": list(experiment.overrides)},
        sessions=files.sessions,
        resumes=files.start is not None,
    )
    with running, ExitStack() as opened:
        _print_and_log(record, introduction(experiment))
        _note_data(experiment, record)
        teacher = experiment.prepare_training()
        for logger in loggers:  # after the teacher's training, which has its own loggers
            opened.enter_context(logger)
        fit = _fit(experiment, record, loggers, files, teacher)
        _note_data(experiment, record)  # again, with the recordings that training could not read
        return ranks.broadcast_object(lambda: _conclude(experiment, record, loggers, fit, started_s))


def _conclude(
    experiment: Experiment, record: RunRecord, loggers: list[RunLogger], fit: TrainingResult, started_s: float
) -> float:
    """Deploy, certify and test the trained model, and write the report; return the validation metric that the run is judged by."""
    task, data = experiment.task, experiment.data
    record.write_history(fit.history)
    deployed = task.deploy(fit.best, fit.reference, data.parts["train"])
    certificate = task.deployment.certify(deployed.network, experiment.untrained())
    validation, test = (evaluate(experiment, deployed.network, part) for part in ("validation", "test"))
    outcome = Outcome(fit, deployed, certificate, validation, test)
    _save(experiment, deployed.network, fit)
    record.write_predictions(data.with_origins(test.predictions, "test"))
    results = results_of(experiment, outcome, time.perf_counter() - started_s)
    record.write_results(results)
    for logger in loggers:
        logger.results(results)
    draw(experiment, outcome)
    for logger in loggers:
        logger.figures(experiment.folder / "figures")
    _print_and_log(record, summary(experiment, outcome, results))
    return validation.metrics[experiment.objective.primary]


def _print_and_log(record: RunRecord, facts: dict[str, str]) -> None:
    """Print a table, and write it to run.log."""
    print_table(facts)
    record.log(table_lines(facts))


def _note_data(experiment: Experiment, record: RunRecord) -> None:
    """Record the data and the recordings that any rank dropped; raise ValueError if these are too many."""
    data = experiment.data
    dropped = {item.id: item for of_rank in ranks.all_gather(data.dropped) for item in of_rank}
    record.data_read(experiment.dataset.fingerprint, [asdict(item) for item in dropped.values()])
    data.refuse_too_many(list(dropped.values()))
    if counts := data.dropped_by_reason(dropped.values()):
        shown = "; ".join(f"{count:,} {reason}" for reason, count in counts.most_common(_SHOWN_REASONS))
        more = "; ..." if len(counts) > _SHOWN_REASONS else ""
        print(f"left out {counts.total():,}, named in run.json: {shown}{more}")


def _loggers(experiment: Experiment) -> list[RunLogger]:
    trainer, config = experiment.trainer, experiment.plain_config()["config"]
    return run_loggers(experiment.folder, config, trainer.tensorboard, trainer.mlflow, trainer.wandb)


def _state_files(experiment: Experiment, planned: Plan) -> StateFiles:
    use_threads(
        experiment.trainer.threads, parameters(experiment.network), planned.threads
    )  # first, because the session records the number
    identity = {**experiment.identity(), "data_fingerprint": experiment.dataset.fingerprint}
    folder, keep = experiment.folder / "checkpoints", experiment.trainer.keep
    return StateFiles(folder, keep, identity, planned.start, environment.session())


def _fit(
    experiment: Experiment, record: RunRecord, loggers: list[RunLogger], files: StateFiles, teacher: Network | None
) -> TrainingResult:
    def on_epoch(history: list[EpochRow]) -> None:
        record.write_history(history)
        record.log([epoch_text(history[-1])])
        for logger in loggers:
            logger.epoch(history[-1])

    return TrainingLoop(
        experiment.trainer,
        experiment.network,
        experiment.objective,
        experiment.task.phases(experiment.trainer.epochs, teacher),
        experiment.augment,
        experiment.data.parts,
        experiment.class_names,
        experiment.seed,
        files,
        on_epoch,
    ).run()


def _save(experiment: Experiment, network: nn.Module, fit: TrainingResult) -> None:
    content = {
        **experiment.plain_config(),
        "front_end": experiment.front_end.state_dict(),
        "network": network.state_dict(),
        "class_names": list(experiment.class_names),
        "data_fingerprint": experiment.dataset.fingerprint,
    }
    path = experiment.folder / "checkpoints" / f"checkpoint_epoch_{fit.best_epoch}_best.pt"
    checkpoint.save_deployable(content, path)
    save_packed(experiment.task.deployment, experiment.untrained(), network, path.with_suffix(".packed"))
