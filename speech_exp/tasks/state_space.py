"""The LMU's A and B as a constrained device stores them; they are constants, and powers of two alone make them unstable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from speech_exp.models.linear_memory import LinearMemory
from speech_exp.tasks.approaches.snapping import Apot2
from speech_exp.tasks.grids import Grid, apot2, is_apot2

Storage = Literal["int16", "apot2"]
_LARGEST_CODE = 2**15 - 1


def memories(network: nn.Module) -> Iterator[tuple[str, LinearMemory]]:
    """The linear memories of all LMU layers by name."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LinearMemory))


def spectral_radius(A_MM: torch.Tensor) -> float:
    """Largest magnitude of an eigenvalue, in float64; below 1 the memory forgets instead of growing."""
    return float(torch.linalg.eigvals(A_MM.detach().cpu().double()).abs().max())


def int16_exponent(matrix: torch.Tensor) -> int:
    """The largest s with every round(2^s x) within int16."""
    largest = float(matrix.abs().max())
    if largest == 0:
        return 0
    exponent = 15
    while round(largest * 2.0**exponent) > _LARGEST_CODE:
        exponent -= 1
    return exponent


def stored(matrix: torch.Tensor, storage: Storage, grid: Grid) -> torch.Tensor:
    """`matrix` rounded to what is stored: int16 codes times a power of two, or sums of two powers of two."""
    if storage == "apot2":
        return apot2(matrix, grid)
    scale = 2.0 ** int16_exponent(matrix)
    return (matrix.double() * scale).round().div(scale).to(matrix.dtype)


def is_stored(matrix: torch.Tensor, storage: Storage, grid: Grid) -> torch.Tensor:
    """Which elements are such as `stored` gives."""
    if storage == "apot2":
        return is_apot2(matrix, grid)
    codes = matrix.double() * 2.0 ** int16_exponent(matrix)
    return (codes == codes.round()) & (codes.abs() <= _LARGEST_CODE)


def bits(network: nn.Module, storage: Storage, grid: Grid) -> int:
    """Bits that a number of A or B takes."""
    if storage == "int16":
        return 16
    matrices = {
        f"{name}.{key}": one for name, memory in memories(network) for key, one in (("A", memory.A), ("B", memory.B))
    }
    if not matrices:
        return 0
    return round(Apot2().storage(matrices, grid).bits_per_weight)
