"""Each named accumulator bound separately, against the largest sum that the integer rules compute."""

import pytest
import torch
from integer_networks import batch, network

from speech_exp.tasks.integer import cells, pooling
from speech_exp.tasks.integer import lmu as integer_lmu
from speech_exp.tasks.integer.cells import IntegerGRU, IntegerLSTM
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer.pooling import MAX_FRAMES, IntegerPooling

LARGEST = 2**15 - 1
NEARLY = 0.999  # the tables of sigmoid and tanh end just below 1


def watched(monkeypatch, module, rule):
    """Record the largest magnitude of each argument in every call of a rule."""
    calls, honest = [], getattr(module, rule)

    def seen(x, *others):
        calls.append(tuple(int(torch.as_tensor(one).long().abs().max()) for one in (x, *others)))
        return honest(x, *others)

    monkeypatch.setattr(module, rule, seen)
    return calls


def with_rounding(call):
    """Return the sum inside a rounded shift: its operand, and half of the dropped range."""
    operand, bits = call
    return operand + 2 ** (bits - 1)


def saturating(layer):
    """Make the recurrent part of each row equal its bias, far beyond int16, for any state."""
    layer.recurrent.product.bias.fill_(2**20)
    layer.recurrent.requantization.multiplier.fill_(2**30)
    layer.recurrent.requantization.shift.fill_(30)
    return layer


def test_the_bounds_of_a_gru(monkeypatch):
    layer = saturating(IntegerGRU(2, 3))
    sums = watched(monkeypatch, cells, "shift_rounded")
    layer.step(torch.full((1, 9), 2**20, dtype=torch.int32), torch.full((1, 3), -LARGEST, dtype=torch.int16))
    _, reset, update = map(with_rounding, sums)
    bounds = layer.accumulator_bounds()
    assert NEARLY * bounds["reset"] <= reset <= bounds["reset"] < 2**31
    assert NEARLY * bounds["update"] <= update <= bounds["update"] < 2**31


@pytest.mark.parametrize("cell_bits", [0, 1, 5, 11, 12])
def test_the_bounds_of_an_lstm(monkeypatch, cell_bits):
    layer = saturating(IntegerLSTM(2, 3))
    layer.cell_bits.fill_(cell_bits)
    sums, wide = watched(monkeypatch, cells, "shift_rounded"), watched(monkeypatch, cells, "saturate16")
    full_BH = torch.full((1, 3), LARGEST, dtype=torch.int16)
    layer.step(torch.full((1, 12), 2**20, dtype=torch.int32), full_BH, full_BH, cell_bits)
    _, kept, added, output = map(with_rounding, sums)
    (squash,) = wide[-1]
    bounds = layer.accumulator_bounds()
    for name, reached in (("cell", max(kept, added)), ("output", output), ("squash", squash)):
        assert NEARLY * bounds[name] <= reached <= bounds[name] < 2**31, name


def test_the_bound_of_a_memory_is_reached_by_the_worst_codes(monkeypatch):
    layer = convert(network("lmu"), [batch([9, 4])]).layers[0]
    sums = watched(monkeypatch, integer_lmu, "shift_rounded")
    memory_BCM = (layer.A.sign() * LARGEST).unsqueeze(1)  # utterance i drives row i
    layer.memory_step(memory_BCM, (layer.B.sign() * LARGEST).unsqueeze(1), int(layer.state_bits))
    assert with_rounding(sums[0]) == layer.accumulator_bounds()["memory"] < 2**31


def test_the_bound_of_mean_pooling_is_reached(monkeypatch):
    calls = watched(monkeypatch, pooling, "divide_rounded")
    mean = IntegerPooling("mean", 1)
    mean(torch.full((1, MAX_FRAMES, 1), LARGEST, dtype=torch.int16), torch.tensor([MAX_FRAMES]))
    ((total, frames),) = calls
    assert total + frames // 2 == mean.accumulator_bounds()["sum"] < 2**31


def test_the_bounds_of_attention_pooling(monkeypatch):
    """Equal scores of all frames give the largest sum of weights; a single frame gives the largest share before division."""
    calls = watched(monkeypatch, pooling, "divide_rounded")
    attention = IntegerPooling("attention", 1)
    attention.score.product.weight.fill_(127)
    attention.score.product.bias.fill_(1000)
    bounds = attention.accumulator_bounds()
    reached = dict.fromkeys(("weights", "share", "sum"), 0)
    # This many frames give each a share just above one and a half, which is rounded to two.
    for frames in (MAX_FRAMES, 2 * MAX_FRAMES // 3, 1):
        calls.clear()
        attention(torch.full((1, frames, 1), LARGEST, dtype=torch.int16), torch.tensor([frames]))
        (share, weights), (total, shares) = calls
        found = {"weights": weights, "share": share + weights // 2, "sum": total + shares // 2}
        reached = {name: max(found[name], reached[name]) for name in found}
    assert bounds["score"] == 127 * 127 + 1000
    # The sum of weights of all frames and the share of a single frame cannot be largest in the same call.
    for name, nearly in (("weights", NEARLY), ("share", 0.66), ("sum", 0.88)):
        assert nearly * bounds[name] <= reached[name] <= bounds[name] < 2**31, name
