"""The LMU's matrices A and B in the formats of a constrained device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.linear_memory import LinearMemory
from speech_exp.models.lmu import LMU
from speech_exp.tasks.grids import Grid, nearest_power
from speech_exp.tasks.state_space import CODINGS, int16_exponent, is_stored, memories, spectral_radius, stored

GRID = Grid(-8, 8)
MATRICES = [LinearMemory(order, theta).A for order, theta in ((1, 4.0), (8, 16.0), (32, 100.0), (192, 200.0))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9))
def test_int16_uses_the_finest_scale_that_fits(values):
    matrix = torch.tensor(values)
    exponent = int16_exponent(matrix)
    codes = (matrix.double() * 2.0**exponent).round()
    assert codes.abs().max() <= 32767
    if matrix.any() and exponent < 15:
        assert (matrix.double() * 2.0 ** (exponent + 1)).round().abs().max() > 32767
    rounded = stored(matrix, "int16", GRID)
    assert (rounded.double() - matrix.double()).abs().max() <= 2.0 ** (-exponent - 1)
    assert bool(is_stored(rounded, "int16", GRID).all())
    assert torch.equal(stored(rounded, "int16", GRID), rounded)


@pytest.mark.parametrize("A_MM", MATRICES)
def test_int16_keeps_the_memory_stable_where_powers_of_two_do_not(A_MM):
    assert spectral_radius(A_MM) < 1
    assert spectral_radius(stored(A_MM, "int16", GRID)) < 1
    if len(A_MM) > 1:
        assert spectral_radius(nearest_power(A_MM, GRID)) > 1  # why no approach projects A


def test_a_number_between_codes_is_found():
    A_MM = stored(MATRICES[1], "int16", GRID)
    A_MM[2, 3] += 2.0 ** (-int16_exponent(A_MM) - 2)
    assert (~is_stored(A_MM, "int16", GRID)).nonzero().tolist() == [[2, 3]]


def test_a_known_spectral_radius():
    assert spectral_radius(torch.tensor([[0.0, -0.5], [0.5, 0.0]])) == pytest.approx(0.5)


def test_bytes_of_a_and_b():
    ((name, memory),) = memories(LMU(5, 3, order=4, theta=8.0))
    assert name == "memory"
    exponents, numbers = 2, 4 * 4 + 4
    assert len(CODINGS["int16"].pack([memory.A, memory.B])) == exponents + 2 * numbers
    matrices = [stored(matrix, "apot2", GRID) for matrix in (memory.A, memory.B)]
    levels = torch.cat([matrix.flatten() for matrix in matrices]).abs().unique()
    levels = len(levels[levels > 0])
    expected = 2 + 2 * levels + -(-numbers * (2 * levels).bit_length() // 8)  # 2 levels + 1 words
    assert len(CODINGS["apot2"].pack(matrices)) == expected
