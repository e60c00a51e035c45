"""Projections equal an exhaustive search in exact fractions; membership tests equal the sets."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speech_exp.tasks.grids import (
    Grid,
    apot2,
    apot2_levels,
    exponents_of_apot2,
    exponents_of_powers,
    is_apot2,
    is_power,
    is_row_shared,
    nearest_power,
    power_levels,
    row_shared,
    stochastic_power,
)

DEFAULT = Grid(-8, 8)
PROJECTIONS = {"power": nearest_power, "apot2": apot2, "row_shared": row_shared}
MEMBERSHIP = {"power": is_power, "apot2": is_apot2, "row_shared": is_row_shared}
TINIEST, LARGEST = 2.0**-149, (2 - 2.0**-23) * 2.0**127  # positive numbers of float32
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


def powers_of(grid: Grid) -> set[Fraction]:
    return {Fraction(2) ** k for k in range(grid.k_min, grid.k_max + 1)}


def levels_of(name: str, grid: Grid) -> list[Fraction]:
    """Return all signed levels, directly from the definition."""
    powers = powers_of(grid)
    magnitudes = {Fraction(0), *powers}
    if name == "apot2":
        for large, small in itertools.product(powers, powers):
            if large > small:
                magnitudes |= {large + small, large - small}
    return sorted({sign * magnitude for magnitude in magnitudes for sign in (1, -1)})


def nearest(values: list[float], levels: list[Fraction]) -> list[float]:
    """Return the level nearest to each float32 number; in a tie, the one further from zero.

    Python's integers are exact and fast, and every float32 number is a multiple of 2^-149.
    """
    units = [int(level * 2**149) for level in levels]
    found = []
    for value in values:
        unit = int(Fraction(value) * 2**149)
        found.append(min(units, key=lambda level: (abs(unit - level), -abs(level))))
    return [float(Fraction(unit, 2**149)) for unit in found]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int64)


def awkward(grid: Grid) -> torch.Tensor:
    """Return every level of both kinds, every midpoint between two, and their float32 neighbours, with both signs."""
    levels = torch.tensor(apot2_levels(grid), dtype=torch.float64)
    powers = torch.tensor(power_levels(grid), dtype=torch.float64)
    values = torch.cat([levels, (levels[1:] + levels[:-1]) / 2, (powers[1:] + powers[:-1]) / 2]).float()
    up, down = (torch.nextafter(values, torch.tensor(end)) for end in (float("inf"), -float("inf")))
    values = torch.cat([values, up, down, torch.tensor([TINIEST, LARGEST, 1e-30, 1e30])])
    return torch.cat([values, -values])


grids = st.builds(lambda low, span: Grid(low, low + span), st.integers(-12, 6), st.integers(0, 6))
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Numbers near the grids with few bits, so that exact ties are frequent, and arbitrary numbers.
weights = st.one_of(st.integers(-40, 40).map(lambda n: n / 8), st.floats(-70, 70, width=32), floats)


@pytest.mark.parametrize("name", ["power", "apot2"])
@settings(max_examples=60, deadline=None)
@given(values=st.lists(weights, max_size=6), grid=grids)
@example(values=[0.0, -0.0, TINIEST, -TINIEST, LARGEST, -LARGEST], grid=DEFAULT)
@example(values=[0.0, TINIEST, 2.0**-127, 1.5 * 2.0**-127, 2.0**-128, 2.0**-126], grid=Grid(-126, -122))
@example(values=[LARGEST, 1.5 * 2.0**126, 1.25 * 2.0**127, -(2.0**127)], grid=Grid(122, 127))
def test_a_projection_is_the_nearest_of_all_levels_and_ties_go_away_from_zero(name, values, grid):
    levels = levels_of(name, grid)
    assert PROJECTIONS[name](torch.tensor(values), grid).tolist() == nearest(values, levels)


@pytest.mark.parametrize("grid", [DEFAULT, Grid(3, 3), Grid(-126, -120), Grid(121, 127)], ids=str)
@pytest.mark.parametrize("name", ["power", "apot2"])
def test_levels_midpoints_and_their_neighbours_go_to_the_nearest_of_all_levels(name, grid):
    values, levels = awkward(grid), levels_of(name, grid)
    assert PROJECTIONS[name](values, grid).tolist() == nearest(values.tolist(), levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["power", "apot2"])
def test_no_level_is_nearer_to_any_of_many_random_weights(name, dtype):
    """Differences of float32 numbers between 2^-20 and 2^10 and levels are exact in float64."""
    torch.manual_seed(0)
    weight = (torch.randn(60, 50) * torch.logspace(-12, 9, 60, base=2).unsqueeze(1)).to(dtype)
    levels = torch.tensor([float(level) for level in levels_of(name, DEFAULT)], dtype=torch.float64)
    least = (weight.double().unsqueeze(-1) - levels).abs().amin(-1)
    projected = PROJECTIONS[name](weight, DEFAULT)
    assert torch.equal((weight.double() - projected.double()).abs(), least)
    assert torch.isin(projected.double(), levels).all()


def test_the_widest_grid_of_float32_is_exact():
    grid = Grid(-126, 127)
    values = torch.tensor([TINIEST, 2.0**-128, 2.0**-127, 1.5 * 2.0**-126, 1.4999 * 2.0**126, LARGEST, -LARGEST])
    assert nearest_power(values, grid).tolist() == nearest(values.tolist(), levels_of("power", grid))
    assert is_power(nearest_power(values, grid), grid).all()


@pytest.mark.parametrize("low", [-126, -11, 105])
def test_the_widest_grid_of_apot2_is_exact_at_both_ends(low):
    grid = Grid(low, low + 22)
    unit, top = 2.0**low, 2.0**grid.k_max
    # The midpoint of the two highest neighbours at distance 2^k_min uses all 24 bits of float32.
    middle = torch.tensor([top + unit / 2, 0.0, unit / 2, top - unit / 2])
    below = torch.nextafter(middle, torch.tensor(0.0))
    assert apot2(middle, grid).tolist() == [top + unit, 0.0, unit, top]
    assert apot2(below, grid).tolist() == [top, 0.0, 0.0, top - unit]
    levels = torch.tensor(apot2_levels(grid))
    assert is_apot2(levels, grid).all() and torch.equal(apot2(-levels, grid), -levels)


def test_apot2_refuses_a_grid_whose_sums_float32_cannot_hold():
    with pytest.raises(
        ValueError, match=r"task\.k_min=-12, task\.k_max=11 .* at most 22.*change task\.k_min or task\.k_max"
    ):
        apot2(torch.ones(1), Grid(-12, 11))


def test_apot2_is_not_greedy():
    """The nearest sums by hand: 4 + 2, 8 - 1, -(8 - 1), and in a tie of 8 + 2 and 8 + 4 the larger."""
    assert apot2(torch.tensor([5.9, 6.9, -7.4, 11.0]), Grid(0, 3)).tolist() == [6.0, 7.0, -7.0, 12.0]


def row_errors(row: list[float], grid: Grid) -> dict[int, Fraction]:
    """Return the least squared error of the row for each exponent, over all choices of zeros and signs."""
    return {
        k: sum(min(Fraction(w) ** 2, (abs(Fraction(w)) - Fraction(2) ** k) ** 2) for w in row)
        for k in range(grid.k_min, grid.k_max + 1)
    }


def squared_error(row: list[float], quantised: list[float]) -> Fraction:
    return sum((Fraction(w) - Fraction(q)) ** 2 for w, q in zip(row, quantised, strict=True))


@settings(max_examples=100, deadline=None)
@given(row=st.lists(st.integers(-80, 80).map(lambda n: n / 16), min_size=1, max_size=6), grid=grids)
@example(row=[0.0, 0.0], grid=DEFAULT)
@example(row=[1.5], grid=DEFAULT)
@example(row=[3.0, 0.75], grid=DEFAULT)
@example(row=[2.0, -2.0, 4.0, 4.0, -4.0, 4.0], grid=DEFAULT)
def test_row_shared_has_the_least_squared_error_and_the_larger_exponent_of_equals(row, grid):
    """Sums of a few products of numbers with few bits are exact in float64, and so are their ties."""
    quantised = row_shared(torch.tensor([row]), grid)[0].tolist()
    errors = row_errors(row, grid)
    assert squared_error(row, quantised) == min(errors.values())
    if any(quantised):
        largest = 2.0 ** max(k for k, error in errors.items() if error == min(errors.values()))
        # In a tie between 0 and ±2^k, the latter wins.
        assert [abs(q) for q in quantised] == [largest if abs(w) >= largest / 2 else 0.0 for w in row]


@settings(max_examples=100, deadline=None)
@given(row=st.lists(weights, min_size=1, max_size=6), grid=grids)
def test_row_shared_has_the_least_squared_error_of_any_row(row, grid):
    """The compared gains have at most 6 terms with relative errors of 2^-52: 1e-14 of the squared norm covers their rounding."""
    quantised = row_shared(torch.tensor([row]), grid)
    least = min(row_errors(row, grid).values())
    slack = Fraction(1, 10**14) * sum(Fraction(w) ** 2 for w in row)
    assert squared_error(row, quantised[0].tolist()) <= least + slack
    assert len(set(quantised.abs().flatten().tolist()) - {0.0}) <= 1
    assert set(quantised.abs().flatten().tolist()) <= {0.0, *(float(power) for power in powers_of(grid))}


def test_row_shared_takes_higher_dimensions_as_rows_and_vectors_as_powers():
    torch.manual_seed(1)
    weight = torch.randn(4, 3, 2)
    assert torch.equal(row_shared(weight, DEFAULT), row_shared(weight.view(4, 6), DEFAULT).view(4, 3, 2))
    permuted = weight.permute(2, 0, 1)
    assert torch.equal(row_shared(permuted, DEFAULT), row_shared(permuted.contiguous(), DEFAULT))
    assert torch.equal(row_shared(weight[0, 0], DEFAULT), nearest_power(weight[0, 0], DEFAULT))
    assert row_shared(weight, DEFAULT).abs().unique().numel() > 2, "rows have exponents of their own"


@pytest.mark.parametrize("name", PROJECTIONS)
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(weights, min_size=6, max_size=6), grid=grids, dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_projections_are_idempotent_sign_symmetric_and_members_of_their_grid(name, values, grid, dtype):
    project, weight = PROJECTIONS[name], torch.tensor(values, dtype=dtype).view(2, 3)
    projected = project(weight, grid)
    assert torch.equal(bits(project(projected, grid)), bits(projected))
    assert torch.equal(project(-weight, grid), -projected)
    assert MEMBERSHIP[name](projected, grid).all()
    assert projected.dtype == dtype and projected.shape == weight.shape
    assert not projected[projected == 0].signbit().any(), "a zero is +0"


def stochastic(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    return stochastic_power(weight, grid, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("project", [*PROJECTIONS.values(), stochastic])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (2, 3, 4), (2, 0, 3)])
def test_every_shape_is_kept(project, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, requires_grad=True)
    projected = project(weight, DEFAULT)
    assert projected.shape == weight.shape and not projected.requires_grad
    for member in (is_power, is_row_shared, is_apot2):
        assert member(projected, DEFAULT).shape == weight.shape


@pytest.mark.parametrize("project", [*PROJECTIONS.values(), stochastic])
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_nan_and_infinity_are_refused(project, bad):
    with pytest.raises(ValueError, match=r"1 of 4 weights are NaN or infinite: expected finite .*task\.fine_tune_lr"):
        project(torch.tensor([[1.0, bad], [0.0, 2.0]]), DEFAULT)


@pytest.mark.parametrize("project", [*PROJECTIONS.values(), stochastic])
def test_other_dtypes_are_refused(project):
    with pytest.raises(ValueError, match=r"torch\.float16 .* expected float32 or float64"):
        project(torch.ones(2, 2, dtype=torch.float16), DEFAULT)


def test_stochastic_rounding_is_unbiased():
    """The mean of n draws of 0 or 1 deviates by at most 0.5 / sqrt(n); six deviations fail for about one seed in 10^8."""
    draws = 40_000
    values = torch.tensor([0.0, 2.0**-10, -0.0035, 0.3, -0.75, 1.0, 1.99, -5.0, 200.0, 256.0])
    rounded = stochastic(values.expand(draws, -1), DEFAULT)
    gap = torch.tensor([2.0**-8, 2.0**-8, 2.0**-8, 0.25, 0.5, 1.0, 1.0, 4.0, 128.0, 128.0])
    error = (rounded.double().mean(0) - values.double()).abs()
    assert (error <= 6 * 0.5 / draws**0.5 * gap).all(), error / gap
    for column, value in zip(rounded.T, values.tolist(), strict=True):
        around = [level for level in map(float, levels_of("power", DEFAULT)) if abs(level) <= 256]
        neighbours = {
            max(level for level in around if level <= value),
            min(level for level in around if level >= value),
        }
        assert set(column.tolist()) == neighbours


@settings(max_examples=60, deadline=None)
@given(values=st.lists(weights, min_size=1, max_size=6), grid=grids, seed=st.integers(0, 99))
def test_stochastic_rounding_takes_a_neighbour_saturates_and_keeps_levels(values, grid, seed):
    weight = torch.tensor(values)
    rounded = stochastic_power(weight, grid, torch.Generator().manual_seed(seed))
    levels = levels_of("power", grid)
    for value, result in zip(values, rounded.tolist(), strict=True):
        inside = min(max(Fraction(value), levels[0]), levels[-1])
        neighbours = {
            max(level for level in levels if level <= inside),
            min(level for level in levels if level >= inside),
        }
        assert result in neighbours
    again = stochastic_power(weight, grid, torch.Generator().manual_seed(seed))
    assert torch.equal(bits(rounded), bits(again))
    assert torch.equal(bits(stochastic_power(rounded, grid, torch.Generator().manual_seed(seed + 1))), bits(rounded))
    assert torch.equal(stochastic_power(-weight, grid, torch.Generator().manual_seed(seed)), -rounded)


def test_stochastic_rounding_depends_on_its_own_generator_alone():
    weight = torch.full((100,), 0.7)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = stochastic_power(weight, DEFAULT, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, stochastic_power(weight, DEFAULT, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("name", ["power", "apot2"])
@pytest.mark.parametrize("grid", [Grid(-2, 3), Grid(0, 0), Grid(0, 1), Grid(-1, 5)], ids=str)
def test_membership_holds_for_the_levels_and_for_no_other_multiple_of_an_eighth(name, grid):
    values = torch.arange(-600, 601) / 8
    levels = {float(level) for level in levels_of(name, grid)}
    assert MEMBERSHIP[name](values, grid).tolist() == [value in levels for value in values.tolist()]


@pytest.mark.parametrize("grid", [DEFAULT, Grid(-126, -120), Grid(121, 127), Grid(-14, 8)], ids=str)
@pytest.mark.parametrize("name", MEMBERSHIP)
def test_membership_rejects_a_level_moved_by_one_ulp(name, grid):
    levels = torch.tensor(apot2_levels(grid) if name == "apot2" else power_levels(grid)).unsqueeze(1)
    levels = torch.cat([levels, -levels])
    assert MEMBERSHIP[name](levels, grid).all()
    for end in (float("inf"), -float("inf")):
        assert not MEMBERSHIP[name](torch.nextafter(levels, torch.tensor(end)), grid).any()


@pytest.mark.parametrize("member", MEMBERSHIP.values())
def test_nan_and_infinity_are_not_members(member):
    assert member(torch.tensor([[value] for value in [*NOT_FINITE, 1.0]]), DEFAULT).flatten().tolist() == [
        False
    ] * 3 + [True]


def test_a_row_of_two_magnitudes_fails_in_all_but_its_zeros():
    weight = torch.tensor(
        [[0.0, 1.0, -1.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 3.0], [float("nan"), 1.0, 0.0]]
    )
    allowed = [[True] * 3, [True, False, False], [True] * 3, [False, True, False], [False, False, True]]
    assert is_row_shared(weight, DEFAULT).tolist() == allowed
    assert is_row_shared(weight.reshape(5, 1, 3), DEFAULT).tolist() == [[row] for row in allowed]
    assert is_row_shared(weight[1], DEFAULT).all(), "a vector may use several exponents"


def test_exponents_in_use():
    assert exponents_of_powers(torch.tensor([0.0, -0.25, 8.0])) == (-2, 3)
    assert exponents_of_apot2(torch.tensor([-7.0, 0.0])) == (0, 3)
    assert exponents_of_apot2(torch.tensor([3.0, 0.0])) == (0, 1)
    assert exponents_of_apot2(torch.tensor([2.0**-8, 192.0])) == (-8, 7)
    for empty in (torch.zeros(3), torch.zeros(0)):
        assert exponents_of_powers(empty) is None and exponents_of_apot2(empty) is None


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match=r"task\.k_min=3, task\.k_max=1: expected k_min <= k_max"):
        Grid(3, 1)
