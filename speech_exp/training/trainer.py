"""The training loop: any network, objective and task; best epoch by validation alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from speech_exp.data.batches import Batch, BatchSize, Utterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.objective import Network, Objective
from speech_exp.progress import Progress, progress
from speech_exp.tasks.task import Phase, Task
from speech_exp.training import checkpoint
from speech_exp.training.monitor import DeviceMonitor
from speech_exp.training.optimization import Optimization, Schedule
from speech_exp.training.runtime import Device, Precision, Runtime, compiled, set_up

EpochRow = dict[str, float | str]


@dataclass(frozen=True)
class Fit:
    """What training found: `best` is what was validated at `best_epoch`, epochs counted from 1 (0: before any)."""

    best: nn.Module
    best_epoch: int
    best_metrics: dict[str, float]
    epochs: int
    seconds: float
    utterances_per_s: float


class Trainer:
    """AdamW with a learning-rate schedule, gradient clipping and early stopping.

    Args:
        epochs: at most so many.
        batch_size: utterances of a step.
        batch_seconds: seconds of a step with their padding, in place of `batch_size`, which then holds for evaluation only.
        frame_s: time between two frames of features.
        epoch_batches: of an epoch at most; None takes all.
        accumulate: parts of a batch that are computed one after the other, for less memory.
        warmup_share: share of all steps in which the learning rate rises to `lr`.
        clip_norm: largest allowed norm of the gradient.
        patience: epochs without a better validation after which training stops; None never stops early.
        tensorboard: also write event files into the run folder.
    """

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        batch_seconds: float | None,
        frame_s: float,
        epoch_batches: int | None,
        accumulate: int,
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        warmup_share: float,
        clip_norm: float,
        patience: int | None,
        device: Device,
        precision: Precision,
        compile: bool,
        deterministic: bool,
        tensorboard: bool,
    ) -> None:
        counts = {"epochs": epochs, "batch_size": batch_size, "epoch_batches": epoch_batches, "accumulate": accumulate}
        for key, value in {**counts, "patience": patience}.items():
            if value is not None and value < 1:
                raise ValueError(f"trainer.{key}={value}: expected at least 1, change trainer.{key}")
        for key, positive in {"lr": lr, "clip_norm": clip_norm, "batch_seconds": batch_seconds}.items():
            if positive is not None and not positive > 0:
                raise ValueError(f"trainer.{key}={positive}: expected a number above 0, change trainer.{key}")
        if not 0 <= warmup_share < 1:
            raise ValueError(
                f"trainer.warmup_share={warmup_share}: expected a share from 0 up to below 1, change trainer.warmup_share"
            )
        self.epochs, self.batch_size, self.epoch_batches = epochs, batch_size, epoch_batches
        self.accumulate, self.patience = accumulate, patience
        self.training_batch = BatchSize(batch_size, None if batch_seconds is None else int(batch_seconds / frame_s))
        self.lr, self.weight_decay, self.schedule = lr, weight_decay, schedule
        self.warmup_share, self.clip_norm = warmup_share, clip_norm
        self.compile, self.tensorboard = compile, tensorboard
        self.runtime: Runtime = set_up(device, precision, deterministic)

    def fit(
        self,
        network: Network,
        objective: Objective,
        task: Task,
        augment: SpecAugment,
        parts: Mapping[str, Utterances],
        class_names: tuple[str, ...],
        seed: int,
        folder: Path,
        on_epoch: Callable[[EpochRow], None],
    ) -> Fit:
        """Train on `parts["train"]`, choose by `parts["validation"]`; `on_epoch` gets each row of the history.

        A task without any phase deploys the network as it is: it is validated as epoch 0.
        """
        train = parts["train"]
        phases = task.phases(self.epochs)
        order = torch.Generator().manual_seed(seed)
        augment.seed(seed, self.runtime.device)
        forward: nn.Module = compiled(network) if self.compile else network
        best: tuple[nn.Module, int, dict[str, float]] | None = None
        started, epoch, spent_s, utterances = time.perf_counter(), 0, 0.0, 0
        monitor = DeviceMonitor(self.runtime.device)

        def validate() -> dict[str, float]:
            nonlocal best
            candidate = task.candidate(network, epoch)
            with self.runtime.autocast():
                metrics = objective.evaluate(
                    candidate or network, parts["validation"].by_length(self.batch_size), class_names
                ).metrics
            if candidate is not None and (best is None or objective.better(metrics, best[2])):
                best = (copy.deepcopy(candidate), epoch, metrics)
            return metrics

        with progress("train (epochs)", sum(len(phase.epochs) for phase in phases)) as bar:
            for phase in phases:
                task.begin_phase(network, phase, train, seed)
                optimization = self._optimization(network, phase, train)
                for epoch in phase.epochs:
                    epoch_started, lr = time.perf_counter(), optimization.lr
                    task.begin_epoch(network, epoch)
                    network.train()
                    loss_sum, weight_sum, heard = 0.0, 0, 0
                    for batch in islice(train.shuffled(self.training_batch, order), self.epoch_batches):
                        loss = self._step(optimization, network, forward, batch, objective, task, augment)
                        loss_sum += (weight := objective.weight(batch)) * loss
                        weight_sum, heard = weight_sum + weight, heard + len(batch.ids)
                        task.after_step(network, optimization.steps_done, optimization.steps)
                    task.after_epoch(network, epoch)
                    spent_s += (train_s := time.perf_counter() - epoch_started)
                    utterances += heard
                    metrics = validate()
                    train_loss, speed = loss_sum / weight_sum, heard / train_s
                    on_epoch(
                        {**_row(task, epoch, train_loss, metrics, lr, epoch_started, speed), **monitor.epoch_values()}
                    )
                    self._save_state(folder, epoch, network, optimization, order)
                    self._tell(bar, train_loss, metrics, speed)
                    if best and self.patience and epoch - best[1] >= self.patience and task.may_stop_early(epoch):
                        break
        if not phases:
            on_epoch({**_row(task, 0, math.nan, validate(), 0.0, started, 0.0), **monitor.epoch_values()})
        monitor.close()
        assert best is not None, "a task lets at least its last epoch compete"
        return Fit(*best, epoch, time.perf_counter() - started, utterances / spent_s if spent_s else 0.0)

    def _optimization(self, network: nn.Module, phase: Phase, train: Utterances) -> Optimization:
        batches = train.batches(self.training_batch)
        return Optimization(
            network,
            self.runtime,
            len(phase.epochs) * min(batches, self.epoch_batches or batches),
            phase.lr or self.lr,
            self.weight_decay,
            self.schedule,
            self.warmup_share,
            self.clip_norm,
        )

    def _step(
        self,
        optimization: Optimization,
        network: Network,
        forward: nn.Module,
        batch: Batch,
        objective: Objective,
        task: Task,
        augment: SpecAugment,
    ) -> float:
        """The loss of one step on a whole batch, whose parts are weighed so that their number does not matter."""
        split = batch.split(self.accumulate)
        weights = [objective.weight(part) for part in split]
        parts = [
            (augment(part.repeated(objective.views)), weight / sum(weights))
            for part, weight in zip(split, weights, strict=True)
        ]
        with task.training_form(network):
            return optimization.step(parts, lambda part: task.loss(objective, forward, part))

    def _save_state(
        self, folder: Path, epoch: int, network: nn.Module, optimization: Optimization, order: torch.Generator
    ) -> None:
        """The state after this epoch; the one before it is removed once this is whole."""
        content = {
            "epoch": epoch,
            "network": network.state_dict(),
            **optimization.state_dict(),
            "generators": {"torch": torch.get_rng_state(), "order": order.get_state()},
        }
        checkpoint.save(content, folder / f"checkpoint_epoch_{epoch}.pt")
        (folder / f"checkpoint_epoch_{epoch - 1}.pt").unlink(missing_ok=True)

    def _tell(self, bar: Progress, loss: float, metrics: dict[str, float], utterances_per_s: float) -> None:
        shown = "  ".join(f"val_{name} {value:.4f}" for name, value in metrics.items())
        bar.advance(note=f"loss {loss:.4f}  {shown}  {utterances_per_s:,.0f} utt/s")


def _row(
    task: Task, epoch: int, loss: float, metrics: dict[str, float], lr: float, started_s: float, utterances_per_s: float
) -> EpochRow:
    """A row of history.csv; tasks that act in phases name each epoch's."""
    row: EpochRow = {
        "epoch": epoch,
        "train_loss": loss,
        **{f"val_{name}": value for name, value in metrics.items()},
        "lr": lr,
        "seconds": time.perf_counter() - started_s,
        "utterances_per_s": utterances_per_s,
    }
    return row | {"phase": stage} if (stage := task.stage(epoch)) else row
