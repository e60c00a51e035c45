"""The vectorised engine equals the scalar one of `integer_reference` bit for bit, with and without padding."""

import integer_reference as exact
import pytest
import torch
from integer_networks import CELLS, batch, network, random_codes

from speech_exp.tasks.integer.conversion import convert

LENGTHS = [4, 1, 6]
LMU_ACTIVATIONS = {  # input activation, activation, feedback
    "lmu": ("relu", "relu", False),
    "lmu_tanh": ("tanh", "tanh", False),
    "lmu_linear": ("linear", "linear", False),
    "lmu_feedback": ("linear", "tanh", True),
    "lmu_feedback_relu": ("linear", "relu", True),
}


def part_of(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(name + "."): value for key, value in state.items() if key.startswith(name + ".")}


def layer_in_c(name: str, state: dict[str, torch.Tensor], frames: list[list[int]]) -> list[list[int]]:
    if name in LMU_ACTIVATIONS:
        return exact.lmu(state, frames, *LMU_ACTIVATIONS[name])
    return {"gru": exact.gru, "lstm": exact.lstm}[name](state, frames)


@pytest.mark.parametrize("gain", [1.0, 6.0])  # 6: gates, cells and activations saturate
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CELLS)
def test_a_layer_equals_its_scalar_form_bit_for_bit(name, seed, gain):
    converted = convert(network(name, gain=gain, seed=seed), [batch([9, 4])])
    codes_BTF, lengths_B = random_codes(3, 6, seed), torch.tensor(LENGTHS)
    layer, state = converted.recurrent_layers[0], part_of(converted.state_dict(), "layers.0")
    states_BTH = layer(codes_BTF, lengths_B)
    assert states_BTH.dtype == torch.int16
    final_BH = layer.final(codes_BTF, lengths_B)
    for number, length in enumerate(LENGTHS):
        expected = layer_in_c(name, state, codes_BTF[number, :length].tolist())
        assert states_BTH[number, :length].tolist() == expected
        assert final_BH[number].tolist() == expected[-1]


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("name", ["gru", "lmu"])
def test_a_network_equals_its_scalar_form_bit_for_bit(name, pooling):
    """Two bidirectional layers over a convolution front use all parts of the engine."""
    converted = convert(network(name, True, 2, front=6, pooling=pooling, gain=2.0), [batch([9, 4])])
    codes_BTF, state = random_codes(3, 6), converted.state_dict()
    found_BV = converted.integer_logits(codes_BTF, torch.tensor(LENGTHS))
    assert found_BV.dtype == torch.int32
    for number, length in enumerate(LENGTHS):
        frames = codes_BTF[number, :length].tolist()
        silence = [[0] * len(frames[0])]
        padded = silence + frames + silence
        window = [[code for column in zip(*padded[t : t + 3], strict=True) for code in column] for t in range(length)]
        filters = exact.Linear(state, "front.filters")
        frames = [[exact.saturate8(max(0, x)) for x in filters(one)] for one in window]
        for layer in range(2):
            directions = []
            for direction, step in (("forward_layer", 1), ("backward_layer", -1)):
                one = part_of(state, f"layers.{layer}.{direction}")
                directions.append(layer_in_c(name, one, frames[::step])[::step])
            states = [one + other for one, other in zip(*directions, strict=True)]
            if layer == 0:
                narrowing = exact.Requantization(state, "narrowings.0")
                frames = [[exact.saturate8(x) for x in narrowing(h)] for h in states]
        if pooling == "last":
            half = len(states[0]) // 2
            pooled = states[-1][:half] + states[0][half:]
        else:
            pooled = exact.mean(states) if pooling == "mean" else exact.attention(part_of(state, "pooling"), states)
        pooled = [exact.saturate8(x) for x in exact.Requantization(state, "pooled")(pooled)]
        rows = zip(state["output.weight"].tolist(), state["output.bias"].tolist(), strict=True)
        expected = [sum(w * x for w, x in zip(row, pooled, strict=True)) + bias for row, bias in rows]
        assert found_BV[number].tolist() == expected


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_a_padded_batch_equals_its_utterances_one_by_one(name, bidirectional, pooling):
    layers = 2 if bidirectional else 1
    converted = convert(network(name, bidirectional, layers, 3 * bidirectional, pooling), [batch([9, 4])])
    codes_BTF, lengths_B = random_codes(3, 6), torch.tensor(LENGTHS)  # with noise in the padding
    together_BV = converted.integer_logits(codes_BTF, lengths_B)
    assert len(together_BV.unique()) > 4
    for number, length in enumerate(LENGTHS):
        alone = slice(number, number + 1)
        assert torch.equal(converted.integer_logits(codes_BTF[alone, :length], lengths_B[alone]), together_BV[alone])


def test_forward_is_the_logits_in_real_numbers_and_quantisation_the_only_way_in():
    given = batch([9, 4, 7])
    converted = convert(network("gru"), [given])
    codes_BTF = converted.quantize(given.features_BTF)
    assert codes_BTF.dtype == torch.int8
    expected_BTF = (given.features_BTF / converted.input_scale + 0.5).floor().clamp(-127, 127)
    assert torch.equal(codes_BTF.float(), expected_BTF) and codes_BTF.abs().amax((0, 1)).tolist() == [127] * 5
    logits_BV = converted(given.features_BTF, given.lengths_B)
    assert logits_BV.dtype == torch.float32
    assert torch.equal(logits_BV, converted.integer_logits(codes_BTF, given.lengths_B) * converted.output_scale)


def test_features_beyond_calibration_saturate():
    given = batch([9, 4])
    converted = convert(network("gru"), [given])
    assert converted.quantize(given.features_BTF * -1000).abs().max() == 127


@pytest.mark.parametrize("name", CELLS)
def test_it_agrees_with_float(name):
    """Errors are about one int8 code, 1/127 of the largest value, at each of a few successive points."""
    given = batch([20, 30, 15] * 8)
    trained = network(name)
    float_BV = trained(given.features_BTF, given.lengths_B)
    integer_BV = convert(trained, [given])(given.features_BTF, given.lengths_B)
    assert ((integer_BV - float_BV).square().mean().sqrt() / float_BV.std()) < 0.03


@pytest.mark.parametrize("name", ["gru", "lstm", "lmu"])
def test_a_trained_network_decides_the_same(name):
    """Classes differ in the sign of a drift; after training, all but a few close decisions agree."""
    torch.manual_seed(0)
    lengths = torch.randint(8, 20, (200,)).tolist()
    given = batch(lengths)
    drift_CF = torch.randn(4, 5)
    features_BTF = given.features_BTF + (given.features_BTF != 0) * 0.6 * drift_CF[given.targets].unsqueeze(1)
    trained = network(name).train()
    optimizer = torch.optim.Adam(trained.parameters(), 0.02)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(trained(features_BTF, given.lengths_B), given.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained.eval()
    with torch.no_grad():
        decided_B = trained(features_BTF, given.lengths_B).argmax(1)
    given = type(given)(features_BTF, given.lengths_B, given.targets, None, given.ids)
    integer_B = convert(trained, [given])(features_BTF, given.lengths_B).argmax(1)
    assert (decided_B == given.targets).float().mean() > 0.8
    assert (decided_B == integer_B).float().mean() >= 0.97
