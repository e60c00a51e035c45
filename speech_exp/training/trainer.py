"""The training loop: any network, objective and task; best epoch by validation alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from speech_exp.data.batches import Batch, Utterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.objective import Network, Objective
from speech_exp.progress import Progress, progress
from speech_exp.tasks.task import Task
from speech_exp.training import checkpoint
from speech_exp.training.runtime import Device, Precision, Runtime, set_up

EpochRow = dict[str, float | str]
Schedule = Literal["cosine", "constant"]


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite; raised before the optimizer could spoil the weights."""


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
        patience: epochs without a better validation after which training stops; None never stops early.
        warmup_share: share of all steps in which the learning rate rises to `lr` (cosine).
        clip_norm: largest allowed norm of the gradient.
        tensorboard: also write event files into the run folder.
    """

    def __init__(
        self,
        epochs: int,
        batch_size: int,
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
        for key, value in {"epochs": epochs, "batch_size": batch_size, "patience": patience}.items():
            if value is not None and value < 1:
                raise ValueError(f"trainer.{key}={value}: expected at least 1, change trainer.{key}")
        for key, positive in {"lr": lr, "clip_norm": clip_norm}.items():
            if not positive > 0:
                raise ValueError(f"trainer.{key}={positive}: expected a number above 0, change trainer.{key}")
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.schedule, self.warmup_share, self.clip_norm, self.patience = schedule, warmup_share, clip_norm, patience
        self.compile, self.tensorboard = compile, tensorboard
        self.runtime: Runtime = set_up(device, precision, deterministic)

    def batches_per_epoch(self, utterances: int) -> int:
        return math.ceil(utterances / self.batch_size)

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
        train, batches = parts["train"], self.batches_per_epoch(len(parts["train"]))
        phases = task.phases(self.epochs)
        scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        order = torch.Generator().manual_seed(seed)
        augment.seed(seed, self.runtime.device)
        forward: nn.Module = torch.compile(network, dynamic=True) if self.compile else network  # type: ignore[assignment]
        best: tuple[nn.Module, int, dict[str, float]] | None = None
        started, step, epoch, spent_s = time.perf_counter(), 0, 0, 0.0

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
                steps = len(phase.epochs) * batches
                optimizer = self._optimizer(network, phase.lr or self.lr)
                scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(self._lr_factor, steps=steps))
                for epoch in phase.epochs:
                    epoch_started = time.perf_counter()
                    lr = float(scheduler.get_last_lr()[0])
                    task.begin_epoch(network, epoch)
                    network.train()
                    loss_sum = 0.0
                    for batch in train.shuffled(self.batch_size, order):
                        step += 1
                        loss = self._step(network, forward, augment(batch), objective, task, optimizer, scaler, step)
                        loss_sum += len(batch.ids) * loss
                        scheduler.step()
                        task.after_step(network, scheduler.last_epoch, steps)
                    task.after_epoch(network, epoch)
                    spent_s += (train_s := time.perf_counter() - epoch_started)
                    metrics = validate()
                    speed = len(train) / train_s
                    on_epoch(_row(task, epoch, loss_sum / len(train), metrics, lr, epoch_started, speed))
                    self._save_state(folder, epoch, network, optimizer, scheduler, scaler, order)
                    self._tell(bar, loss_sum / len(train), metrics, speed)
                    if best and self.patience and epoch - best[1] >= self.patience and task.may_stop_early(epoch):
                        break
        if not phases:
            on_epoch(_row(task, 0, math.nan, validate(), 0.0, started, 0.0))
        assert best is not None, "a task lets at least its last epoch compete"
        utterances = step / batches * len(train)
        return Fit(*best, epoch, time.perf_counter() - started, utterances / spent_s if spent_s else 0.0)

    def _step(
        self,
        network: Network,
        forward: nn.Module,
        batch: Batch,
        objective: Objective,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        step: int,
    ) -> float:
        with task.training_form(network):
            with self.runtime.autocast():
                loss = task.loss(objective, forward, batch)
            value = loss.item()
            if not math.isfinite(value):
                shown = ", ".join(batch.ids[:5]) + (", ..." if len(batch.ids) > 5 else "")
                raise NonFiniteLossError(
                    f"the loss became {value} at step {step} in a batch of {len(batch.ids)} utterances ({shown}): "
                    f"lower trainer.lr or use trainer.precision=fp32"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return value

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        """AdamW; biases are not decayed (they cannot overfit by growing, and decay would only shift them)."""
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, fused=True)

    def _lr_factor(self, step: int, steps: int) -> float:
        """Share of `lr` at `step`: linear rise, then a fall to 0 as half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
        if self.schedule == "constant":
            return 1.0
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def _save_state(
        self,
        folder: Path,
        epoch: int,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        scaler: torch.amp.GradScaler,
        order: torch.Generator,
    ) -> None:
        """The state after this epoch; the one before it is removed once this is whole."""
        content = {
            "epoch": epoch,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": scaler.state_dict(),
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
