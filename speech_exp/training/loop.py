"""The training loop: phases, epochs and batches, with a training state that can be saved and resumed after any batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from speech_exp import ranks
from speech_exp.data.batches import Share, Utterances
from speech_exp.features.augment import SpecAugment
from speech_exp.features.batch import Batch
from speech_exp.objectives.objective import Network, Objective
from speech_exp.progress import Progress, progress
from speech_exp.tasks.phases import Hooks, Phase
from speech_exp.training.data_parallel import interleave_ranks, refuse_batch_normalization
from speech_exp.training.monitor import DeviceMonitor, Watchdog
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import compiled
from speech_exp.training.signals import StopSignals
from speech_exp.training.state import (
    Best,
    EpochRow,
    StateFiles,
    TrainingState,
    epoch_text,
    random_state,
    set_random_state,
)
from speech_exp.training.trainer import Trainer


@dataclass(frozen=True)
class TrainingResult:
    """Result of training: `best` is the network validated at `best_epoch`; epochs count from 1 (0: before any training)."""

    best: nn.Module
    best_epoch: int
    best_metrics: dict[str, float]
    epochs: int
    reference: Network | None  # float network from which the constraint started, if it acts during training
    seconds: float
    utterances_per_s: float
    history: list[EpochRow]


class TrainingLoop:
    """One training run: trains on `parts["train"]` and selects the best epoch on `parts["validation"]` only.

    Training resumes from the state in `files`, if there is one; `on_epoch` receives the history after each epoch. Without
    phases the network is only validated, as epoch 0.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: Network,
        objective: Objective,
        phases: Sequence[Phase],
        augment: SpecAugment,
        parts: Mapping[str, Utterances],
        class_names: tuple[str, ...],
        seed: int,
        files: StateFiles,
        on_epoch: Callable[[list[EpochRow]], None],
    ) -> None:
        self.trainer, self.network, self.objective, self.phases = trainer, network, objective, phases
        self.augment, self.parts, self.class_names, self.seed = augment, parts, class_names, seed
        self.files, self.on_epoch = files, on_epoch
        self.train = parts["train"]
        self.forward: nn.Module = compiled(network) if trainer.compile else network
        self.order = torch.Generator().manual_seed(seed)
        self.epoch_order = self.order.get_state()  # the generator's state before the epoch in progress
        batches = self.train.batches(trainer.training_batch)
        self.epoch_steps, self.bar = min(batches, trainer.epoch_batches or batches), Progress(0)
        self.share = Share(ranks.rank(), ranks.world_size())
        refuse_batch_normalization(network)
        if ranks.rank():  # each rank must draw its own dropout and augmentation
            torch.manual_seed(seed + ranks.rank())
        augment.seed(seed + ranks.rank(), trainer.runtime.device)
        self.state, self.saved = TrainingState(), files.load()
        self.optimization: Optimization | None = None  # of the phase in progress
        self.hooks = Hooks(network, self.train, seed)  # of the phase in progress
        self.started_s = self.saved_s = time.perf_counter()
        self.signals, self.monitor = StopSignals(), DeviceMonitor(trainer.runtime.device)
        self.watchdog = Watchdog(trainer.watchdog_s)

    def run(self) -> TrainingResult:
        phases = self.phases
        saved = self.saved["state"] if self.saved else {"phase": 0, "epoch": 0, "batches": 0}
        steps, done = self.epoch_steps * sum(len(phase.epochs) for phase in phases), self.epoch_steps * saved["epoch"]
        with self.signals, self.watchdog, progress("train", steps, done=done + saved["batches"]) as self.bar:
            for number in range(saved["phase"], len(phases)):
                self._phase(number, phases[number])
        state = self.state
        if not phases:
            started_s = time.perf_counter()
            self._end_epoch(0, self._row(0, math.nan, self._validate(0), 0.0, started_s))
        self.monitor.close()
        best = state.best
        assert best is not None, "at least the last epoch competes"
        speed = state.utterances / state.train_s if state.train_s else 0.0
        reference, seconds = self.hooks.reference, self._training_s()
        return TrainingResult(
            best.network, best.epoch, best.metrics, state.epoch, reference, seconds, speed, state.history
        )

    def _phase(self, number: int, phase: Phase) -> None:
        saved, self.saved = self.saved, None
        if saved is not None:
            self.network.load_state_dict(saved["state"]["phase_start"])
        self.state.begin_phase(number, self.network)
        self.hooks = phase.start(self.network, self.train, self.seed)
        self.optimization = self._optimization(phase)
        if saved is not None:
            self._resume(saved)
        for epoch in range(max(phase.first, self.state.epoch + 1), phase.last + 1):
            if self.state.stopped:
                return
            started_s = time.perf_counter()
            train_loss = self._epoch(epoch, self.optimization)
            metrics, lr = self._validate(epoch), self.state.lr
            row = self._row(epoch, train_loss, metrics, lr, started_s)
            self.state.stopped = self._may_stop(epoch)
            self._end_epoch(epoch, row)
            self.bar.reach(epoch * self.epoch_steps, epoch_text(row))

    def _epoch(self, epoch: int, optimization: Optimization) -> float:
        """Train one epoch, or the rest of one; return the mean loss over the whole epoch."""
        state = self.state
        if not state.batches:
            state.begin_epoch(optimization.lr)
            self.epoch_order = self.order.get_state()
            self.hooks.begin_epoch(epoch)
        ranks.broadcast_(list(self.network.state_dict().values()))  # different GPU models round differently
        self.network.train()
        before_s, started_s = state.epoch_s, time.perf_counter()
        limit = self.trainer.epoch_batches
        batches = self.train.shuffled(self.trainer.training_batch, self.order, state.batches, self.share)
        left = None if limit is None else limit - state.batches
        if left == 0:
            next(batches, None)  # draw the epoch's order, as was done before training stopped after its last batch
        for batch in self._watched(islice(batches, left)):
            save, stop = self._step(batch, optimization)
            state.epoch_s = before_s + time.perf_counter() - started_s
            self.bar.reach((epoch - 1) * self.epoch_steps + state.batches)
            if save or stop:
                self._save()
            if stop:
                self.signals.pass_on()
        self.hooks.after_epoch(epoch)
        state.utterances += state.epoch_utterances
        state.train_s += state.epoch_s
        return state.loss_sum / max(1, state.weight_sum)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, measure the time spent waiting for them, and report a stalled step."""
        while True:
            self.watchdog.step()
            requested_s = time.perf_counter()
            batch = next(batches, None)
            self.state.wait_s += time.perf_counter() - requested_s
            if batch is None:
                self.watchdog.pause()
                return
            yield batch

    def _step(self, batch: Batch, optimization: Optimization) -> tuple[bool, bool]:
        """Take one optimizer step on a whole batch; the result does not depend on the number of parts or ranks.

        Return whether to save the state now and whether a signal asks to stop; all ranks get the same answers.
        """
        objective = self.objective
        split = batch.split(self.trainer.accumulate) if batch.ids else []
        weights = [objective.weight(part) for part in split]
        sums = [sum(weights), len(batch.ids), self._save_is_due(), self.signals.received is not None]
        weight, utterances, save, stop = ranks.all_reduce_values(sums, self.trainer.runtime.device)
        parts = [
            (self.augment(part.repeated(objective.views)), part_weight / weight)
            for part, part_weight in zip(split, weights, strict=True)
        ]
        loss = 0.0
        if weight:  # otherwise the whole batch was bad audio
            loss = optimization.step(
                parts, lambda part: self.hooks.loss(objective, self.forward, part), self.hooks.training_form()
            )
        self.state.add(loss, int(weight), int(utterances), optimization.gradient_norm)
        self.hooks.after_step(optimization.steps_done, optimization.steps)
        return bool(save), bool(stop)

    def _validate(self, epoch: int) -> dict[str, float]:
        candidate = self.hooks.candidate(epoch)
        with self.trainer.runtime.autocast():
            metrics = self.objective.evaluate(
                candidate or self.network,
                self.parts["validation"].by_length(self.trainer.batch_size, self.share),
                self.class_names,
                interleave_ranks,
            ).metrics
        best = self.state.best
        if candidate is not None and (best is None or self.objective.better(metrics, best.metrics)):
            self.state.best = Best(copy.deepcopy(candidate), epoch, metrics)
        return metrics

    def _may_stop(self, epoch: int) -> bool:
        best, patience = self.state.best, self.trainer.patience
        return bool(best and patience and epoch - best.epoch >= patience and self.hooks.may_stop_early(epoch))

    def _row(self, epoch: int, loss: float, metrics: dict[str, float], lr: float, started_s: float) -> EpochRow:
        """Return a row of history.csv; tasks with phases name the phase of each epoch."""
        state = self.state
        row: EpochRow = {
            "epoch": epoch,
            "train_loss": loss,
            **{f"val_{name}": value for name, value in metrics.items()},
            "lr": lr,
            "seconds": time.perf_counter() - started_s,
            "utterances_per_s": state.epoch_utterances / state.epoch_s if state.epoch_s else 0.0,
            "gradient_norm": float(state.gradient_norm_sum) / max(1, state.batches),
            "data_wait_ms": 1000 * state.wait_s / max(1, state.batches),
            **self.monitor.epoch_values(),
        }
        return row | {"phase": stage} if (stage := self.hooks.stage(epoch)) else row

    def _end_epoch(self, epoch: int, row: EpochRow) -> None:
        self.state.end_epoch(epoch, row)
        self.epoch_order = self.order.get_state()
        self._save()
        if not ranks.rank():
            self.on_epoch(self.state.history)
        if any(ranks.all_gather(self.signals.received is not None)):
            self.signals.pass_on()

    def _save_is_due(self) -> bool:
        """Whether to save within the epoch, by the clock of rank 0, which writes the state."""
        every_s = self.trainer.checkpoint_every_s
        return every_s is not None and not ranks.rank() and time.perf_counter() - self.saved_s >= every_s

    def _save(self) -> None:
        generators = ranks.all_gather(
            {**random_state(self.trainer.runtime.device), "augment": self.augment.generator.get_state()}
        )
        if ranks.rank():
            return
        state = self.state
        content = {
            "state": {**state.content(), "training_s": self._training_s()},
            "network": self.network.state_dict(),
            "optimization": self.optimization.state_dict() if self.optimization else {},
            "task": self.hooks.state(),
            "order": self.epoch_order,
            "generators": generators,  # of each rank
        }
        self.files.save(content, state.epoch, state.batches)
        self.saved_s = time.perf_counter()

    def _resume(self, saved: dict[str, Any]) -> None:
        """Resume from a state; the hooks have already begun their phase from the network at the start of that phase."""
        assert self.optimization is not None
        best = saved["state"].pop("best")
        self.state = TrainingState(**saved["state"])
        self.network.load_state_dict(saved["network"])
        self.optimization.load_state_dict(saved["optimization"])
        self.hooks.load_state(saved["task"])
        if best is not None:
            self.state.best = Best(
                self.hooks.restored(copy.deepcopy(self.network), best["network"]), best["epoch"], best["metrics"]
            )
        self.order.set_state(saved["order"])
        self.epoch_order = saved["order"]
        if ranks.rank() < len(saved["generators"]):  # ranks that did not exist before keep their fresh generators
            generators = saved["generators"][ranks.rank()]
            set_random_state(generators, self.trainer.runtime.device)
            self.augment.generator.set_state(generators["augment"])

    def _training_s(self) -> float:
        """Return the time spent on this training run, including earlier processes."""
        return self.state.training_s + time.perf_counter() - self.started_s

    def _optimization(self, phase: Phase) -> Optimization:
        trainer = self.trainer
        return Optimization(
            self.network,
            trainer.runtime,
            len(phase.epochs) * self.epoch_steps,
            phase.lr or trainer.lr,
            trainer.weight_decay,
            trainer.schedule,
            trainer.warmup_share,
            trainer.clip_norm,
        )
