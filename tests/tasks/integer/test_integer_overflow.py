"""Accumulator bounds are proven, reached by the worst codes, and refused where int32 is too small."""

import pytest
import torch
from integer_networks import CELLS, batch, network, random_codes
from torch.utils._python_dispatch import TorchDispatchMode

from speech_exp.tasks.integer import pooling as pooling_module
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer.parts import IntegerLinear, IntegerProduct
from speech_exp.tasks.integer.pooling import IntegerPooling

ARITHMETIC = {"add", "sub", "rsub", "mul", "mm", "sum", "div", "abs", "__lshift__", "__rshift__", "_to_copy"}


class Int64Twin(TorchDispatchMode):
    """A mode that repeats every arithmetic operation and narrowing conversion in int64 and requires equal results."""

    def __init__(self):
        super().__init__()
        self.compared = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ARITHMETIC and result.dtype in (torch.int8, torch.int16, torch.int32):
            wide = [arg.long() if isinstance(arg, torch.Tensor) else arg for arg in args]
            if name == "_to_copy":
                expected = wide[0]
            elif name == "mm":
                expected = wide[0] @ wide[1]
            else:
                expected = func(*wide, **{**kwargs, **({"dtype": torch.int64} if "dtype" in kwargs else {})})
            assert torch.equal(result.long(), expected), f"{func} overflows"
            self.compared += 1
            self.largest = max(self.largest, int(expected.abs().max()))
        return result


def worst_codes(converted, frames: int) -> torch.Tensor:
    """Return extreme codes: the signs in each utterance maximise one row of the first layer's products."""
    rows = [
        part.product.weight.sign()
        for part in converted.layers.modules()
        if isinstance(part, IntegerLinear) and part.product.weight.shape[1] == converted.input_scale.numel()
    ]
    signs_BF = torch.cat(rows)
    return torch.cat([signs_BF, -signs_BF]).mul(127).unsqueeze(1).expand(-1, frames, -1).contiguous()


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("gain", [1.0, 30.0])
@pytest.mark.parametrize("name", CELLS)
def test_nothing_overflows_at_the_worst_codes(name, gain, pooling):
    if name == "lmu_feedback_relu":
        gain = min(gain, 2.0)  # with more, its unbounded recurrence explodes even in float
    converted = convert(network(name, pooling=pooling, gain=gain), [batch([9, 4])])
    worst_BTF = worst_codes(converted, frames=12)
    alternating_BTF = worst_BTF * torch.tensor([1, -1], dtype=torch.int8).repeat(6).view(1, 12, 1)
    for codes_BTF in (worst_BTF, alternating_BTF, random_codes(8, 12)):
        with Int64Twin() as twin:
            converted.integer_logits(codes_BTF, torch.full((len(codes_BTF),), 12))
        assert twin.compared > 50
        assert twin.largest <= max(converted.accumulator_bounds().values()) < 2**31


def test_the_twin_finds_an_overflow():
    with pytest.raises(AssertionError, match="overflows"), Int64Twin():
        torch.tensor([2**30], dtype=torch.int32) * 2
    with pytest.raises(AssertionError, match="overflows"), Int64Twin():
        torch.tensor([200], dtype=torch.int32).to(torch.int8)


@pytest.mark.parametrize("limit", [127, 32767])
@pytest.mark.parametrize("bias", [False, True])
def test_a_bound_is_reached_by_the_worst_codes_and_passed_by_none(limit, bias):
    torch.manual_seed(0)
    product = IntegerProduct(20, 9, bias, limit)
    product.weight.copy_(torch.randint(-127, 128, (9, 20)))
    if bias:
        product.bias.copy_(torch.randint(-(2**20), 2**20, (9,)))
    signs_OI = product.weight.sign().long() * (1 if not bias else product.bias.sign().unsqueeze(1))
    codes_OI = (signs_OI * limit).to(torch.int8 if limit == 127 else torch.int16)
    found_OO = product.accumulate(codes_OI)
    wide_OO = codes_OI.long() @ product.weight.long().t() + (product.bias.long() if bias else 0)
    assert torch.equal(found_OO.long(), wide_OO)
    assert int(found_OO.abs().max()) == product.bound()


@pytest.mark.parametrize("name", CELLS)
def test_every_accumulator_has_a_name_and_a_bound(name):
    converted = convert(network(name, True, 2, front=3, pooling="attention"), [batch([9, 4])])
    bounds = converted.accumulator_bounds()
    for part, module in converted.named_modules():
        if isinstance(module, IntegerProduct):
            name_of_bound = {"front.filters": "front", "": "output"}.get(
                part.removesuffix(".product").removesuffix("output")
            )
            assert bounds[name_of_bound or part.removesuffix(".product")] == module.bound()
    assert all(isinstance(bound, int) and 0 <= bound < 2**31 for bound in bounds.values())


def test_too_wide_a_product_is_refused():
    converted = convert(network("lmu"), [batch([9])])
    product = converted.layers[0].hidden_from_memory.product
    product.weight = torch.full((7, 516), 127, dtype=torch.int8)
    converted.check()
    product.weight = torch.full((7, 517), 127, dtype=torch.int8)
    with pytest.raises(
        ValueError, match=r"accumulator layers\.0\.hidden_from_memory may reach 2151448453, beyond int32"
    ):
        converted.check()


def test_a_growing_memory_is_refused():
    converted = convert(network("lmu"), [batch([9])])
    layer = converted.layers[0]
    assert 0 < converted.spectral_radii()["layers.0.memory"] < 1
    layer.A.copy_(torch.eye(4) * 2 ** int(layer.state_bits))
    with pytest.raises(ValueError, match=r"layers\.0\.memory has spectral radius 1\.0000"):
        converted.check()


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_pooling_sums_as_many_frames_as_it_says_and_no_more(kind, monkeypatch):
    pooling = IntegerPooling(kind, 1)
    states_BTH = torch.full((2, pooling_module.MAX_FRAMES, 1), 32767, dtype=torch.int16)
    states_BTH[1] *= -1
    lengths_B = torch.tensor([pooling_module.MAX_FRAMES, pooling_module.MAX_FRAMES - 1])
    with Int64Twin() as twin:
        pooled_BH = pooling(states_BTH, lengths_B)
    assert pooled_BH.tolist() == [[32767], [-32767]]
    assert twin.largest <= max(pooling.accumulator_bounds().values()) < 2**31
    monkeypatch.setattr(pooling_module, "MAX_FRAMES", 4)
    with pytest.raises(ValueError, match=r"at most 4 frames, got 5: set objective\.pooling=last"):
        pooling(states_BTH[:, :5], torch.tensor([5, 5]))
