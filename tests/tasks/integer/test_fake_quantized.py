"""The float equations: exact for calibration, with simulated rounding for training."""

import copy

import pytest
import torch
from integer_networks import CELLS, batch, network

from speech_exp.tasks.integer import equations
from speech_exp.tasks.integer.calibration import RangeRecorder, observe
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer.fake import FakeQuantized, FakeRounding

ROUNDING = 1e-5  # float32 sums in a different order, through a few layers


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().square().mean().sqrt())


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_the_equations_are_those_of_the_network(name, bidirectional, pooling):
    trained, given = network(name, bidirectional, 2, 3, pooling), batch([9, 4, 12])
    watching = RangeRecorder()
    found_BV = equations.logits(trained, given.features_BTF, given.lengths_B, watching)
    torch.testing.assert_close(found_BV, trained(given.features_BTF, given.lengths_B), rtol=ROUNDING, atol=ROUNDING)
    assert {"input", "front", "layers.0.output", "layers.1.output", "pooled"} <= watching.ranges.keys()


@pytest.mark.parametrize("name", CELLS)
def test_ranges_do_not_depend_on_padding_or_batches(name):
    trained, given = network(name, True, 2, 3), batch([9, 4, 12])
    together = observe(trained, [given])
    garbage_BTF = torch.where(given.features_BTF == 0, 100.0, given.features_BTF)
    parts = (slice(0, 1), slice(1, 3))
    apart = observe(
        trained,
        [type(given)(garbage_BTF[p], given.lengths_B[p], given.targets[p], None, given.ids[p]) for p in parts],
    )
    assert together.keys() == apart.keys()
    for point, range_X in together.items():
        torch.testing.assert_close(apart[point], range_X, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("front", [0, 3])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("name", CELLS)
def test_the_fake_is_much_nearer_to_the_integers_than_float_is(name, pooling, front):
    trained, given = network(name, pooling=pooling, front=front), batch([20, 30, 15] * 8)
    integer_BV = convert(trained, [given])(given.features_BTF, given.lengths_B)
    faked_BV = FakeQuantized(trained, [given]).eval()(given.features_BTF, given.lengths_B)
    float_BV = trained(given.features_BTF, given.lengths_B)
    assert 0 < distance(faked_BV, integer_BV) < 0.65 * distance(float_BV, integer_BV)


@pytest.mark.parametrize("name", CELLS)
def test_it_trains_the_parameters_of_the_network_themselves(name):
    trained, given = network(name, True, 2, 3, "attention"), batch([9, 4, 12])
    fake = FakeQuantized(trained, [given]).train()
    assert {id(parameter) for parameter in fake.parameters()} == {id(parameter) for parameter in trained.parameters()}
    fake(given.features_BTF, given.lengths_B).square().sum().backward()
    for key, parameter in trained.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key == "score.bias", key  # a softmax ignores a common offset


@pytest.mark.parametrize("name", ["gru", "lstm", "lmu", "lmu_feedback"])
def test_gradients_are_near_those_of_the_network(name):
    """Many utterances are needed, because the largest value of each feature, at the edge of its range, may pass no gradient."""
    given, trained = batch([9, 4, 12] * 40), network(name)
    twin = copy.deepcopy(trained)
    trained(given.features_BTF, given.lengths_B).square().sum().backward()
    FakeQuantized(twin, [given]).eval()(given.features_BTF, given.lengths_B).square().sum().backward()
    for one, other in zip(trained.parameters(), twin.parameters(), strict=True):
        assert 0 < (one.grad - other.grad).norm() <= 0.15 * one.grad.norm()


def test_gradients_pass_rounding_and_stop_at_saturation():
    x = torch.tensor([-3.0, 0.26, 0.74, 3.0], requires_grad=True)
    for scale in (0.5, torch.full((4,), 0.5)):
        coded = FakeRounding({}).codes(x, scale, 4)
        assert coded.tolist() == [-2.0, 0.5, 0.5, 2.0]
        assert torch.autograd.grad(coded.sum(), x)[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_dropout_acts_in_training_alone():
    trained, given = network("gru"), batch([9, 4])
    fake = FakeQuantized(trained, [given]).train()
    once, again = (fake(given.features_BTF, given.lengths_B) for _ in range(2))
    assert not torch.equal(once, again)
    fake.eval()
    once, again = (fake(given.features_BTF, given.lengths_B) for _ in range(2))
    assert torch.equal(once, again)


def test_training_with_the_rules_faked_lowers_the_loss_of_the_integers():
    given, trained = batch([9, 4, 12, 7] * 8), network("gru")
    before = torch.nn.functional.cross_entropy(
        convert(trained, [given])(given.features_BTF, given.lengths_B), given.targets
    )
    fake = FakeQuantized(trained, [given]).train()
    optimizer = torch.optim.Adam(fake.parameters(), 0.03)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(fake(given.features_BTF, given.lengths_B), given.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = torch.nn.functional.cross_entropy(
        convert(trained, [given])(given.features_BTF, given.lengths_B), given.targets
    )
    assert after < 0.9 * before


def test_it_needs_batches_and_computes_in_float32_under_autocast():
    with pytest.raises(ValueError, match="at least one training batch"):
        FakeQuantized(network("gru"), [])
    given = batch([9, 4])
    fake = FakeQuantized(network("gru"), [given]).eval()
    expected_BV = fake(given.features_BTF, given.lengths_B)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake(given.features_BTF, given.lengths_B), expected_BV)
