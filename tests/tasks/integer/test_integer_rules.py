"""The integer rules against Python's exact integers and fractions."""

from fractions import Fraction
from math import floor

import integer_reference as exact
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.tasks.integer import rules, scheme

INT32 = st.integers(-(2**31) + 1, 2**31 - 1)
CORNERS = [0, 1, -1, 2**30, -(2**30), 2**31 - 1, -(2**31) + 1]
ALL_INT16 = torch.arange(-32767, 32768).to(torch.int16)
LSB = 2.0**-15


def as_int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@given(st.lists(INT32, min_size=1), st.integers(2**30, 2**31 - 1), st.integers(1, 62))
def test_requantisation_is_the_nearest_integer_of_the_exact_product(values, multiplier, shift):
    values = values + CORNERS
    found = rules.requantize(as_int32(values), as_int32([multiplier]), torch.tensor([shift], dtype=torch.int8))
    assert found.dtype == torch.int32
    for value, result in zip(values, found.tolist(), strict=True):
        assert result == exact.requantize(value, multiplier, shift)
        unbounded = Fraction(value * multiplier, 2**shift)
        nearest = floor(unbounded + Fraction(1, 2))
        assert result == min(max(nearest, -rules.PART_LIMIT), rules.PART_LIMIT)


@given(st.lists(st.tuples(INT32, st.integers(0, 2**31 - 1), st.integers(1, 62)), min_size=1))
def test_each_row_has_its_own_multiplier_and_shift(rows):
    values, multipliers, shifts = map(list, zip(*rows, strict=True))
    found = rules.requantize(as_int32(values), as_int32(multipliers), torch.tensor(shifts, dtype=torch.int8))
    assert found.tolist() == [exact.requantize(*row) for row in rows]


def test_halves_round_towards_plus_infinity():
    one_half = (as_int32([2**30]), torch.tensor([31], dtype=torch.int8))
    assert rules.requantize(as_int32([-3, -1, 1, 3]), *one_half).tolist() == [-1, 0, 1, 2]
    assert rules.shift_rounded(as_int32([-3, -1, 1, 3]), 1).tolist() == [-1, 0, 1, 2]
    assert rules.divide_rounded(as_int32([-3, -1, 1, 3]), as_int32([2])).tolist() == [-1, 0, 1, 2]


@given(st.lists(INT32, min_size=1))
def test_saturation_is_symmetric(values):
    values = values + CORNERS + [-129, -128, -127, 127, 128, -32769, -32768, -32767, 32767, 32768]
    narrow, wide = rules.saturate8(as_int32(values)), rules.saturate16(as_int32(values))
    assert narrow.dtype == torch.int8 and wide.dtype == torch.int16
    assert narrow.tolist() == [exact.saturate8(value) for value in values]
    assert wide.tolist() == [exact.saturate16(value) for value in values]


@given(st.lists(st.integers(-(2**30), 2**30), min_size=1), st.integers(0, 30))
def test_rounded_shifts_equal_exact_ones(values, bits):
    assert rules.shift_rounded(as_int32(values), bits).tolist() == [exact.shift_rounded(x, bits) for x in values]


@given(st.lists(st.tuples(st.integers(-(2**30), 2**30), st.integers(1, 2**30)), min_size=1))
def test_rounded_division_is_the_nearest_integer(pairs):
    numerators, denominators = map(list, zip(*pairs, strict=True))
    found = rules.divide_rounded(as_int32(numerators), as_int32(denominators))
    assert found.dtype == torch.int32
    assert found.tolist() == [exact.divide_rounded(p, q) for p, q in pairs]
    for (p, q), result in zip(pairs, found.tolist(), strict=True):
        assert abs(Fraction(p, q) - result) <= Fraction(1, 2)


def test_tables_are_those_of_the_rules():
    assert rules.TANH_TABLE.tolist() == exact.TANH and rules.TANH_TABLE.dtype == torch.int16
    assert rules.EXP2_TABLE.tolist() == exact.EXP2 and rules.EXP2_TABLE.dtype == torch.int16


def test_tanh_at_every_code():
    found = rules.tanh_code(ALL_INT16)
    assert found.dtype == torch.int16
    assert found.tolist() == [exact.tanh_code(code) for code in ALL_INT16.tolist()]
    error = (found.double() * LSB - (ALL_INT16.double() * 2.0**-12).tanh()).abs().max()
    assert LSB / 2 <= error <= 4 * LSB
    assert torch.equal(found, -found.flip(0)) and (found.diff() >= 0).all()


