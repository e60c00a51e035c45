"""How a constrained device stores the LMU's A and B: as int16 or sums of two powers; single powers make them unstable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from speech_exp.models.linear_memory import LinearMemory
from speech_exp.tasks.codes import Apot2Code
from speech_exp.tasks.grids import Grid, apot2, is_apot2
from speech_exp.tasks.packed import Coding, Source, numbers

Storage = Literal["int16", "apot2"]
_LARGEST_CODE = 2**15 - 1


def memories(network: nn.Module) -> Iterator[tuple[str, LinearMemory]]:
    """Return the linear memories of all LMU layers by name."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LinearMemory))


def spectral_radius(A_MM: torch.Tensor) -> float:
    """Return the largest magnitude of an eigenvalue, in float64; below 1 the memory decays instead of growing."""
    return float(torch.linalg.eigvals(A_MM.detach().cpu().double()).abs().max())


def int16_exponent(matrix: torch.Tensor) -> int:
    """Return the largest s for which every round(2^s x) fits int16."""
    largest = float(matrix.abs().max())
    if largest == 0:
        return 0
    exponent = 15
    while round(largest * 2.0**exponent) > _LARGEST_CODE:
        exponent -= 1
    return exponent


def stored(matrix: torch.Tensor, storage: Storage, grid: Grid) -> torch.Tensor:
    """Round `matrix` to its stored values: int16 codes times a power of two, or sums of two powers of two."""
    if storage == "apot2":
        return apot2(matrix, grid)
    scale = 2.0 ** int16_exponent(matrix)
    return (matrix.double() * scale).round().div(scale).to(matrix.dtype) + 0.0  # no -0, which has no code


def is_stored(matrix: torch.Tensor, storage: Storage, grid: Grid) -> torch.Tensor:
    """Whether each element is a value that `stored` can return."""
    if storage == "apot2":
        return is_apot2(matrix, grid)
    codes = matrix.double() * 2.0 ** int16_exponent(matrix)
    return (codes == codes.round()) & (codes.abs() <= _LARGEST_CODE)


class Int16Code:
    """For each matrix the exponent s (int8), then its codes (int16): a number is its code times 2^-s."""

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes:
        content = b""
        for matrix in tensors:
            exponent = int16_exponent(matrix)
            codes = (matrix.double() * 2.0**exponent).numpy().astype("<i2")
            content += np.int8(exponent).tobytes() + codes.tobytes()
        return content

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = []
        for one in like:
            exponent = int(numbers(source, "<i1", torch.Size([])))
            found.append((numbers(source, "<i2", one.shape).double() * 2.0**-exponent).to(one.dtype))
        return found


CODINGS: dict[Storage, Coding] = {"int16": Int16Code(), "apot2": Apot2Code()}
