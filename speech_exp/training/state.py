"""Training state: everything a killed run needs to resume exactly where it stopped, and the files that store it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from speech_exp.training import checkpoint

EpochRow = dict[str, float | str]
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_batch_(\d+))?\.pt")


def epoch_text(row: EpochRow) -> str:
    """Return the main values of a row of the history on one line."""
    names = [name for name in row if name.startswith("val_")] + ["train_loss"]
    shown = "  ".join(f"{name} {row[name]:.4f}" for name in names)
    return f"epoch {row['epoch']}  {shown}  {row['utterances_per_s']:,.0f} utterances/s"


@dataclass
class Best:
    """The network validated at the best epoch so far."""

    network: nn.Module
    epoch: int
    metrics: dict[str, float]


@dataclass
class TrainingState:
    """Progress of a training run, and everything needed to resume it.

    Args:
        phase: number of the phase in progress; `phase_start` is the network's state at its start, before the task changed it.
        stopped: whether this phase ended early.
        epoch: last complete epoch.
        batches: batches done in the next epoch; the sums over them and the learning rate at its start are stored as well.
        gradient_norm_sum: a tensor on the device during training, so that no step has to wait for it.
        wait_s: time that steps waited for their batches.
        utterances, train_s: utterances trained on in all complete epochs, and the time spent on them.
        training_s: time spent by earlier processes.
    """

    phase: int = 0
    phase_start: dict[str, torch.Tensor] = field(default_factory=dict)
    stopped: bool = False
    epoch: int = 0
    batches: int = 0
    lr: float = 0.0
    loss_sum: float = 0.0
    weight_sum: int = 0
    epoch_utterances: int = 0
    gradient_norm_sum: float | torch.Tensor = 0.0
    wait_s: float = 0.0
    epoch_s: float = 0.0
    utterances: int = 0
    train_s: float = 0.0
    training_s: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    best: Best | None = None

    def begin_phase(self, number: int, network: nn.Module) -> None:
        self.phase, self.stopped = number, False
        self.phase_start = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def begin_epoch(self, lr: float) -> None:
        self.batches, self.lr, self.loss_sum, self.weight_sum, self.epoch_utterances = 0, lr, 0.0, 0, 0
        self.gradient_norm_sum, self.wait_s, self.epoch_s = 0.0, 0.0, 0.0

    def add(self, loss: float, weight: int, utterances: int, gradient_norm: torch.Tensor) -> None:
        """Add one batch."""
        self.batches += 1
        self.gradient_norm_sum = self.gradient_norm_sum + gradient_norm
        self.loss_sum += weight * loss
        self.weight_sum += weight
        self.epoch_utterances += utterances

    def end_epoch(self, epoch: int, row: EpochRow) -> None:
        self.epoch, self.batches = epoch, 0
        self.history.append(row)

    def content(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
        plain = {name: value for name, value in vars(self).items() if name != "best"}
        plain["gradient_norm_sum"] = float(self.gradient_norm_sum)
        best = self.best
        if best is None:
            return {**plain, "best": None}
        return {
            **plain,
            "best": {"network": best.network.state_dict(), "epoch": best.epoch, "metrics": best.metrics},
        }


class StateFiles:
    """The training states of a run in its checkpoint folder.

    Args:
        keep: number of states to keep, so that an older one is available if the newest is damaged.
        identity: flat config and data fingerprint; only a state with the same identity can be resumed.
        start: folder whose newest intact state is resumed; None starts from scratch.
        session: properties of this process that affect results bit for bit: `commit`, `dirty`, `threads`. `sessions` lists
            those of all processes that trained the run, this one last.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        identity: Mapping[str, Any],
        start: Path | None,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.keep, self.identity, self.start = folder, keep, dict(identity), start
        self.sessions = [dict(session or {})]
        self._checked: dict[str, Any] | None = None

    def check(self) -> None:
        """Read the state that `load` will return; refuse one from a different run and warn about changes since it was saved."""
        self._checked = self.load()

    def load(self) -> dict[str, Any] | None:
        """Return the newest intact state on the CPU, or None if there is none or none was requested."""
        if self._checked is not None:
            content, self._checked = self._checked, None  # free the memory once it has been handed out
            return content
        if self.start is None or not states(self.start):
            return None
        found, content = newest_intact(self.start)
        differing = sorted(
            key
            for key in self.identity.keys() | content["identity"].keys()
            if self.identity.get(key) != content["identity"].get(key)
        )
        if differing:
            shown = ", ".join(
                f"{key}={content['identity'].get(key)} in the state and {self.identity.get(key)} now"
                for key in differing[:5]
            )
            raise ValueError(
                f"the training state {found} belongs to a different run ({shown}): repeat its command, or start over with resume=false"
            )
        self.sessions = [*content["sessions"], *self.sessions]
        _warn_of_changes(found, *self.sessions[-2:])
        return content

    def save(self, content: Mapping[str, Any], epoch: int, batches: int) -> None:
        """Save the state after `epoch` complete epochs and `batches` of the next; then delete states beyond `keep`."""
        name = f"checkpoint_epoch_{epoch}_batch_{batches}.pt" if batches else f"checkpoint_epoch_{epoch}.pt"
        checkpoint.save_state({"identity": self.identity, "sessions": self.sessions, **content}, self.folder / name)
        found = states(self.folder)
        at = found.index(self.folder / name) + 1
        for old in [*found[: max(0, at - self.keep)], *found[at:]]:  # `load` skipped a later one as damaged
            old.unlink(missing_ok=True)


def _warn_of_changes(state: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn if this process differs from the one that saved the state in a way that can change results bit for bit."""
    if before.get("threads") != now.get("threads"):
        print(
            f"warning: {state} was saved with {before['threads']} CPU threads and is resumed with {now['threads']}: results may "
            f"differ in their last bits (trainer.threads={before['threads']} avoids this)"
        )
    if any(before.get(key) != now.get(key) for key in ("commit", "dirty")):
        print(f"warning: {state} was saved by {_code(before)}, and this is {_code(now)}: results may differ")


def _code(session: Mapping[str, Any]) -> str:
    return f"commit {str(session['commit'])[:10]}" + (" with changes" if session["dirty"] else "")


def states(folder: Path) -> list[Path]:
    """Return the training states in a checkpoint folder, oldest first."""
    found = [(path, match) for path in folder.glob("checkpoint_epoch_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for path, match in sorted(found, key=lambda one: (int(one[1][1]), int(one[1][2] or 0)))]


def newest_intact(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest intact training state and its content; newer, damaged ones are printed."""
    damaged = []
    for path in reversed(states(folder)):
        try:
            content = checkpoint.load_state(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        print(*(f"skipped: {reason}\n" for reason in damaged), f"resuming from {path}", sep="")
        return path, content
    raise ValueError(f"{folder} contains no intact training state ({'; '.join(damaged)}): start over with resume=false")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the random generators of this process: Python's, NumPy's, and torch's for the CPU and `device`."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
