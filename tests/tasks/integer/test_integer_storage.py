"""The stored form of an integer network: state, bytes, and refusals when it is read."""

import io

import pytest
import torch
from integer_networks import CELLS, batch, network, random_codes

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.layer import RecurrentLayer
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.integer.conversion import convert, from_state
from speech_exp.tasks.integer.form import IntegerForm
from speech_exp.tasks.integer.network import IntegerNetwork
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.packed import HEADER, Part, Tables, pack


def saved_and_loaded(converted: IntegerNetwork) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("name", CELLS)
def test_a_state_restores_the_same_network(name, pooling):
    arguments = (name, True, 2, 3, pooling)
    given = batch([9, 4])
    converted = convert(network(*arguments), [given])
    again = from_state(network(*arguments, seed=77), saved_and_loaded(converted))
    codes_BTF, lengths_B = random_codes(3, 6), torch.tensor([4, 1, 6])
    expected_BV = converted.integer_logits(codes_BTF, lengths_B)
    assert torch.equal(again.integer_logits(codes_BTF, lengths_B), expected_BV) and expected_BV.any()
    assert torch.equal(again(given.features_BTF, given.lengths_B), converted(given.features_BTF, given.lengths_B))
    assert again.model_bytes() == converted.model_bytes()
    assert again.accumulator_bounds() == converted.accumulator_bounds()


@pytest.mark.parametrize("pooling", ["last", "attention"])
@pytest.mark.parametrize("name", CELLS)
def test_the_packed_file_restores_the_same_network(tmp_path, name, pooling):
    """The file restores bits and logits and has the counted size, with both directions, a front and both tables."""
    task, given = IntegerInference(10**6, True, 0, 1e-3, None), batch([9, 4])
    converted = convert(network(name, True, 2, 3, pooling), [given])
    path = tmp_path / "model.packed"
    path.write_bytes(pack(converted.state_dict(), task.deployment.parts(converted)))
    again = task.deployment.unpacked(network(name, True, 2, 3, pooling, seed=77), path)
    assert same_state(again.state_dict(), converted.state_dict())
    assert torch.equal(again(given.features_BTF, given.lengths_B), converted(given.features_BTF, given.lengths_B))
    stored = task.deployment.stored(converted)
    assert stored.packed_bytes == path.stat().st_size == converted.model_bytes() + HEADER.size
    assert stored.packed_layer_bytes == stored.recurrent_layer_bytes == converted.recurrent_layer_bytes()


def test_a_packed_file_with_other_tables_or_shifts_is_refused(tmp_path):
    task = IntegerInference(10**6, True, 0, 1e-3, None)
    converted = convert(network("gru"), [batch([9, 4])])
    parts, path = task.deployment.parts(converted), tmp_path / "model.packed"
    others = tuple(table.flip(0) for table in converted.tables())
    path.write_bytes(pack(converted.state_dict(), [*parts[:-1], Part((), Tables(others))]))
    with pytest.raises(ValueError, match="its tables are not those of the integer rules"):
        task.deployment.unpacked(network("gru"), path)
    converted.pooled.shift.fill_(63)
    path.write_bytes(pack(converted.state_dict(), parts))
    with pytest.raises(ValueError, match="outside the integer rules"):
        task.deployment.unpacked(network("gru"), path)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_the_integer_layer_keeps_the_states_of_the_float_layer_in_two_bytes(name, bidirectional):
    trained = network(name, bidirectional, 2)
    expected = [2 * layer.state_numbers() for layer in trained.encoder.recurrent_layers]
    assert IntegerNetwork(trained).recurrent_state_bytes() == expected


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and value.numpy().tobytes() == other[name].numpy().tobytes()
        for name, value in one.items()
    )


def state_of(name: str = "lstm") -> dict[str, torch.Tensor]:
    return convert(network(name), [batch([9, 4])]).state_dict()


