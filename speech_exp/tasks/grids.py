"""Grids of weights that need no multiplier: projections onto them, and tests of membership that do not project.

A grid is 0 and ±2^k for k_min <= k <= k_max. Weights are float32 or float64 tensors; every projection keeps shape, dtype and
device, maps -w to the negative of what it maps w to, leaves what is on the grid as it is, writes every zero as +0, and refuses
NaN and infinity. All levels, the midpoints between neighbours and all differences taken here are exact in the dtype of the
weights, so "nearest" holds to the last bit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch

# Exponents of the normal numbers of float32.
SMALLEST_EXPONENT, LARGEST_EXPONENT = -126, 127
# Levels of two terms and the midpoints between them are multiples of 2^(k_min-1) below 2^(k_max+1): k_max - k_min + 2 bits,
# of which float32 holds 24.
LARGEST_SPAN_OF_TWO_TERMS = 22


@dataclass(frozen=True)
class Grid:
    """0 and ±2^k, k_min <= k <= k_max."""

    k_min: int
    k_max: int

    def __post_init__(self) -> None:
        came = f"task.k_min={self.k_min}, task.k_max={self.k_max}"
        if not (isinstance(self.k_min, int) and isinstance(self.k_max, int)):
            raise ValueError(f"{came}: expected whole numbers, change task.k_min or task.k_max")
        if self.k_min > self.k_max:
            raise ValueError(f"{came}: expected k_min <= k_max, change task.k_min or task.k_max")
        for key, exponent in (("task.k_min", self.k_min), ("task.k_max", self.k_max)):
            if not SMALLEST_EXPONENT <= exponent <= LARGEST_EXPONENT:
                raise ValueError(
                    f"{key}={exponent}: expected an exponent that float32 holds as a normal number, "
                    f"{SMALLEST_EXPONENT} to {LARGEST_EXPONENT}, change {key}"
                )

    def exponents(self) -> range:
        return range(self.k_min, self.k_max + 1)


def power_levels(grid: Grid) -> list[float]:
    """0 and the powers of the grid, ascending."""
    return [0.0, *(2.0**k for k in grid.exponents())]


def apot2_levels(grid: Grid) -> list[float]:
    """0 and every 2^k1, 2^k1 + 2^k2 and 2^k1 - 2^k2 (k1 > k2), ascending, each once; refuses a grid too wide for float32."""
    if grid.k_max - grid.k_min > LARGEST_SPAN_OF_TWO_TERMS:
        raise ValueError(
            f"task.k_min={grid.k_min}, task.k_max={grid.k_max} with c_approach=apot2: expected k_max - k_min of at most "
            f"{LARGEST_SPAN_OF_TWO_TERMS}, float32 does not hold sums of powers further apart; change task.k_min or task.k_max"
        )
    powers = power_levels(grid)
    pairs = list(itertools.combinations(powers[1:], 2))
    return sorted({*powers, *(large + small for small, large in pairs), *(large - small for small, large in pairs)})


@torch.no_grad()
def nearest_power(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """P: the nearest level by absolute difference, of two equally near the larger; beyond 2^k_max, ±2^k_max."""
    return _nearest(weight, grid, two_terms=False)


@torch.no_grad()
def apot2(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The nearest of 0, ±2^k1 and ±2^k1 ± 2^k2 (k1 > k2), of two equally near the larger (levels: Li et al. 2020).

    Nearest over all levels at once, never term by term: the remainder after the nearest power need not be best.
    """
    return _nearest(weight, grid, two_terms=True)


@torch.no_grad()
def stochastic_power(weight: torch.Tensor, grid: Grid, generator: torch.Generator) -> torch.Tensor:
    """One of the two levels around w, the upper with probability (w - lower) / (upper - lower), so that E[q] = w.

    Beyond 2^k_max it saturates. The draws are those of the generator's device, whatever the device of the weights.
    """
    _refuse_unusable(weight)
    levels, _ = _table(grid, False, weight.dtype, weight.device)
    magnitude = weight.abs()
    below = (torch.bucketize(magnitude, levels, right=True) - 1).clamp(max=len(levels) - 2)
    lower, upper = levels[below], levels[below + 1]
    # In float64: a draw has 53 bits, so even probabilities far below 2^-24 are met.
    draw = torch.rand(weight.shape, dtype=torch.float64, device=generator.device, generator=generator)
    # A draw is in [0, 1). On a level the probability is 0; on the last, and beyond it, 1 and more.
    rises = draw.to(weight.device) < (magnitude - lower) / (upper - lower)
    return _signed(torch.where(rises, upper, lower), weight)


