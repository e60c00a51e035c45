"""The training loop: phases, epochs and batches of one fit, whose state can be saved and taken up after any batch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from speech_exp import ranks
from speech_exp.data.batches import Batch, Share, Utterances
from speech_exp.features.augment import SpecAugment
from speech_exp.objectives.objective import Network, Objective
from speech_exp.progress import Progress, progress
from speech_exp.tasks.task import Phase, Task
from speech_exp.training.monitor import DeviceMonitor, Watchdog
from speech_exp.training.optimization import Optimization
from speech_exp.training.runtime import compiled
from speech_exp.training.signals import StopSignals
from speech_exp.training.state import Best, EpochRow, FitState, StateFiles, random_state, set_random_state
from speech_exp.training.trainer import Trainer


@dataclass(frozen=True)
class Fit:
    """What training found: `best` is what was validated at `best_epoch`, epochs counted from 1 (0: before any)."""

    best: nn.Module
    best_epoch: int
    best_metrics: dict[str, float]
    epochs: int
    seconds: float
    utterances_per_s: float
    history: list[EpochRow]


class Fitting:
    """One fit: trains on `parts["train"]`, chooses the best epoch by `parts["validation"]` alone.

    A state that `files` holds is taken up; `on_epoch` gets the history whenever it has grown. A task without any phase
    deploys the network as it is: it is validated as epoch 0.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: Network,
        objective: Objective,
        task: Task,
        augment: SpecAugment,
        parts: Mapping[str, Utterances],
        class_names: tuple[str, ...],
        seed: int,
        files: StateFiles,
        on_epoch: Callable[[list[EpochRow]], None],
    ) -> None:
        self.trainer, self.network, self.objective, self.task = trainer, network, objective, task
        self.augment, self.parts, self.class_names, self.seed = augment, parts, class_names, seed
        self.files, self.on_epoch = files, on_epoch
        self.train = parts["train"]
        self.forward: nn.Module = compiled(network) if trainer.compile else network
        self.order = torch.Generator().manual_seed(seed)
        self.epoch_order = self.order.get_state()  # of the generator, before the epoch in progress
        self.share = Share(ranks.number(), ranks.count())
        _refuse_batch_normalization(network)
        if ranks.number():  # dropout and augmentation of the ranks are not the same
            torch.manual_seed(seed + ranks.number())
        augment.seed(seed + ranks.number(), trainer.runtime.device)
        self.state, self.saved = FitState(), files.load()
        self.optimization: Optimization | None = None  # of the phase in progress
        self.started_s = self.saved_s = time.perf_counter()
        self.signals, self.monitor = StopSignals(), DeviceMonitor(trainer.runtime.device)
        self.watchdog = Watchdog(trainer.watchdog_s)

    def run(self) -> Fit:
        phases = self.task.phases(self.trainer.epochs)
        first = self.saved["state"]["phase"] if self.saved else 0
        with self.signals, self.watchdog, progress("train (epochs)", sum(len(phase.epochs) for phase in phases)) as bar:
            for number in range(first, len(phases)):
                self._phase(number, phases[number], bar)
        state = self.state
        if not phases:
            started_s = time.perf_counter()
            self._end_epoch(0, self._row(0, math.nan, self._validate(0), 0.0, started_s))
        self.monitor.close()
        best = state.best
        assert best is not None, "a task lets at least its last epoch compete"
        speed = state.utterances / state.train_s if state.train_s else 0.0
        return Fit(best.network, best.epoch, best.metrics, state.epoch, self._fit_s(), speed, state.history)

    def _phase(self, number: int, phase: Phase, bar: Progress) -> None:
        saved, self.saved = self.saved, None
        if saved is not None:
            self.network.load_state_dict(saved["state"]["phase_start"])
        self.state.begin_phase(number, self.network)
        self.task.begin_phase(self.network, phase, self.train, self.seed)
        self.optimization = self._optimization(phase)
        if saved is not None:
            self._take_up(saved)
            bar.advance(self.state.epoch, note="taken up where it stopped")
        for epoch in range(max(phase.first, self.state.epoch + 1), phase.last + 1):
            if self.state.stopped:
                return
            started_s = time.perf_counter()
            train_loss = self._epoch(epoch, self.optimization)
            metrics, lr = self._validate(epoch), self.state.lr
            row = self._row(epoch, train_loss, metrics, lr, started_s)
            self.state.stopped = self._may_stop(epoch)
            self._end_epoch(epoch, row)
            shown = "  ".join(f"val_{name} {value:.4f}" for name, value in metrics.items())
            bar.advance(note=f"loss {train_loss:.4f}  {shown}  {row['utterances_per_s']:,.0f} utt/s")

    def _epoch(self, epoch: int, optimization: Optimization) -> float:
        """Train one epoch, or the rest of it; returns the mean loss of all of it."""
        state = self.state
        if not state.batches:
            state.begin_epoch(optimization.lr)
            self.epoch_order = self.order.get_state()
            self.task.begin_epoch(self.network, epoch)
        ranks.copy_first_(list(self.network.state_dict().values()))  # unlike GPUs round unlike
        self.network.train()
        before_s, started_s = state.epoch_s, time.perf_counter()
        limit = self.trainer.epoch_batches
        batches = self.train.shuffled(self.trainer.training_batch, self.order, state.batches, self.share)
        left = None if limit is None else limit - state.batches
        if left == 0:
            next(batches, None)  # draws the epoch's order, as before it was broken off after its last batch
        for batch in self._watched(islice(batches, left)):
            save, stop = self._step(batch, optimization)
            state.epoch_s = before_s + time.perf_counter() - started_s
            if save or stop:
                self._save()
            if stop:
                self.signals.pass_on()
        self.task.after_epoch(self.network, epoch)
        state.utterances += state.heard
        state.train_s += state.epoch_s
        return state.loss_sum / max(1, state.weight_sum)

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time that each is waited for is noted, and a step that stalls is reported."""
        while True:
            self.watchdog.step()
            asked_s = time.perf_counter()
            batch = next(batches, None)
            self.state.wait_s += time.perf_counter() - asked_s
            if batch is None:
                self.watchdog.rest()
                return
            yield batch

    def _step(self, batch: Batch, optimization: Optimization) -> tuple[bool, bool]:
        """One step on a whole batch, whose parts are weighed so that neither their number nor that of the ranks matters.

        Returns whether to save the state now, and whether a signal asks to end, as all ranks agree.
        """
        objective = self.objective
        split = batch.split(self.trainer.accumulate) if batch.ids else []
        weights = [objective.weight(part) for part in split]
        told = [sum(weights), len(batch.ids), self._save_is_due(), self.signals.received is not None]
        weight, utterances, save, stop = ranks.sums(told, self.trainer.runtime.device)
        parts = [
            (self.augment(part.repeated(objective.views)), own / weight)
            for part, own in zip(split, weights, strict=True)
        ]
        loss = 0.0
        if weight:  # not all of the batch was bad audio
            with self.task.training_form(self.network):
                loss = optimization.step(parts, lambda part: self.task.loss(objective, self.forward, part))
        self.state.add(loss, int(weight), int(utterances), optimization.gradient_norm)
        self.task.after_step(self.network, optimization.steps_done, optimization.steps)
        return bool(save), bool(stop)

    def _validate(self, epoch: int) -> dict[str, float]:
        candidate = self.task.candidate(self.network, epoch)
        with self.trainer.runtime.autocast():
            metrics = self.objective.evaluate(
                candidate or self.network,
                self.parts["validation"].by_length(self.trainer.batch_size, self.share),
                self.class_names,
                in_turn,
            ).metrics
        best = self.state.best
        if candidate is not None and (best is None or self.objective.better(metrics, best.metrics)):
            self.state.best = Best(copy.deepcopy(candidate), epoch, metrics)
        return metrics

    def _may_stop(self, epoch: int) -> bool:
        best, patience = self.state.best, self.trainer.patience
        return bool(best and patience and epoch - best.epoch >= patience and self.task.may_stop_early(epoch))

    def _row(self, epoch: int, loss: float, metrics: dict[str, float], lr: float, started_s: float) -> EpochRow:
        """A row of history.csv; tasks that act in phases name each epoch's."""
        state = self.state
        row: EpochRow = {
            "epoch": epoch,
            "train_loss": loss,
            **{f"val_{name}": value for name, value in metrics.items()},
            "lr": lr,
            "seconds": time.perf_counter() - started_s,
            "utterances_per_s": state.heard / state.epoch_s if state.epoch_s else 0.0,
            "gradient_norm": float(state.gradient_norm_sum) / max(1, state.batches),
            "data_wait_ms": 1000 * state.wait_s / max(1, state.batches),
            **self.monitor.epoch_values(),
        }
        return row | {"phase": stage} if (stage := self.task.stage(epoch)) else row

    def _end_epoch(self, epoch: int, row: EpochRow) -> None:
        self.state.end_epoch(epoch, row)
        self.epoch_order = self.order.get_state()
        self._save()
        if not ranks.number():
            self.on_epoch(self.state.history)
        if any(ranks.gathered(self.signals.received is not None)):
            self.signals.pass_on()

    def _save_is_due(self) -> bool:
        """Within an epoch, by the clock of the process that saves."""
        every_s = self.trainer.checkpoint_every_s
        return every_s is not None and not ranks.number() and time.perf_counter() - self.saved_s >= every_s

    def _save(self) -> None:
        generators = ranks.gathered({**random_state(), "augment": self.augment.generator.get_state()})
        if ranks.number():
            return
        state = self.state
        content = {
            "state": {**state.content(), "fit_s": self._fit_s()},
            "network": self.network.state_dict(),
            "optimization": self.optimization.state_dict() if self.optimization else {},
            "task": self.task.state(),
            "order": self.epoch_order,
            "generators": generators,  # of each rank
        }
        self.files.save(content, state.epoch, state.batches)
        self.saved_s = time.perf_counter()

    def _take_up(self, saved: dict[str, Any]) -> None:
        """Go on from a state; the task has begun its phase from the network that the phase began with."""
        assert self.optimization is not None
        best = saved["state"].pop("best")
        self.state = FitState(**saved["state"])
        self.network.load_state_dict(saved["network"])
        self.optimization.load_state_dict(saved["optimization"])
        self.task.load_state(saved["task"])
        if best is not None:
            self.state.best = Best(self._revived(best["network"]), best["epoch"], best["metrics"])
        self.order.set_state(saved["order"])
        self.epoch_order = saved["order"]
        if ranks.number() < len(saved["generators"]):  # more ranks than before draw anew
            generators = saved["generators"][ranks.number()]
            set_random_state(generators)
            self.augment.generator.set_state(generators["augment"])

    def _revived(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        """A validated network from its weights: of the float network's kind, or of the task's deployable one."""
        if weights.keys() == self.network.state_dict().keys():
            network = copy.deepcopy(self.network)
            network.load_state_dict(weights)
            return network
        return self.task.restore(copy.deepcopy(self.network), weights)

    def _fit_s(self) -> float:
        """Time spent on this fit, by earlier processes too."""
        return self.state.fit_s + time.perf_counter() - self.started_s

    def _optimization(self, phase: Phase) -> Optimization:
        trainer = self.trainer
        batches = self.train.batches(trainer.training_batch)
        return Optimization(
            self.network,
            trainer.runtime,
            len(phase.epochs) * min(batches, trainer.epoch_batches or batches),
            phase.lr or trainer.lr,
            trainer.weight_decay,
            trainer.schedule,
            trainer.warmup_share,
            trainer.clip_norm,
        )


def in_turn(outcomes: list[Any]) -> list[Any]:
    """Those of all ranks in the order of the batches, which the ranks took in turn."""
    of_ranks = ranks.gathered(outcomes)
    return [one[number] for number in range(len(of_ranks[0])) for one in of_ranks if number < len(one)]


def _refuse_batch_normalization(network: nn.Module) -> None:
    if ranks.count() > 1 and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ValueError(
            f"encoder.front_channels normalises over the batch, of which each of {ranks.count()} processes sees a part: set "
            f"encoder.front_channels=0, or start one process"
        )
