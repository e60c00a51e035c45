"""Grids of weights that need no multiplier: projections onto them, and membership tests that do not use the projections.

A grid is 0 and ±2^k for k_min <= k <= k_max. Weights are float32 or float64 tensors. Every projection keeps shape, dtype and
device, is odd (-w maps to the negative of what w maps to), leaves values on the grid unchanged, writes every zero as +0, and
refuses NaN and infinity. All levels, the midpoints between neighbours and all differences taken here are exact in the dtype
of the weights, so "nearest" holds to the last bit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch

from speech_exp.bounds import Between

SMALLEST_EXPONENT, LARGEST_EXPONENT = -126, 127  # of float32's normal numbers
Exponent = Annotated[int, Between(SMALLEST_EXPONENT, LARGEST_EXPONENT)]
# Levels of two terms and their midpoints are multiples of 2^(k_min-1) below 2^(k_max+1): they need k_max - k_min + 2 bits,
# and float32 has 24.
LARGEST_SPAN_OF_TWO_TERMS = 22


@dataclass(frozen=True)
class Grid:
    """The grid 0 and ±2^k, k_min <= k <= k_max."""

    k_min: Exponent
    k_max: Exponent

    def __post_init__(self) -> None:
        if self.k_min > self.k_max:
            raise ValueError(
                f"task.k_min={self.k_min}, task.k_max={self.k_max}: expected k_min <= k_max, change task.k_min or task.k_max"
            )

    def exponents(self) -> range:
        return range(self.k_min, self.k_max + 1)


def power_levels(grid: Grid) -> list[float]:
    """Return 0 and the powers of the grid, ascending."""
    return [0.0, *(2.0**k for k in grid.exponents())]


def apot2_levels(grid: Grid) -> list[float]:
    """Return 0 and every 2^k1, 2^k1 + 2^k2, 2^k1 - 2^k2 (k1 > k2), ascending and unique; refuse grids too wide for float32."""
    if grid.k_max - grid.k_min > LARGEST_SPAN_OF_TWO_TERMS:
        raise ValueError(
            f"task.k_min={grid.k_min}, task.k_max={grid.k_max} with c_approach=apot2: expected k_max - k_min of at most "
            f"{LARGEST_SPAN_OF_TWO_TERMS}, float32 cannot represent sums of powers further apart; change task.k_min or task.k_max"
        )
    powers = power_levels(grid)
    pairs = list(itertools.combinations(powers[1:], 2))
    return sorted({*powers, *(large + small for small, large in pairs), *(large - small for small, large in pairs)})


@torch.no_grad()
def nearest_power(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return P: the nearest level by absolute difference, the larger in a tie; beyond 2^k_max, ±2^k_max."""
    return _nearest(weight, grid, two_terms=False)