@pytest.mark.parametrize("key", sorted(state_of("lmu_tanh")))
def test_a_missing_wrongly_typed_or_wrongly_shaped_entry_is_refused(key):
    state = state_of("lmu_tanh")
    for tampered in (
        {name: value for name, value in state.items() if name != key},
        state | {key: state[key].double()},
        state | {key: state[key].unsqueeze(0)},
        state | {key: state[key].tolist()},
    ):
        with pytest.raises(ValueError, match=rf"the integer model lacks {key}|{key} of the integer model is "):
            from_state(network("lmu_tanh"), tampered)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("lstm", "spy", torch.zeros(1), "unknown entries spy"),
        ("lstm", "layers.0.cell_bits", torch.tensor(13, dtype=torch.int8), "outside the integer rules"),
        ("lmu", "layers.0.state_bits", torch.tensor(0, dtype=torch.int8), "outside the integer rules"),
        ("lstm", "pooled.shift", torch.full((7,), 63, dtype=torch.int8), "pooled of the integer model contains"),
        ("lstm", "pooled.multiplier", torch.full((7,), -1, dtype=torch.int32), "pooled of the integer model contains"),
        ("lstm", "output.bias", torch.full((4,), 2**31 - 1, dtype=torch.int32), "accumulator output may reach"),
        ("lmu", "layers.0.A", torch.full((4, 4), 32767, dtype=torch.int16), "accumulator layers.0.memory may reach"),
        ("lstm", "output_scale", torch.tensor(float("nan")), "output_scale of the integer model is not positive"),
        ("lstm", "input_scale", torch.zeros(5), "input_scale of the integer model is not positive"),
    ],
)
def test_a_value_that_breaks_the_rules_is_refused(name, key, value, message):
    with pytest.raises(ValueError, match=message):
        from_state(network(name), state_of(name) | {key: value})


def of_size(cell, width: int, bidirectional: bool = False) -> IntegerNetwork:
    return IntegerNetwork(ClassificationNetwork(CompactEncoder(width, cell, bidirectional, 1, 0.0), 10, "mean", 0.0))


def test_stored_bytes_of_a_layer_by_hand():
    """A row of a matrix has int8 weights, usually an int32 bias, an int32 multiplier and an int8 shift."""

    def bytes_of(cell, width=20, bidirectional=False):
        return of_size(cell, width, bidirectional).recurrent_layer_bytes()

    assert bytes_of(lambda width: GRU(width, 97)) == [3 * 97 * (20 + 97) + (4 + 5) * 6 * 97] == [39_285]
    cell_bits = 1
    assert bytes_of(lambda width: LSTM(width, 83)) == [4 * 83 * (20 + 83) + (4 + 5) * 8 * 83 + cell_bits] == [40_173]
    # Order 8, 20 channels, 45 hidden: U, W_x and their biases, W_m, requantisation of the three, A and B and their bits.
    expected = 20 * 20 + 4 * 20 + 45 * 20 + 4 * 45 + 45 * 160 + 5 * (20 + 45 + 45) + 2 * (64 + 8) + 1
    assert bytes_of(lambda width: LMU(width, 45, 8, 16, 20)) == [expected]
    rescaled = lambda width: LMU(width, 45, 8, 16, 20, input_activation="tanh")  # noqa: E731
    assert bytes_of(rescaled) == [expected + 5 * 20]
    # Three products give the signals and three the hidden state, which is also narrowed.
    original = (20 + 45) * (20 + 45 + 160) + 5 * (3 * 20 + 3 * 45 + 45) + 2 * (64 + 8) + 1
    assert bytes_of(lambda width: LMU(width, 45, 8, 16, 20, feedback=True)) == [original]
    assert bytes_of(lambda width: GRU(width, 10), 5, True) == [2 * (30 * 15 + (8 + 10) * 30)]


SIZED = {
    "gru": GRU,
    "lstm": LSTM,
    "lmu": lambda width, hidden: LMU(width, hidden, 4, 8, 3, activation="relu"),
    "lmu_tanh": lambda width, hidden: LMU(width, hidden, 4, 8, 3, input_activation="tanh"),
    "lmu_feedback": lambda width, hidden: LMU(width, hidden, 4, 8, 3, feedback=True),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SIZED)
def test_the_size_that_is_solved_for_is_that_of_the_converted_layer(name, bidirectional):
    """The chosen layer fits the budget after conversion, and the next larger one does not."""
    task = IntegerInference(1000, True, 0, 1e-3, None)

    def encoder(hidden: int) -> CompactEncoder:
        return CompactEncoder(5, lambda width: SIZED[name](width, hidden), bidirectional, 2, 0.0)

    def network(hidden: int) -> ClassificationNetwork:
        return ClassificationNetwork(encoder(hidden), 4, "mean", 0.0)

    def converted(hidden: int) -> IntegerForm:
        return convert(network(hidden), [batch([9, 4])])

    best = task.sizing.choose(lambda hidden: encoder(hidden).recurrent_layers, None).hidden_size
    fitting, above = converted(best), converted(best + 1)
    for hidden, form in ((best, fitting), (best + 1, above)):
        assert form.recurrent_layer_bytes() == [
            task.sizing.storage_of(layer).bytes for layer in encoder(hidden).recurrent_layers
        ]
    assert max(fitting.recurrent_layer_bytes()) <= 1000 < max(above.recurrent_layer_bytes())
    assert (
        task.deployment.certify(fitting, network(best)).details["recurrent_layer_bytes"]
        == fitting.recurrent_layer_bytes()
    )
    with pytest.raises(CertificateError, match=r"bytes, but task\.budget_bytes=1000"):
        task.deployment.certify(above, network(best + 1))


