"""The float equations of partly integer networks: exact for calibration, with simulated rounding for training."""

import pytest
import torch
from integer_networks import BLOCK, CELLS, LENGTHS, MIXED, batch, of, recogniser, seen_by

from speech_exp.tasks.integer import scheme
from speech_exp.tasks.integer.calibration import RangeRecorder
from speech_exp.tasks.integer.conversion import convert
from speech_exp.tasks.integer.fake import FakeQuantized
from speech_exp.tasks.integer.rounded import rounded

ROUNDING = 1e-5  # float32 sums in a different order, through a few layers


def distance(one, other):
    return float((one - other).detach().square().mean().sqrt())


@pytest.mark.parametrize("name", CELLS)
def test_the_equations_are_those_of_the_network_and_ranges_those_of_its_inputs(name):
    trained, given = recogniser(name, True), batch(LENGTHS)
    watching = RangeRecorder()
    torch.testing.assert_close(of(rounded(trained, watching), given), of(trained, given), rtol=ROUNDING, atol=ROUNDING)
    inputs_BTD, lengths_B, _ = seen_by(trained.get_submodule(BLOCK), trained, given)
    valid_BT = torch.arange(inputs_BTD.shape[1]) < lengths_B.unsqueeze(1)
    expected_D = inputs_BTD[valid_BT].detach().abs().amax(0)
    torch.testing.assert_close(watching.ranges[f"{BLOCK}.input"], expected_D, rtol=ROUNDING, atol=ROUNDING)
    converted = convert(trained, [given])
    scale_D = scheme.code_scale(expected_D, 127).float()
    torch.testing.assert_close(
        converted.network.get_submodule(BLOCK).input_scale, scale_D, rtol=ROUNDING, atol=ROUNDING
    )


@torch.no_grad()
@pytest.mark.parametrize("name", CELLS)
def test_integers_are_near_float_and_the_fake_is_nearer(name):
    trained, given = recogniser(name), batch([20, 30, 15] * 8)
    integer, faked, real = (
        of(network, given) for network in (convert(trained, [given]), FakeQuantized(trained, [given]).eval(), trained)
    )
    assert 0 < distance(integer, real) < 0.03 * float(real.std())
    assert 0 < distance(faked, integer) < 0.65 * distance(real, integer)


@pytest.mark.parametrize(("build", "covered"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("name", ["gru", "lstm", "lmu"])
def test_training_with_the_rules_faked_trains_the_network_itself(name, build, covered):
    trained, given = build(name), batch(LENGTHS * 4)
    target = torch.randn_like(of(trained, given))
    fake = FakeQuantized(trained, [given]).train()
    assert {id(parameter) for parameter in fake.parameters()} == {id(parameter) for parameter in trained.parameters()}
    once, again = (of(fake, given) for _ in range(2))
    assert not torch.equal(once, again)  # dropout

    def loss_of_integers():
        return (of(convert(trained, [given]), given) - target).square().mean().item()

    before = loss_of_integers()
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    for _ in range(12):
        optimizer.zero_grad()
        (of(fake, given) - target).square().mean().backward()
        for key, parameter in trained.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        optimizer.step()
    assert loss_of_integers() < 0.98 * before
