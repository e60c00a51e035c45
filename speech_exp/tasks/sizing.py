"""The hidden size of the recurrent layers, chosen before the network is built: as configured, or the largest in a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from speech_exp.models.layer import RecurrentLayer

LayersOf = Callable[[int], list[RecurrentLayer]]  # hidden size -> recurrent layers of a network with that size

_CHANGES = (
    "raise task.budget_bytes, or make the layer smaller (fewer features; LMU: model.order, model.memory_channels)"
)


@dataclass(frozen=True)
class Size:
    """The chosen hidden size; `reason` is one line with the layer's sizes, empty if there was nothing to choose."""

    hidden_size: int
    reason: str = ""


@dataclass(frozen=True)
class Storage:
    """What a layer takes of the budget; `numbers` counts the numbers of each kind in these bytes."""

    bytes: int
    numbers: dict[str, int]

    def __str__(self) -> str:
        shown = ", ".join(f"{count:,} {name}" for name, count in self.numbers.items() if count)
        return f"{self.bytes:,} bytes ({shown})"


def float_storage(layer: RecurrentLayer) -> Storage:
    """Return what the layer stores in float32."""
    size = layer.size()
    return Storage(size.bytes(), {"weights": size.weights, "biases": size.biases, "of A and B": size.fixed})


class Sizing(ABC):
    budget_bytes: int | None = None  # limit per recurrent layer

    @abstractmethod
    def choose(self, layers_of: LayersOf, requested: int | None) -> Size:
        """Return the hidden size; `requested` is `model.hidden_size`."""


class AsRequested(Sizing):
    """The size of the config."""

    def choose(self, layers_of: LayersOf, requested: int | None) -> Size:
        if requested is None:
            raise ValueError(
                "model.hidden_size=null: task A does not solve for the size, set model.hidden_size to a number"
            )
        return Size(requested)


class LargestWithin(Sizing):
    """The largest hidden size with which every recurrent layer fits `budget_bytes`; a requested one is kept if it fits.

    The other sizes of a layer are configured, or derived from the hidden size by the layer's class.
    """

    def __init__(self, budget_bytes: int, storage_of: Callable[[RecurrentLayer], Storage] = float_storage) -> None:
        self.budget_bytes: int = budget_bytes
        self.storage_of = storage_of

    def lines(self) -> tuple[str, ...]:
        """Describe the budget in short lines for the flowchart."""
        return f"each recurrent layer ≤ {self.budget_bytes:,} bytes", "sized before training"

    def choose(self, layers_of: LayersOf, requested: int | None) -> Size:
        """Find the size by doubling, then bisection: a layer's bytes grow with its hidden size."""

        def largest(hidden: int) -> tuple[Storage, RecurrentLayer]:
            return max(((self.storage_of(layer), layer) for layer in layers_of(hidden)), key=lambda one: one[0].bytes)

        def fits(hidden: int) -> bool:
            return largest(hidden)[0].bytes <= self.budget_bytes

        if not fits(1):
            raise ValueError(
                f"task.budget_bytes={self.budget_bytes} cannot be met: with hidden size 1 a recurrent layer takes "
                f"{largest(1)[0]}; {_CHANGES}"
            )
        if requested is not None and fits(requested):
            storage, layer = largest(requested)
            return Size(requested, f"{layer.sizes_text()} as requested: {storage} of {self.budget_bytes:,}")
        above = 2
        while fits(above):
            above *= 2
        best = above // 2
        while above - best > 1:
            middle = (best + above) // 2
            best, above = (middle, above) if fits(middle) else (best, middle)
        if requested is not None:
            raise ValueError(
                f"model.hidden_size={requested} takes {largest(requested)[0]} a recurrent layer, but "
                f"task.budget_bytes={self.budget_bytes}: set model.hidden_size to at most {best}, or raise task.budget_bytes"
            )
        storage, layer = largest(best)
        return Size(
            best,
            f"{layer.sizes_text()}: the largest within {self.budget_bytes:,} bytes per recurrent layer, {storage}; "
            f"hidden size {best + 1} would take {largest(best + 1)[0].bytes:,}",
        )
