"""Prove that inference is integer-only by running it in a mode that intercepts every tensor operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FloatOperationError(ValueError):
    """An operation took or returned a number that is not an integer."""


class IntegersOnly(TorchDispatchMode):
    """Refuses every operation that takes or returns a floating-point or complex tensor or scalar, or names such a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._refuse(func, "takes", (args, kwargs))
        result = func(*args, **kwargs)
        self._refuse(func, "gives", result)
        self.operations += 1
        return result

    def _refuse(self, func: Callable[..., Any], verb: str, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
                raise FloatOperationError(
                    f"integer inference is not integer-only: {func} {verb} a tensor of {value.dtype}"
                )
            if isinstance(value, float | complex):
                raise FloatOperationError(f"integer inference is not integer-only: {func} {verb} the number {value}")
            if isinstance(value, torch.dtype) and (value.is_floating_point or value.is_complex):
                raise FloatOperationError(f"integer inference is not integer-only: {func} {verb} the type {value}")


def integer_operations(
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], codes_BTF: torch.Tensor, lengths_B: torch.Tensor
) -> int:
    """Return the number of operations in `compute`; raise a `FloatOperationError` if one is not on integers."""
    with IntegersOnly() as mode:
        compute(codes_BTF, lengths_B)
    return mode.operations
