"""Networks with integer recurrent layers: these layers are exact, the rest equals the float network."""

import copy
import io

import integer_reference as exact
import pytest
import torch
from integer_networks import BLOCK, CELLS, FEATURES, LENGTHS, MIXED, batch, compact_recogniser, of, recogniser, seen_by

from speech_exp.models.encoder import CompactEncoder
from speech_exp.objectives.classification import ClassificationNetwork
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.integer.calibration import observe
from speech_exp.tasks.integer.conversion import convert, from_state
from speech_exp.tasks.integer.form import integer_layer
from speech_exp.tasks.integer.mixed import IntegerRecurrent, MixedNetwork
from speech_exp.tasks.integer.network import IntegerNetwork
from speech_exp.tasks.integer.proof import FloatOperationError, IntegersOnly
from speech_exp.tasks.integer_inference import IntegerInference
from speech_exp.tasks.packed import HEADER, differing, pack


def certify(deployed, untrained):
    return IntegerInference(10**6, False, 0, 5e-4, None).deployment.certify(deployed, untrained)


def stand_in(converted, name=BLOCK):
    found = converted.network.get_submodule(name)
    assert isinstance(found, IntegerRecurrent)
    return found


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_states_are_those_of_the_layer_alone_bit_for_bit(name, bidirectional):
    trained, given = recogniser(name, bidirectional), batch(LENGTHS)
    converted, ranges = convert(trained, [given]), observe(trained, [given])
    inside = stand_in(converted)
    inputs_BTD, lengths_B, output_BTH = seen_by(inside, converted, given)
    layer = trained.get_submodule(BLOCK)
    alone = integer_layer(layer)
    scale_H = alone.load(layer, BLOCK, ranges, inside.input_scale.double())
    codes_BTD = (inputs_BTD / inside.input_scale + 0.5).floor().clamp(-127, 127).to(torch.int8)
    states_BTH = alone(codes_BTD, lengths_B)
    assert states_BTH.dtype == torch.int16 and states_BTH.any()
    assert torch.equal(output_BTH, states_BTH * scale_H.float())
    assert lengths_B.tolist() == [7, 3, 5]
    if name in ("gru", "lstm") and not bidirectional:
        for number, length in enumerate(lengths_B.tolist()):
            reference = {"gru": exact.gru, "lstm": exact.lstm}[name](
                alone.state_dict(), codes_BTD[number, :length].tolist()
            )
            assert states_BTH[number, :length].tolist() == reference


@pytest.mark.parametrize("name", CELLS)
def test_no_operation_of_a_covered_layer_is_on_floats_while_the_network_computes(name):
    trained, given = recogniser(name, True), batch(LENGTHS)
    converted = convert(trained, [given])
    expected, counted = of(converted, given), []
    for layer in converted.integer_layers().values():

        def watched(codes_BTD, lengths_B, honest=layer.forward):
            with IntegersOnly() as mode:
                states_BTH = honest(codes_BTD, lengths_B)
            counted.append(mode.operations)
            return states_BTH

        layer.forward = watched
    assert torch.equal(of(converted, given), expected)
    assert len(counted) == 2 and min(counted) > 20
    with pytest.raises(FloatOperationError), IntegersOnly():
        of(converted, given)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_a_padded_batch_equals_its_utterances_one_by_one(name, bidirectional):
    trained, given = recogniser(name, bidirectional), batch(LENGTHS)
    converted = convert(trained, [given])
    inputs_BTD, lengths_B, output_BTH = seen_by(stand_in(converted), converted, given)
    together_BTV, frames_B = converted(given.features_BTF, given.lengths_B)
    for number, length in enumerate(LENGTHS):
        frames = int(frames_B[number])
        one = slice(number, number + 1)
        alone_BTH = stand_in(converted)(inputs_BTD[one, :frames], lengths_B[one])
        assert torch.equal(alone_BTH, output_BTH[one, :frames])
        # The rounding of float parts depends on the shape of the batch; if it changes a code, the states differ by that code.
        alone_BTV, _ = converted(given.features_BTF[one, :length], given.lengths_B[one])
        torch.testing.assert_close(alone_BTV, together_BTV[one, :frames], rtol=0, atol=0.02)


