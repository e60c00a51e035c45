"""GRU and LSTM layers in one and two directions, against torch.nn and their step-by-step form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.fused_gru import fused_gru
from speech_exp.models.layer import Bidirectional, RecurrentLayer, frame_at, reverse_by_length
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM

CELLS = {
    "gru": lambda width: GRU(width, 6),
    "lstm": lambda width: LSTM(width, 6),
    "lmu": lambda width: LMU(width, 6, order=4, theta=8, memory_channels=2),
    "lmu_feedback": lambda width: LMU(width, 6, order=4, theta=8, feedback=True),
}
# float64 leaves rounding of about 1e-15 an operation and a few hundred operations a value.
TOLERANCE = 1e-12


def layers(name: str, both: bool) -> RecurrentLayer:
    torch.manual_seed(1)
    cell = CELLS[name]
    return (Bidirectional(cell(3), cell(3)) if both else cell(3)).double()


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return utterances of these lengths, padded with noise."""
    torch.manual_seed(2)
    return torch.randn(len(lengths), max(lengths), 3, dtype=torch.float64), torch.tensor(lengths)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("training", [False, True])
def test_a_padded_batch_equals_its_utterances_one_by_one(name, both, training):
    layer = layers(name, both).train(training)
    inputs_BTD, lengths_B = padded([5, 1, 9, 3])
    outputs_BTH, final_BH = layer(inputs_BTD, lengths_B), layer.final(inputs_BTD, lengths_B)
    for number, length in enumerate(lengths_B.tolist()):
        alone = inputs_BTD[number : number + 1, :length]
        torch.testing.assert_close(
            outputs_BTH[number, :length], layer(alone, lengths_B[number : number + 1])[0], rtol=0, atol=TOLERANCE
        )
        torch.testing.assert_close(
            final_BH[number], layer.final(alone, lengths_B[number : number + 1])[0], rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("name", CELLS)
def test_streaming_equals_the_sequence_form(name):
    layer = layers(name, both=False)
    inputs_BTD, lengths_B = padded([7, 7])
    state = layer.initial_state(2, inputs_BTD)
    steps = []
    for frame in inputs_BTD.unbind(1):
        output_BH, state = layer.step(frame, state)
        steps.append(output_BH)
    torch.testing.assert_close(torch.stack(steps, 1), layer(inputs_BTD, lengths_B), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CELLS)
def test_final_is_the_last_valid_output_of_each_direction(name):
    layer = layers(name, both=True)
    inputs_BTD, lengths_B = padded([5, 8])
    outputs_BTH = layer(inputs_BTD, lengths_B)
    expected_BH = torch.cat([frame_at(outputs_BTH, lengths_B - 1)[:, :6], outputs_BTH[:, 0, 6:]], dim=1)
    torch.testing.assert_close(layer.final(inputs_BTD, lengths_B), expected_BH, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("module", [torch.nn.GRU, torch.nn.LSTM])
def test_two_directions_equal_torch_with_packed_sequences(module):
    torch.manual_seed(0)
    reference = module(3, 6, batch_first=True, bidirectional=True).double()
    cell = GRU if module is torch.nn.GRU else LSTM
    layer = Bidirectional(cell(3, 6), cell(3, 6)).double()
    for direction, suffix in ((layer.forward_layer, ""), (layer.backward_layer, "_reverse")):
        for name, parameter in direction.cell.named_parameters():
            parameter.data.copy_(getattr(reference, name + suffix))
    inputs_BTD, lengths_B = padded([4, 9, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs_BTD, lengths_B, batch_first=True, enforce_sorted=False)
    expected_BTH, _ = torch.nn.utils.rnn.pad_packed_sequence(reference(packed)[0], batch_first=True)
    valid_BT1 = (torch.arange(9) < lengths_B.unsqueeze(1)).unsqueeze(-1)
    torch.testing.assert_close(layer(inputs_BTD, lengths_B) * valid_BT1, expected_BTH, rtol=0, atol=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(
    directions=st.integers(1, 3),
    batch=st.integers(1, 4),
    frames=st.integers(1, 9),
    width=st.integers(1, 5),
    hidden=st.integers(1, 7),
)
def test_the_fused_gru_has_the_values_and_gradients_of_torch(directions, batch, frames, width, hidden):
    torch.manual_seed(directions + 10 * frames)
    cells = [torch.nn.GRU(width, hidden, batch_first=True).double() for _ in range(directions)]
    inputs = torch.randn(directions, batch, frames, width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(directions, batch, frames, hidden, dtype=torch.float64)
    leaves = [inputs, *(parameter for cell in cells for parameter in cell.parameters())]
    fused = fused_gru(cells, inputs)
    plain = torch.stack([cell(one)[0] for cell, one in zip(cells, inputs, strict=True)])
    torch.testing.assert_close(fused, plain, rtol=0, atol=TOLERANCE)
    fused_gradients = torch.autograd.grad((fused * weights).sum(), leaves)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), leaves)
    for one, other in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=TOLERANCE)


@pytest.mark.parametrize("both", [False, True])
def test_a_gru_gives_the_same_in_training_as_in_evaluation(both):
    layer = layers("gru", both)
    inputs_BTD, lengths_B = padded([5, 6])
    trained = layer.train()(inputs_BTD, lengths_B)
    torch.testing.assert_close(trained, layer.eval()(inputs_BTD, lengths_B), rtol=0, atol=TOLERANCE)
    assert trained.grad_fn is not None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_reversing_by_length_is_its_own_inverse_and_keeps_padding_behind(lengths):
    inputs_BTD, lengths_B = padded(lengths)
    reversed_BTD = reverse_by_length(inputs_BTD, lengths_B)
    assert torch.equal(reverse_by_length(reversed_BTD, lengths_B), inputs_BTD)
    for number, length in enumerate(lengths):
        assert torch.equal(reversed_BTD[number, :length], inputs_BTD[number, :length].flip(0))
        assert torch.equal(reversed_BTD[number, length:], inputs_BTD[number, length:])


@pytest.mark.parametrize(("width", "hidden"), [(20, 45), (39, 38), (1, 1)])
def test_sizes_are_those_of_the_formulas(width, hidden):
    assert GRU(width, hidden).size().numbers == 3 * hidden * (width + hidden + 2)
    assert LSTM(width, hidden).size().numbers == 4 * hidden * (width + hidden + 2)
    two = Bidirectional(GRU(width, hidden), GRU(width, hidden))
    assert two.size().bytes() == 2 * GRU(width, hidden).size().bytes() == 4 * sum(p.numel() for p in two.parameters())


def test_two_directions_cannot_stream():
    layer = layers("gru", both=True)
    with pytest.raises(ValueError, match=r"set model\.bidirectional=false"):
        layer.initial_state(1, torch.zeros(1))
    with pytest.raises(ValueError, match=r"set model\.bidirectional=false"):
        layer.step(torch.zeros(1, 3), ())


@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_front_is_padding_proof(training):
    """This holds in training too: batch statistics are computed from the valid frames only."""
    torch.manual_seed(4)
    encoder = CompactEncoder(3, CELLS["gru"], True, 1, 0.0, front_channels=5, front_width=3).double().train(training)
    inputs_BTF, lengths_B = padded([4, 7, 1])
    longer_BTF = torch.cat([inputs_BTF, torch.randn(3, 6, 3, dtype=torch.float64)], dim=1)
    states_BTH, more_BTH = encoder(inputs_BTF, lengths_B)[0], encoder(longer_BTF, lengths_B)[0]
    for number, length in enumerate(lengths_B.tolist()):
        torch.testing.assert_close(states_BTH[number, :length], more_BTH[number, :length], rtol=0, atol=TOLERANCE)
        if not training:
            alone_BTH = encoder(inputs_BTF[number : number + 1, :length], lengths_B[number : number + 1])[0]
            torch.testing.assert_close(states_BTH[number, :length], alone_BTH[0], rtol=0, atol=TOLERANCE)


def test_a_convolution_front_cannot_stream():
    encoder = CompactEncoder(3, CELLS["gru"], False, 1, 0.0, front_channels=5)
    with pytest.raises(ValueError, match=r"set encoder\.front_channels=0"):
        encoder.initial_state(1, torch.zeros(1))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_an_encoder_of_two_layers_is_padding_proof_and_streams_where_it_can(name, both):
    torch.manual_seed(3)
    encoder = CompactEncoder(3, CELLS[name], both, num_layers=2, dropout=0.0).double()
    assert encoder.output_size == (12 if both else 6)
    inputs_BTF, lengths_B = padded([4, 7])
    states_BTH, returned_B = encoder(inputs_BTF, lengths_B)
    assert torch.equal(returned_B, lengths_B)
    alone_BTH, _ = encoder(inputs_BTF[:1, :4], lengths_B[:1])
    torch.testing.assert_close(states_BTH[0, :4], alone_BTH[0], rtol=0, atol=TOLERANCE)
    if both:
        return
    states = encoder.initial_state(2, inputs_BTF)
    for frame in inputs_BTF.unbind(1):
        output_BH, states = encoder.step(frame, states)
    torch.testing.assert_close(output_BH[1], states_BTH[1, 6], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(encoder.final(inputs_BTF, lengths_B)[1], output_BH[1], rtol=0, atol=TOLERANCE)


def test_the_window_of_an_encoder_adds_up_over_layers():
    assert CompactEncoder(3, CELLS["lmu"], False, 2, 0.0).window_frames() == 16
    assert CompactEncoder(3, CELLS["gru"], False, 2, 0.0).window_frames() is None
