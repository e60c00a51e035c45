"""One phase of training: optimizer, learning-rate schedule, loss scaling, and the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR

from speech_exp import ranks
from speech_exp.features.batch import Batch
from speech_exp.training.data_parallel import batch_loss
from speech_exp.training.runtime import Runtime

Schedule = Literal["cosine", "onecycle", "constant"]


class NonFiniteLossError(ValueError):
    """The loss or its gradient became NaN or infinite; raised before the optimizer changes the weights."""


class Optimization:
    """AdamW over `steps` steps.

    Args:
        lr: highest learning rate.
        warmup_share: share of the steps in which the learning rate rises.
        clip_norm: largest allowed norm of the gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        runtime: Runtime,
        steps: int,
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        warmup_share: float,
        clip_norm: float,
    ) -> None:
        self.runtime, self.clip_norm, self.steps = runtime, clip_norm, steps
        self.batch_loss = batch_loss(network)
        self.optimizer = _adamw(network, lr, weight_decay)
        self.scheduler = _scheduler(self.optimizer, schedule, lr, steps, warmup_share)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.gradient_norm = torch.zeros(())  # of the last step, before clipping, on the device

    @property
    def steps_done(self) -> int:
        return self.scheduler.last_epoch

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def step(
        self,
        parts: list[tuple[Batch, float]],
        loss_of: Callable[[Batch], torch.Tensor],
        training_form: AbstractContextManager[None],
    ) -> float:
        """Take one step along the gradient of sum(share * loss_of(part)) over the parts of all ranks; return that sum.

        `training_form` is active only while losses and gradients are computed. The optimizer updates the network's own weights,
        so it must run after the form has restored them.

        The activations of each part are freed before the next part is computed. The ranks exchange their gradients during the
        backward pass of the last part; a rank without any part takes part with zeros.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        loss_sum = torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
        passes: list[tuple[Batch | None, float]] = [*parts] or [(None, 0.0)]
        with training_form:
            for number, (part, share) in enumerate(passes, 1):
                with nullcontext() if number == len(passes) else self.batch_loss.no_sync():
                    with self.runtime.autocast():
                        loss = share * self.batch_loss(part, loss_of)
                    with ranks.exchange():
                        self.scaler.scale(loss).backward()
                loss_sum += loss.detach()
        local_loss = loss_sum.clone()
        ranks.all_reduce_(loss_sum)
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        # The only point that waits for the device, after all work has been queued.
        value, norm = torch.stack([loss_sum, self.gradient_norm.to(loss_sum.dtype)]).tolist()
        if not math.isfinite(value):
            self._refuse(
                f"loss became {value}",
                [] if local_loss.isfinite() else [name for part, _ in parts for name in part.ids],
            )
        if not math.isfinite(norm) and not self._overflowed():
            self._refuse(f"gradient became {norm}", [name for part, _ in parts for name in part.ids])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])

    def _overflowed(self) -> bool:
        """Whether the loss scale may have caused a non-finite gradient; the scaler then skips the step and halves the scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _refuse(self, what: str, own_ids: list[str]) -> None:
        ids = [one for of_rank in ranks.all_gather(own_ids) for one in of_rank]
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise NonFiniteLossError(
            f"the {what} at step {self.steps_done + 1} of {self.steps} in a batch of {len(ids)} utterances "
            f"({shown}): lower trainer.lr or use trainer.precision=fp32"
        )


def _adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Build AdamW without weight decay on biases (they cannot overfit by growing, and decay would only shift them)."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, lr: float, steps: int, warmup_share: float
) -> LRScheduler:
    if schedule == "onecycle":  # Smith & Topin 2019; Adam's momentum moves opposite to the learning rate
        return OneCycleLR(optimizer, lr, total_steps=max(2, steps + 1), pct_start=float(warmup_share))
    if schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    return LambdaLR(optimizer, partial(_cosine, steps=steps, warmup=max(1, round(warmup_share * steps))))


def _cosine(step: int, steps: int, warmup: int) -> float:
    """Return the share of `lr` at `step`: linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
