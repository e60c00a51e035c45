"""One phase of training: optimizer, learning-rate schedule, loss scaling, and a step of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR

from speech_exp import ranks
from speech_exp.data.batches import Batch
from speech_exp.training.runtime import Runtime

Schedule = Literal["cosine", "onecycle", "constant"]


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite; raised before the optimizer could spoil the weights."""


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
        self.optimizer = _adamw(network, lr, weight_decay)
        self.scheduler = _scheduler(self.optimizer, schedule, lr, steps, warmup_share)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.gradient_norm = torch.zeros(())  # of the last step, before it was clipped, on the device

    @property
    def steps_done(self) -> int:
        return self.scheduler.last_epoch

    @property
    def lr(self) -> float:
        """Of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def step(self, parts: list[tuple[Batch, float]], loss_of: Callable[[Batch], torch.Tensor]) -> float:
        """One step along the gradient of sum(share * loss_of(part)) over the parts of all ranks; returns that sum.

        Each part's activations are freed before the next part's are made. The ranks exchange their gradients after the
        last part, in one piece and beside no computation: so the sum does not depend on which of them had which part, and
        a rank without any part takes part like the others (`benchmarks/scaling.py` measures what that costs).
        """
        self.optimizer.zero_grad(set_to_none=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        loss_sum = torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
        for part, share in parts:
            with self.runtime.autocast():
                loss = share * loss_of(part)
            self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        own = loss_sum.clone()
        if ranks.count() > 1:
            ranks.add_([*_gradients(parameters), loss_sum])
        value = loss_sum.item()  # the device is waited for once, after all was sent to it
        if not math.isfinite(value):
            self._refuse(value, [] if own.isfinite() else [one for part, _ in parts for one in part.ids])
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
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

    def _refuse(self, value: float, own_ids: list[str]) -> None:
        ids = [one for of_rank in ranks.gathered(own_ids) for one in of_rank]
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise NonFiniteLossError(
            f"the loss became {value} at step {self.steps_done + 1} of {self.steps} in a batch of {len(ids)} utterances "
            f"({shown}): lower trainer.lr or use trainer.precision=fp32"
        )


def _gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Of all parameters, 0 where there is none."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _adamw(network: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Biases are not decayed (they cannot overfit by growing, and decay would only shift them)."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, lr: float, steps: int, warmup_share: float
) -> LRScheduler:
    if schedule == "onecycle":  # Smith & Topin 2019; Adam's momentum falls and rises against the learning rate
        return OneCycleLR(optimizer, lr, total_steps=max(2, steps + 1), pct_start=warmup_share)
    if schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    return LambdaLR(optimizer, partial(_cosine, steps=steps, warmup=max(1, round(warmup_share * steps))))


def _cosine(step: int, steps: int, warmup: int) -> float:
    """Share of `lr` at `step`: linear rise, then a fall to 0 as half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