@pytest.mark.parametrize(("build", "covered"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("name", ["gru", "lstm", "lmu"])
def test_the_certificate_lists_what_is_covered_and_what_stays_float(name, build, covered):
    trained, given = build(name), batch(LENGTHS)
    converted = convert(trained, [given])
    assert isinstance(converted, MixedNetwork)
    certificate = certify(converted, build(name))
    assert certificate.kind == "integer_only" and certificate.passed and certificate.checked > 40
    assert certificate.details["integer_layers"] == covered
    # Together the two lists cover the network, and no part is in both.
    held = [*covered, *certificate.details["float_parts"]]
    owners = [[part for part in held if key.startswith(f"{part}.")] for key in trained.state_dict()]
    assert {len(parts) for parts in owners} == {1}
    assert {parts[0] for parts in owners} == set(held)


def test_a_classifier_over_the_compact_encoder_stays_in_integers_as_a_whole():
    torch.manual_seed(1)
    trained = ClassificationNetwork(CompactEncoder(FEATURES, CELLS["gru"], False, 1, 0.1), 4, "mean", 0.1)
    assert isinstance(convert(trained, [batch(LENGTHS)]), IntegerNetwork)


def one_float_weight(layer):
    layer.input.product.weight = layer.input.product.weight.float()
    layer.input.product.weight[0, 0] += 0.5


def a_bias_that_overflows(layer):
    layer.input.product.bias[2] = 2**31 - 1


def a_shift_outside_the_rules(layer):
    layer.recurrent.requantization.shift[0] = 63


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (one_float_weight, r"takes a tensor of torch\.float32"),
        (a_bias_that_overflows, rf"the accumulator {BLOCK}\.input may reach"),
        (
            a_shift_outside_the_rules,
            r"blocks\.1\.recurrent\.layer\.recurrent\.requantization of the integer model contains",
        ),
    ],
)
def test_a_changed_weight_fails_the_certificate(change, expected):
    converted = convert(recogniser("gru"), [batch(LENGTHS)])
    change(stand_in(converted).layer)
    with pytest.raises(CertificateError, match=expected):
        certify(converted, recogniser("gru"))


def test_a_float_operation_or_a_float_layer_fails_the_certificate(monkeypatch):
    trained = recogniser("lstm")
    converted = convert(trained, [batch(LENGTHS)])
    layer = stand_in(converted).layer
    honest = layer.forward
    monkeypatch.setattr(layer, "forward", lambda codes, lengths: (honest(codes, lengths).float() + 1).to(torch.int16))
    with pytest.raises(CertificateError, match=r"takes the type torch\.float32"):
        certify(converted, trained)
    monkeypatch.undo()
    converted.network.encoder.blocks[0].recurrent = trained.encoder.blocks[0].recurrent
    with pytest.raises(CertificateError, match=r"compute in float: encoder\.blocks\.0\.recurrent"):
        certify(converted, trained)