def test_sigmoid_at_every_code():
    found = rules.sigmoid_code(ALL_INT16)
    assert found.dtype == torch.int16
    assert found.tolist() == [exact.sigmoid_code(code) for code in ALL_INT16.tolist()]
    assert (found.double() * LSB - (ALL_INT16.double() * 2.0**-11).sigmoid()).abs().max() <= 3 * LSB
    assert (found.min(), found.max()) == (1, 32767) and (found.diff() >= 0).all()


def test_exp2_at_every_distance_that_matters():
    distance = torch.cat([torch.arange(17 * 1024), torch.tensor([2**30])]).int()
    found = rules.exp2_code(distance)
    assert found.dtype == torch.int16
    assert found.tolist() == [exact.exp2_code(code) for code in distance.tolist()]
    assert (found.double() * LSB - torch.exp2(-distance.double() * 2.0**-10)).abs().max() <= 3 * LSB
    assert found[0] == 32767 and found[-1] == 0 and (found.diff() <= 0).all()


@pytest.mark.parametrize("codes_type", [torch.int8, torch.int16])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (1, 97, 291), (3, 5, 7), (64, 20, 135), (2, 511, 3)]
)
def test_products_are_exact_at_random_and_extreme_codes(codes_type, rows, inputs, outputs):
    limit = torch.iinfo(codes_type).max
    torch.manual_seed(rows)
    for codes in (torch.randint(-limit, limit + 1, (2, rows, inputs)), torch.full((2, rows, inputs), limit)):
        weight = torch.randint(-127, 128, (outputs, inputs))
        weight[0] = 127
        found = rules.product(codes.to(codes_type), weight.to(torch.int8))
        assert found.dtype == torch.int32
        assert torch.equal(found.long(), codes @ weight.t())


@given(st.lists(st.floats(2.0**-32, 2.0**29), min_size=1))
def test_a_multiplier_and_shift_are_the_nearest_to_their_ratio(ratios):
    multiplier, shift = scheme.fixed_point(torch.tensor(ratios, dtype=torch.float64))
    for ratio, m, s in zip(ratios, multiplier.tolist(), shift.tolist(), strict=True):
        assert 2**30 <= m < 2**31 and 1 <= s <= 62
        assert abs(Fraction(m, 2**s) - Fraction(ratio)) <= Fraction(1, 2 ** (s + 1))


def test_a_ratio_too_small_for_any_int32_gives_0_and_one_too_large_is_refused():
    multiplier, shift = scheme.fixed_point(torch.tensor([1e-12, 0.0], dtype=torch.float64))
    assert rules.requantize(as_int32([2**31 - 1] * 2), multiplier, shift).tolist() == [0, 0]
    for ratio in (2.0**31, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="does not fit an int32 multiplier"):
            scheme.fixed_point(torch.tensor([ratio]))


@pytest.mark.parametrize("order", [1, 2, 8, 64, 192])
def test_a_linear_memory_fits_int32_and_keeps_a_spectral_radius_below_1(order):
    from speech_exp.models.memory_tables import legendre_state_space

    A_MM, B_M = legendre_state_space(order, 2.0 * order)
    A_codes_MM, B_codes_M, bits = scheme.state_matrices(A_MM, B_M)
    assert A_codes_MM.dtype == B_codes_M.dtype == torch.int16
    worst = max(
        32767 * (sum(map(abs, row)) + abs(b)) for row, b in zip(A_codes_MM.tolist(), B_codes_M.tolist(), strict=True)
    )
    assert scheme.state_bound(A_codes_MM, B_codes_M, bits) == worst + 2 ** (bits - 1) < 2**31
    assert (A_codes_MM / 2**bits - A_MM).abs().max() <= 2.0 ** -(bits + 1)
    assert torch.linalg.eigvals(A_codes_MM / 2.0**bits).abs().max() < 1
    finer = 2 ** (bits + 1)  # one bit more would not fit
    assert (
        bits == 15
        or (A_MM * finer).abs().max() > 32767
        or (scheme.state_bound((A_MM * finer).round(), (B_M * finer).round(), bits + 1) >= 2**31)
    )
