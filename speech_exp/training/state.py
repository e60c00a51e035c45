"""The state of a fit: all that a killed run needs to go on as if nothing had happened, and the files that hold it."""

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
FORMAT = "speech_exp training state 2"
_NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_batch_(\d+))?\.pt")


@dataclass
class Best:
    """What was validated at the best epoch so far."""

    network: nn.Module
    epoch: int
    metrics: dict[str, float]


@dataclass
class FitState:
    """How far a fit is.

    Args:
        phase: number of the phase in progress, and phase_start the network's state when it began, before the task acted.
        stopped: whether this phase ended early.
        epoch: last epoch that is complete.
        batches: batches done of the epoch after it, with the sums over them and the learning rate that it began with.
        gradient_norm_sum: a tensor on the device while training goes on, so that no step waits for it.
        wait_s: time that the steps waited for their batches.
        utterances, train_s: heard in all complete epochs, and the time spent on them.
        fit_s: time spent before this process.
    """

    phase: int = 0
    phase_start: dict[str, torch.Tensor] = field(default_factory=dict)
    stopped: bool = False
    epoch: int = 0
    batches: int = 0
    lr: float = 0.0
    loss_sum: float = 0.0
    weight_sum: int = 0
    heard: int = 0
    gradient_norm_sum: float | torch.Tensor = 0.0
    wait_s: float = 0.0
    epoch_s: float = 0.0
    utterances: int = 0
    train_s: float = 0.0
    fit_s: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    best: Best | None = None

    def begin_phase(self, number: int, network: nn.Module) -> None:
        self.phase, self.stopped = number, False
        self.phase_start = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def begin_epoch(self, lr: float) -> None:
        self.batches, self.lr, self.loss_sum, self.weight_sum, self.heard = 0, lr, 0.0, 0, 0
        self.gradient_norm_sum, self.wait_s, self.epoch_s = 0.0, 0.0, 0.0

    def add(self, loss: float, weight: int, utterances: int, gradient_norm: torch.Tensor) -> None:
        """One more batch."""
        self.batches += 1
        self.gradient_norm_sum = self.gradient_norm_sum + gradient_norm
        self.loss_sum += weight * loss
        self.weight_sum += weight
        self.heard += utterances

    def end_epoch(self, epoch: int, row: EpochRow) -> None:
        self.epoch, self.batches = epoch, 0
        self.history.append(row)

    def content(self) -> dict[str, Any]:
        """In plain values and tensors."""
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
        keep: states that are kept; the newest of them is always whole.
        identity: flat config and data fingerprint, of which a state can only be taken up by the same.
        start: folder whose newest state is taken up; None starts anew.
    """

    def __init__(self, folder: Path, keep: int, identity: Mapping[str, Any], start: Path | None) -> None:
        self.folder, self.keep, self.identity, self.start = folder, keep, dict(identity), start

    def load(self) -> dict[str, Any] | None:
        """The newest state, on the CPU; None where there is none or none is asked for."""
        found = None if self.start is None else newest(self.start)
        if found is None:
            return None
        content = checkpoint.load(found, FORMAT)
        differing = sorted(
            key
            for key in self.identity.keys() | content["identity"].keys()
            if self.identity.get(key) != content["identity"].get(key)
        )
        if differing:
            shown = ", ".join(
                f"{key}={content['identity'].get(key)} there and {self.identity.get(key)} here" for key in differing[:5]
            )
            raise ValueError(
                f"the training state {found} is of another run ({shown}): repeat its command, or start anew with resume=false"
            )
        return content

    def save(self, content: Mapping[str, Any], epoch: int, batches: int) -> None:
        """After `epoch` complete epochs and so many batches of the next; older states go once this one is whole."""
        name = f"checkpoint_epoch_{epoch}_batch_{batches}.pt" if batches else f"checkpoint_epoch_{epoch}.pt"
        checkpoint.save({"format": FORMAT, "identity": self.identity, **content}, self.folder / name)
        for old in states(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)


def states(folder: Path) -> list[Path]:
    """Training states of a checkpoint folder from the oldest to the newest."""
    found = [(path, match) for path in folder.glob("checkpoint_epoch_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for path, match in sorted(found, key=lambda one: (int(one[1][1]), int(one[1][2] or 0)))]


def newest(folder: Path) -> Path | None:
    found = states(folder)
    return found[-1] if found else None


def random_state() -> dict[str, Any]:
    """Of the generators that a whole process shares."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