def test_stored_bytes_of_a_model_by_hand():
    model = of_size(lambda width: GRU(width, 1), 5)
    linear_bytes = 3 * (5 + 4 + 5) + 3 * (1 + 4 + 5)  # of a row: weights, bias, multiplier and shift
    pooled, output, scales, tanh_table = 5, 10 * (1 + 4), 4 * 5 + 4, 2 * 257
    assert model.model_bytes() == linear_bytes + pooled + output + scales + tanh_table
    relu = of_size(lambda width: LMU(width, 1, 2, 4, activation="relu"), 5)
    layer = (5 + 4 + 5) + (5 + 4 + 5) + (2 + 5) + 2 * (4 + 2) + 1  # signal, input, memory, A and B, their bits
    assert relu.model_bytes() == layer + pooled + output + scales
    attention = ClassificationNetwork(
        CompactEncoder(5, lambda width: GRU(width, 1), False, 1, 0.0), 10, "attention", 0.0
    )
    score = (1 + 4 + 5) + 5 + 2 * 33  # the row, the narrowing of its input, the table
    assert IntegerNetwork(attention).model_bytes() == model.model_bytes() + score


def test_the_certificate_lists_what_it_covers():
    converted = convert(network("gru", True, 2, front=3), [batch([9, 4])])
    assert converted.covered() == ["front", "layers.0", "layers.1", "pooling", "output"]
    assert converted.float_parts() == []
    assert len(converted.recurrent_layer_bytes()) == 2
    assert not list(converted.parameters())


def test_moving_or_halving_the_model_changes_nothing():
    converted = convert(network("lmu"), [batch([9, 4])])
    before = {name: value.clone() for name, value in converted.state_dict().items()}
    moved = converted.half().to(torch.float64).to("meta")
    for name, value in moved.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


@pytest.mark.parametrize("name", CELLS)
def test_conversion_leaves_the_network_as_it_was(name):
    trained = network(name, True, 2, front=3).train()
    trained.encoder.layers[1].eval()
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    modes = [module.training for module in trained.modules()]
    convert(trained, [batch([9, 4])])
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert [module.training for module in trained.modules()] == modes
    assert all(parameter.grad is None for parameter in trained.parameters())


class Strange(RecurrentLayer):
    name = "strange"
    forward = initial_state = step = None


def test_conversion_needs_batches_finite_values_and_known_layers():
    with pytest.raises(ValueError, match="at least one training batch"):
        convert(network("gru"), [])
    diverged = network("gru")
    diverged.output.bias.data.fill_(float("nan"))
    diverged.encoder.layers[0].cell.bias_hh_l0.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        convert(diverged, [batch([9])])
    strange = network("gru")
    strange.encoder.layers[0] = Strange(5, 7)
    with pytest.raises(ValueError, match=r"but not of strange: change model or task"):
        convert(strange, [batch([9])])


def test_silent_weights_and_silent_features_convert():
    silent = network("lmu_feedback", gain=0.0)
    given = batch([9, 4])
    given.features_BTF[..., 0] = 0.0
    converted = convert(silent, [given])
    assert converted(given.features_BTF, given.lengths_B).tolist() == [[0.0] * 4] * 2


def test_a_bias_far_above_its_weights_keeps_its_value():
    trained = network("gru")
    with torch.no_grad():
        trained.encoder.layers[0].cell.weight_ih_l0.mul_(1e-9)
        trained.encoder.layers[0].cell.bias_ih_l0.fill_(1.5)
    given = batch([9, 4])
    converted = convert(trained, [given])
    assert max(converted.accumulator_bounds().values()) < 2**31
    expected_BV = trained(given.features_BTF, given.lengths_B)
    torch.testing.assert_close(converted(given.features_BTF, given.lengths_B), expected_BV, rtol=0, atol=0.02)