@pytest.mark.parametrize("name", ["gru", "lstm", "lmu_tanh", "lmu_feedback"])
@pytest.mark.parametrize("kind", MIXED)
def test_the_packed_file_restores_the_same_mixed_network(tmp_path, kind, name):
    """The file contains the float parts too, but not the batch counters of normalisation layers."""
    trained, task, given = MIXED[kind][0](name), IntegerInference(10**6, True, 0, 5e-4, None), batch(LENGTHS)
    converted = convert(trained, [given])
    path = tmp_path / "model.packed"
    path.write_bytes(pack(converted.state_dict(), task.deployment.parts(converted)))
    blank = MIXED[kind][0](name)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.fill_(0.5)
    again = task.deployment.unpacked(blank, path)
    assert differing(again.state_dict(), converted.state_dict(), task.deployment.parts(converted)) == []
    packed = {name for part in task.deployment.parts(converted) for name in part.names}
    assert all(name.endswith("num_batches_tracked") for name in converted.state_dict().keys() - packed)
    assert torch.equal(of(again, given), of(converted, given))
    stored = task.deployment.stored(converted)
    assert stored.packed_bytes == path.stat().st_size == converted.model_bytes() + HEADER.size
    assert stored.packed_layer_bytes == stored.recurrent_layer_bytes


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm", "lmu", "lmu_tanh"])
def test_bytes_are_integers_and_float32_parts_together(name, bidirectional):
    trained = recogniser(name, bidirectional)
    converted = convert(trained, [batch(LENGTHS)])
    layers = trained.encoder.recurrent_layers
    sized = IntegerInference(10**6, True, 0, 5e-4, None)
    assert converted.recurrent_layer_bytes() == [sized.sizing.storage_of(layer).bytes for layer in layers]
    numbers = sum(value.numel() for value in trained.state_dict().values()) - sum(
        layer.size().numbers for layer in layers
    )
    inside = sum(
        x.numel() * x.element_size()
        for one in (0, 1)
        for x in stand_in(converted, BLOCK.replace("1", str(one))).buffers()
    )
    table = 0 if name == "lmu" else 2 * 257
    assert converted.model_bytes() == 4 * numbers + inside + table
    assert sized.deployment.stored(converted).model_bytes == converted.model_bytes()


def test_the_batches_that_a_normalisation_has_counted_are_not_bytes_of_the_model():
    converted = convert(compact_recogniser("gru"), [batch(LENGTHS)])
    assert converted.state_dict()["network.encoder.front.normalization.num_batches_tracked"].dtype == torch.int64
    held = sum(x.numel() * x.element_size() for x in converted.state_dict().values())
    assert converted.model_bytes() == held - 8 + 2 * 257


@pytest.mark.parametrize(("build", "covered"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("name", ["gru", "lstm", "lmu_feedback"])
def test_a_state_restores_the_same_network(name, build, covered):
    given, file = batch(LENGTHS), io.BytesIO()
    converted = convert(build(name), [given])
    torch.save(converted.state_dict(), file)
    file.seek(0)
    fresh = build(name)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter)
    again = from_state(fresh, torch.load(file, weights_only=True))
    assert torch.equal(of(again, given), of(converted, given))
    assert certify(again, fresh) == certify(converted, fresh)
    key = f"network.{covered[0]}.input_scale"
    for tampered, expected in (
        ({}, "the integer model lacks"),
        (
            converted.state_dict() | {key: torch.zeros_like(converted.state_dict()[key])},
            f"{key} of the integer model is not positive",
        ),
        (
            converted.state_dict() | {"network.output.bias": torch.zeros(3)},
            "network.output.bias of the integer model is",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            from_state(fresh, tampered)


def test_conversion_leaves_the_network_as_it_was_and_shares_nothing_with_it():
    trained, given = recogniser("lmu").train(), batch(LENGTHS)
    before = copy.deepcopy(trained.state_dict())
    converted = convert(trained, [given])
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert all(module.training for module in trained.modules())
    expected = of(converted, given)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    assert torch.equal(of(converted, given), expected) and not expected.requires_grad


def test_neither_moving_nor_autocast_changes_anything():
    given = batch(LENGTHS)
    converted = convert(recogniser("gru"), [given])
    expected = of(converted, given)
    moved = converted.half().to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        found = of(moved, given)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_conversion_needs_batches_and_finite_values():
    with pytest.raises(ValueError, match="at least one training batch"):
        convert(recogniser("gru"), [])
    diverged = recogniser("gru")
    diverged.encoder.blocks[0].recurrent_norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        convert(diverged, [batch(LENGTHS)])