@torch.no_grad()
def row_shared(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Each row of a matrix as 0 and ±2^k of one k, where k and the zeros minimise the squared error of the row.

    Dimensions after the first are flattened to a row. Of exponents with the same error (in float64) the larger is taken, and of
    0 and ±2^k the latter: for rows of one weight this is P. Vectors and single numbers have no rows: P.
    """
    if weight.ndim < 2:
        return nearest_power(weight, grid)
    _refuse_unusable(weight)
    magnitude_RC = weight.flatten(1).abs().double()
    sum_R1 = magnitude_RC.sum(1, keepdim=True)
    largest = float(magnitude_RC.max()) if magnitude_RC.numel() else 0.0
    best_gain_R1 = torch.full_like(sum_R1, -1.0)
    level_R1 = torch.zeros_like(sum_R1)
    # With level l the nearest of 0 and l lowers a weight's error from w² by max(0, w² - (|w| - l)²) = max(0, l (2|w| - l)).
    for exponent in reversed(
        grid.exponents()
    ):  # one at a time: memory of a few copies of the matrix however wide the grid
        level = 2.0**exponent
        if level > 2 * largest:
            continue  # lowers no error
        gain_R1 = (2 * magnitude_RC).sub_(level).clamp_(min=0).sum(1, keepdim=True) * level
        better_R1 = gain_R1 > best_gain_R1
        best_gain_R1 = torch.where(better_R1, gain_R1, best_gain_R1)
        level_R1 = torch.where(better_R1, level, level_R1)
        if (level * sum_R1 <= best_gain_R1).all():
            break  # a lower level l' gains less than 2 l' times the sum
    quantised_RC = torch.where(magnitude_RC >= level_R1 / 2, level_R1, 0.0)
    return _signed(quantised_RC.to(weight.dtype).reshape(weight.shape), weight)


def is_power(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """For each element whether it is 0 or ±2^k of the grid, read from mantissa and exponent."""
    mantissa, exponent = torch.frexp(weight)  # w = mantissa 2^exponent, 1/2 <= |mantissa| < 1
    in_range = (exponent - 1 >= grid.k_min) & (exponent - 1 <= grid.k_max)
    return (weight == 0) | ((mantissa.abs() == 0.5) & in_range)


def is_apot2(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """For each element whether it is 0, ±2^k1 or ±2^k1 ± 2^k2 with k1 > k2, both of the grid."""
    magnitude, lower = weight.abs(), _power_below(weight)
    as_sum = is_power(lower, grid) & is_power(magnitude - lower, grid)  # the rest is 0 for a single power
    as_difference = is_power(2 * lower, grid) & is_power(2 * lower - magnitude, grid)
    return (weight == 0) | as_sum | as_difference


def is_row_shared(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """For each element whether it is 0, or ±2^k of the grid in a row without other magnitudes; for vectors: `is_power`."""
    on_grid = is_power(weight, grid)
    if weight.ndim < 2 or weight.numel() == 0:
        return on_grid
    magnitude_RC = weight.flatten(1).abs()
    largest_R1 = magnitude_RC.amax(1, keepdim=True)
    one_magnitude_R1 = ((magnitude_RC == 0) | (magnitude_RC == largest_R1)).all(1, keepdim=True)
    return on_grid & ((magnitude_RC == 0) | one_magnitude_R1).reshape(weight.shape)


def exponents_of_powers(weight: torch.Tensor) -> tuple[int, int] | None:
    """Lowest and highest exponent of a tensor of 0 and ±2^k; None where all are 0."""
    return _lowest_and_highest(torch.frexp(weight[weight != 0]).exponent - 1)


def exponents_of_apot2(weight: torch.Tensor) -> tuple[int, int] | None:
    """Lowest and highest exponent in a tensor of levels of `apot2`, 3 counted as 2 + 1 rather than 4 - 1; None: all 0."""
    magnitude = weight[weight != 0].abs()
    lower = _power_below(magnitude)
    is_sum = is_power(magnitude - lower, Grid(SMALLEST_EXPONENT, LARGEST_EXPONENT))
    first = torch.where(is_sum, lower, 2 * lower)
    second = (magnitude - first).abs()
    terms = torch.cat([first, second[second != 0]])
    return _lowest_and_highest(torch.frexp(terms).exponent - 1)


def _power_below(weight: torch.Tensor) -> torch.Tensor:
    """The largest power of two up to |w|, NaN for 0; exact, since a division whose quotient can be held has no rounding."""
    return weight.abs() / (2 * torch.frexp(weight).mantissa.abs())


def _lowest_and_highest(exponents: torch.Tensor) -> tuple[int, int] | None:
    if exponents.numel() == 0:
        return None
    return int(exponents.min()), int(exponents.max())


def _nearest(weight: torch.Tensor, grid: Grid, two_terms: bool) -> torch.Tensor:
    _refuse_unusable(weight)
    levels, midpoints = _table(grid, two_terms, weight.dtype, weight.device)
    # right=True: a weight on a midpoint belongs to the level above it.
    return _signed(levels[torch.bucketize(weight.abs(), midpoints, right=True)], weight)


@lru_cache
def _table(grid: Grid, two_terms: bool, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels from 0 up and the midpoints between neighbours, both exact in `dtype`; kept, as they are needed at every step."""
    levels = torch.tensor(apot2_levels(grid) if two_terms else power_levels(grid), dtype=torch.float64)
    midpoints = (levels[1:] + levels[:-1]) / 2  # in float64, where the sum of two levels near 2^127 is finite
    return levels.to(device, dtype), midpoints.to(device, dtype)


def _signed(magnitude: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`magnitude` with the sign of the weight; adding +0 turns -0, which would be a second code for the same level, into +0."""
    return torch.copysign(magnitude, weight) + 0.0


def _refuse_unusable(weight: torch.Tensor) -> None:
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weights of {weight.dtype} came to a projection: expected float32 or float64")
    finite = torch.isfinite(weight)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {weight.numel()} weights are NaN or infinite: expected finite weights to project, "
            f"lower trainer.lr or task.fine_tune_lr"
        )
