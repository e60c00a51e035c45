"""Task B1: recurrent layers that fit a number of bytes."""

from __future__ import annotations

from torch import nn

from speech_exp.models.layer import LayerSize
from speech_exp.objectives.objective import Network
from speech_exp.tasks.task import Certificate, CertificateError, LayersOf, Task

_CHANGES = (
    "raise task.budget_bytes, or make the layer smaller (fewer features; LMU: model.order, model.memory_channels)"
)


class Budget(Task):
    """The hidden size is the largest whose recurrent layers each fit `budget_bytes`, or the user's own, if it fits.

    Args:
        budget_bytes: of one recurrent layer, all its directions, as stored: float32, the LMU's A and B included.
    """

    name = "B1"
    constrained: tuple[str, ...] = ("recurrent",)

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise ValueError(f"task.budget_bytes={budget_bytes}: expected at least 1, change task.budget_bytes")
        self.budget_bytes: int = budget_bytes

    def layer_bytes(self, size: LayerSize) -> int:
        return size.bytes()

    def hidden_size(self, layers_of: LayersOf, requested: int | None) -> int:
        """Doubling, then bisection: a layer's bytes grow with its hidden size."""

        def largest(hidden: int) -> LayerSize:
            return max((layer.size() for layer in layers_of(hidden)), key=self.layer_bytes)

        def fits(hidden: int) -> bool:
            return self.layer_bytes(largest(hidden)) <= self.budget_bytes

        if not fits(1):
            raise ValueError(
                f"task.budget_bytes={self.budget_bytes} cannot be met: with hidden size 1 a recurrent layer takes "
                f"{self._itemised(largest(1))}; {_CHANGES}"
            )
        if requested is not None and fits(requested):
            self.sizing = f"{requested} as asked for: {self._itemised(largest(requested))} of {self.budget_bytes:,}"
            return requested
        above = 2
        while fits(above):
            above *= 2
        best = above // 2
        while above - best > 1:
            middle = (best + above) // 2
            best, above = (middle, above) if fits(middle) else (best, middle)
        if requested is not None:
            raise ValueError(
                f"model.hidden_size={requested} takes {self._itemised(largest(requested))} a recurrent layer, but "
                f"task.budget_bytes={self.budget_bytes}: set model.hidden_size to at most {best}, or raise task.budget_bytes"
            )
        self.sizing = (
            f"{best}, the largest within {self.budget_bytes:,} bytes a recurrent layer: {self._itemised(largest(best))}; "
            f"{best + 1} would take {self.layer_bytes(largest(best + 1)):,}"
        )
        return best

    def constraint_lines(self) -> list[str]:
        return [f"each recurrent layer ≤ {self.budget_bytes:,} bytes", "sized before training"]

    def certify(self, deployed: nn.Module) -> Certificate:
        layers = self.stored(deployed).recurrent_layer_bytes
        over = [
            f"layer {number} takes {count:,}" for number, count in enumerate(layers, 1) if count > self.budget_bytes
        ]
        if over:
            raise CertificateError(
                f"{', '.join(over)} bytes, but task.budget_bytes={self.budget_bytes}: the model was not made by this task"
            )
        details = {"budget_bytes": self.budget_bytes, "recurrent_layer_bytes": layers}
        return Certificate(kind="budget", passed=True, checked=len(layers), details=details)

    def _itemised(self, size: LayerSize) -> str:
        items = {"weights": size.weights, "biases": size.biases, "of A and B": size.fixed}
        shown = ", ".join(f"{count:,} {name}" for name, count in items.items() if count)
        return f"{self.layer_bytes(size):,} bytes ({shown})"


def float_network(deployed: nn.Module) -> Network:
    """`deployed` as the float network that tasks A, B1 and C deploy."""
    assert isinstance(deployed, Network)
    return deployed
