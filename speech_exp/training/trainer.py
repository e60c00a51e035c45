"""The training settings of `conf/trainer`, validated; they apply to any network, objective and task."""

from __future__ import annotations

from speech_exp import ranks
from speech_exp.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, ProportionBelowOne
from speech_exp.data.batches import BatchSize
from speech_exp.training.optimization import Schedule
from speech_exp.training.runtime import Device, Precision, Runtime, set_up
from speech_exp.training.threads import Threads


class Trainer:
    """AdamW with a learning-rate schedule, gradient clipping and early stopping (`speech_exp.training.loop` runs it).

    Args:
        epochs: maximum number of epochs.
        batch_size: utterances per step, in total over all ranks.
        batch_seconds: seconds of audio per step with padding; replaces `batch_size`, which then applies to evaluation only.
        frame_s: time between two feature frames, in seconds.
        epoch_batches: maximum number of batches per epoch; None uses all.
        accumulate: number of parts into which a batch is split to save memory.
        warmup_share: share of all steps in which the learning rate rises to `lr`.
        clip_norm: largest allowed norm of the gradient.
        patience: stop after this many epochs without a better validation result; None never stops early.
        tensorboard: also write TensorBoard event files into the run folder.
        mlflow: tracking URI of an MLflow server that also records the run.
        wandb: Weights & Biases project that also records the run.
        checkpoint_every_s: save the training state this often within an epoch; None saves only after each epoch.
        watchdog_s: print the stack of every thread of every process if a step takes longer; None never does.
        keep: number of training states to keep.
        threads: number of CPU threads; `auto` follows the size of the model (`speech_exp.training.threads`).
    """

    def __init__(
        self,
        epochs: PositiveInt,
        batch_size: PositiveInt,
        batch_seconds: PositiveFloat | None,
        frame_s: PositiveFloat,
        epoch_batches: PositiveInt | None,
        accumulate: PositiveInt,
        lr: PositiveFloat,
        weight_decay: NonNegativeFloat,
        schedule: Schedule,
        warmup_share: ProportionBelowOne,
        clip_norm: PositiveFloat,
        patience: PositiveInt | None,
        device: Device,
        precision: Precision,
        compile: bool,
        deterministic: bool,
        tensorboard: bool,
        mlflow: str | None,
        wandb: str | None,
        checkpoint_every_s: PositiveFloat | None,
        watchdog_s: PositiveFloat | None,
        keep: PositiveInt,
        threads: Threads,
    ) -> None:
        if batch_seconds is None and batch_size % ranks.world_size():
            raise ValueError(
                f"trainer.batch_size={batch_size} is shared by {ranks.world_size()} processes, so it must be a multiple of their number: set "
                f"trainer.batch_size to a multiple of {ranks.world_size()}"
            )
        self.epochs, self.batch_size, self.epoch_batches = epochs, batch_size, epoch_batches
        self.accumulate = accumulate
        self.training_batch = BatchSize(batch_size, None if batch_seconds is None else int(batch_seconds / frame_s))
        self.lr, self.weight_decay, self.schedule, self.warmup_share = lr, weight_decay, schedule, warmup_share
        self.clip_norm, self.patience, self.compile = clip_norm, patience, compile
        self.tensorboard, self.mlflow, self.wandb = tensorboard, mlflow, wandb
        self.checkpoint_every_s, self.watchdog_s, self.keep = checkpoint_every_s, watchdog_s, keep
        self.threads = threads
        self.runtime: Runtime = set_up(device, precision, deterministic)
