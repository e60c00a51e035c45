"""Training of any network for any objective under any task; best epoch by validation alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from speech_exp.data.batches import BatchSize, Utterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.objective import Network, Objective
from speech_exp.tasks.task import Task
from speech_exp.training.fitting import Fit, FitSettings, Fitting
from speech_exp.training.optimization import Schedule
from speech_exp.training.runtime import Device, Precision, Runtime, set_up
from speech_exp.training.state import EpochRow, StateFiles


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
        mlflow: also tell the MLflow server of this tracking URI.
        wandb: also tell this project of Weights & Biases.
        checkpoint_every_s: after so long the training state is saved within an epoch, too; None: after epochs alone.
        watchdog_s: a step that takes longer is reported with the stack of each thread; None: never.
        keep: training states that are kept.
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
        mlflow: str | None,
        wandb: str | None,
        checkpoint_every_s: float | None,
        watchdog_s: float | None,
        keep: int,
    ) -> None:
        counts = {"epochs": epochs, "batch_size": batch_size, "epoch_batches": epoch_batches, "accumulate": accumulate}
        for key, value in {**counts, "patience": patience, "keep": keep}.items():
            if value is not None and value < 1:
                raise ValueError(f"trainer.{key}={value}: expected at least 1, change trainer.{key}")
        amounts = {"lr": lr, "clip_norm": clip_norm, "batch_seconds": batch_seconds}
        for key, positive in {**amounts, "checkpoint_every_s": checkpoint_every_s, "watchdog_s": watchdog_s}.items():
            if positive is not None and not positive > 0:
                raise ValueError(f"trainer.{key}={positive}: expected a number above 0, change trainer.{key}")
        if not 0 <= warmup_share < 1:
            raise ValueError(
                f"trainer.warmup_share={warmup_share}: expected a share from 0 up to below 1, change trainer.warmup_share"
            )
        self.epochs, self.batch_size, self.keep = epochs, batch_size, keep
        self.tensorboard, self.mlflow, self.wandb = tensorboard, mlflow, wandb
        self.training_batch = BatchSize(batch_size, None if batch_seconds is None else int(batch_seconds / frame_s))
        self.runtime: Runtime = set_up(device, precision, deterministic)
        self.settings = FitSettings(
            epochs,
            batch_size,
            self.training_batch,
            epoch_batches,
            accumulate,
            lr,
            weight_decay,
            schedule,
            warmup_share,
            clip_norm,
            patience,
            compile,
            checkpoint_every_s,
            watchdog_s,
            self.runtime,
        )

    def fit(
        self,
        network: Network,
        objective: Objective,
        task: Task,
        augment: SpecAugment,
        parts: Mapping[str, Utterances],
        class_names: tuple[str, ...],
        seed: int,
        files: StateFiles,
        on_epoch: Callable[[list[EpochRow]], None],
    ) -> Fit:
        """Train on `parts["train"]`, choose by `parts["validation"]`; `on_epoch` gets the history whenever it has grown.

        A state that `files` holds is taken up. A task without any phase deploys the network as it is: it is validated
        as epoch 0.
        """
        return Fitting(
            self.settings, network, objective, task, augment, parts, class_names, seed, files, on_epoch
        ).run()
