"""How training goes, of any network for any objective under any task: the settings of `conf/trainer`, checked."""

from __future__ import annotations

from speech_exp import ranks
from speech_exp.data.batches import BatchSize
from speech_exp.training.optimization import Schedule
from speech_exp.training.runtime import Device, Precision, Runtime, set_up


class Trainer:
    """AdamW with a learning-rate schedule, gradient clipping and early stopping (`speech_exp.training.fitting` carries it out).

    Args:
        epochs: at most so many.
        batch_size: utterances of a step, over all processes that train together.
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
        watchdog_s: a step that takes longer is reported with the stack of each thread of each process; None: never.
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
        if batch_seconds is None and batch_size % ranks.count():
            raise ValueError(
                f"trainer.batch_size={batch_size} is shared by {ranks.count()} processes, which it must divide among: set "
                f"trainer.batch_size to a multiple of {ranks.count()}"
            )
        amounts = {"lr": lr, "clip_norm": clip_norm, "batch_seconds": batch_seconds}
        for key, positive in {**amounts, "checkpoint_every_s": checkpoint_every_s, "watchdog_s": watchdog_s}.items():
            if positive is not None and not positive > 0:
                raise ValueError(f"trainer.{key}={positive}: expected a number above 0, change trainer.{key}")
        if not 0 <= warmup_share < 1:
            raise ValueError(
                f"trainer.warmup_share={warmup_share}: expected a share from 0 up to below 1, change trainer.warmup_share"
            )
        self.epochs, self.batch_size, self.epoch_batches, self.accumulate = (
            epochs,
            batch_size,
            epoch_batches,
            accumulate,
        )
        self.training_batch = BatchSize(batch_size, None if batch_seconds is None else int(batch_seconds / frame_s))
        self.lr, self.weight_decay, self.schedule, self.warmup_share = lr, weight_decay, schedule, warmup_share
        self.clip_norm, self.patience, self.compile = clip_norm, patience, compile
        self.tensorboard, self.mlflow, self.wandb = tensorboard, mlflow, wandb
        self.checkpoint_every_s, self.watchdog_s, self.keep = checkpoint_every_s, watchdog_s, keep
        self.runtime: Runtime = set_up(device, precision, deterministic)