@torch.no_grad()
def apot2(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the nearest of 0, ±2^k1 and ±2^k1 ± 2^k2 (k1 > k2), the larger in a tie (levels: Li et al. 2020).

    The search covers all levels at once, not term by term: starting from the nearest power need not give the nearest sum.
    """
    return _nearest(weight, grid, two_terms=True)


@torch.no_grad()
def stochastic_power(weight: torch.Tensor, grid: Grid, generator: torch.Generator) -> torch.Tensor:
    """Return one of the two levels around w, the upper with probability (w - lower) / (upper - lower), so that E[q] = w.

    Values beyond 2^k_max saturate. Random numbers come from the generator's device, whatever the device of the weights.
    """
    _check_finite_floats(weight)
    levels, _ = _table(grid, False, weight.dtype, weight.device)
    magnitude = weight.abs()
    below = (torch.bucketize(magnitude, levels, right=True) - 1).clamp(max=len(levels) - 2)
    lower, upper = levels[below], levels[below + 1]
    # In float64: a draw has 53 bits, so even probabilities far below 2^-24 are respected.
    draw = torch.rand(weight.shape, dtype=torch.float64, device=generator.device, generator=generator)
    # A draw is in [0, 1). On a level the probability is 0; on the last level and beyond it is at least 1.
    rises = draw.to(weight.device) < (magnitude - lower) / (upper - lower)
    return _signed(torch.where(rises, upper, lower), weight)


@torch.no_grad()
def row_shared(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Project each row of a matrix onto 0 and ±2^k with one k, where k and the zeros minimise the row's squared error.

    Dimensions after the first are flattened into a row. In a tie (in float64) the larger exponent wins, and ±2^k wins over 0:
    for rows of one weight this is P. Vectors and scalars have no rows and use P.
    """
    if weight.ndim < 2:
        return nearest_power(weight, grid)
    _check_finite_floats(weight)
    magnitude_RC = weight.flatten(1).abs().double()
    sum_R1 = magnitude_RC.sum(1, keepdim=True)
    largest = float(magnitude_RC.max()) if magnitude_RC.numel() else 0.0
    best_gain_R1 = torch.full_like(sum_R1, -1.0)
    level_R1 = torch.zeros_like(sum_R1)
    # With level l, the nearest of 0 and l lowers a weight's error from w² by max(0, w² - (|w| - l)²) = max(0, l (2|w| - l)).
    for exponent in reversed(grid.exponents()):  # one at a time, to hold only a few copies of the matrix
        level = 2.0**exponent
        if level > 2 * largest:
            continue  # too large to lower any error
        gain_R1 = (2 * magnitude_RC).sub_(level).clamp_(min=0).sum(1, keepdim=True) * level
        better_R1 = gain_R1 > best_gain_R1
        best_gain_R1 = torch.where(better_R1, gain_R1, best_gain_R1)
        level_R1 = torch.where(better_R1, level, level_R1)
        if (level * sum_R1 <= best_gain_R1).all():
            break  # a lower level l' gains less than 2 l' times the sum
    quantised_RC = torch.where(magnitude_RC >= level_R1 / 2, level_R1, 0.0)
    return _signed(quantised_RC.to(weight.dtype).reshape(weight.shape), weight)


def is_power(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Whether each element is 0 or ±2^k of the grid, read from mantissa and exponent."""
    mantissa, exponent = torch.frexp(weight)  # w = mantissa 2^exponent, 1/2 <= |mantissa| < 1
    in_range = (exponent - 1 >= grid.k_min) & (exponent - 1 <= grid.k_max)
    return (weight == 0) | ((mantissa.abs() == 0.5) & in_range)


def is_apot2(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Whether each element is 0, ±2^k1 or ±2^k1 ± 2^k2 with k1 > k2, both in the grid."""
    magnitude, lower = weight.abs(), _power_below(weight)
    as_sum = is_power(lower, grid) & is_power(magnitude - lower, grid)  # the remainder is 0 for a single power
    as_difference = is_power(2 * lower, grid) & is_power(2 * lower - magnitude, grid)
    return (weight == 0) | as_sum | as_difference


def is_row_shared(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Whether each element is 0, or ±2^k of the grid in a row without other magnitudes; `is_power` for vectors."""
    on_grid = is_power(weight, grid)
    if weight.ndim < 2 or weight.numel() == 0:
        return on_grid
    magnitude_RC = weight.flatten(1).abs()
    largest_R1 = magnitude_RC.amax(1, keepdim=True)
    one_magnitude_R1 = ((magnitude_RC == 0) | (magnitude_RC == largest_R1)).all(1, keepdim=True)
    return on_grid & ((magnitude_RC == 0) | one_magnitude_R1).reshape(weight.shape)


def exponents_of_powers(weight: torch.Tensor) -> tuple[int, int] | None:
    """Return the lowest and highest exponent of a tensor of 0 and ±2^k, or None if all are 0."""
    return _lowest_and_highest(torch.frexp(weight[weight != 0]).exponent - 1)


def exponents_of_apot2(weight: torch.Tensor) -> tuple[int, int] | None:
    """Return the lowest and highest exponent in a tensor of `apot2` levels (3 is 2 + 1, not 4 - 1), or None if all are 0."""
    first, second = two_terms(weight[weight != 0].abs())
    terms = torch.cat([first, second[second != 0].abs()])
    return _lowest_and_highest(torch.frexp(terms).exponent - 1)


def two_terms(magnitude: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split positive `apot2` levels into the leading power and the second term: a power, its negative or 0."""
    lower = _power_below(magnitude)
    is_sum = is_power(magnitude - lower, Grid(SMALLEST_EXPONENT, LARGEST_EXPONENT))
    first = torch.where(is_sum, lower, 2 * lower)
    return first, magnitude - first


def _power_below(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest power of two up to |w|, NaN for 0; exact, because the quotient is representable."""
    return weight.abs() / (2 * torch.frexp(weight).mantissa.abs())


def _lowest_and_highest(exponents: torch.Tensor) -> tuple[int, int] | None:
    if exponents.numel() == 0:
        return None
    return int(exponents.min()), int(exponents.max())


def _nearest(weight: torch.Tensor, grid: Grid, two_terms: bool) -> torch.Tensor:
    _check_finite_floats(weight)
    levels, midpoints = _table(grid, two_terms, weight.dtype, weight.device)
    # right=True: a weight on a midpoint rounds to the level above it.
    return _signed(levels[torch.bucketize(weight.abs(), midpoints, right=True)], weight)


@lru_cache
def _table(grid: Grid, two_terms: bool, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the levels from 0 up and the midpoints between neighbours, exact in `dtype`; cached for use at every step."""
    levels = torch.tensor(apot2_levels(grid) if two_terms else power_levels(grid), dtype=torch.float64)
    midpoints = (levels[1:] + levels[:-1]) / 2  # in float64, where the sum of two levels near 2^127 is finite
    return levels.to(device, dtype), midpoints.to(device, dtype)


def _signed(magnitude: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return `magnitude` with the sign of the weight; adding +0 turns -0, a second code for the same level, into +0."""
    return torch.copysign(magnitude, weight) + 0.0


def _check_finite_floats(weight: torch.Tensor) -> None:
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weights of {weight.dtype} cannot be projected: expected float32 or float64")
    finite = torch.isfinite(weight)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {weight.numel()} weights are NaN or infinite: expected finite weights to project, "
            f"lower trainer.lr or task.fine_tune_lr"
        )
