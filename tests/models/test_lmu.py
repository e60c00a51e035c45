"""The LMU, parallel and original, against its equations; tolerances as in test_linear_memory."""

from __future__ import annotations

import copy

import pytest
import torch

from speech_exp.models.lmu import LMU

TOLERANCE = 1e-5  # of outputs bounded by one: float32 rounding through a few products and tanh, which does not amplify
FORMS = pytest.mark.parametrize("feedback", [False, True], ids=["parallel", "original"])


def make(feedback: bool, channels: int = 2, f: str = "linear") -> LMU:
    torch.manual_seed(0)
    layer = LMU(5, 7, order=6, theta=15.0, memory_channels=channels, feedback=feedback, input_activation=f)
    for parameter in layer.parameters():  # zero biases and e_m would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    if feedback:  # a strong e_m would make the memory grow without bound, and its rounding with it
        torch.nn.init.normal_(layer.signal_from_memory.weight, std=0.05)
    return layer


def batch(frames: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, frames, 5), torch.tensor([frames, 1, 17, frames - 1])


def reference(layer: LMU, inputs_TD: torch.Tensor) -> torch.Tensor:
    """Compute the equations of Chilkuri & Eliasmith (2021) for one utterance, frame by frame, in float64."""
    p = {name: value.double() for name, value in layer.named_parameters()}
    A_MM, B_M = layer.memory.tables.A_MM, layer.memory.tables.B_M
    h_H = torch.zeros(layer.hidden_size, dtype=torch.float64)
    m_CM = torch.zeros(layer.memory_channels, len(B_M), dtype=torch.float64)
    outputs = []
    for x_D in inputs_TD.double():
        u_C = p["signal_from_input.weight"] @ x_D
        if layer.feedback:
            u_C = u_C + p["signal_from_hidden.weight"] @ h_H + p["signal_from_memory.weight"] @ m_CM.flatten()
        else:
            u_C = layer.input_activation(u_C + p["signal_from_input.bias"])
        m_CM = torch.stack([A_MM @ m_M + B_M * u for m_M, u in zip(m_CM, u_C, strict=True)])
        a_H = p["hidden_from_memory.weight"] @ m_CM.flatten() + p["hidden_from_input.weight"] @ x_D
        a_H = a_H + p["hidden_from_hidden.weight"] @ h_H if layer.feedback else a_H + p["hidden_from_input.bias"]
        h_H = layer.activation(a_H)
        outputs.append(h_H)
    return torch.stack(outputs)


@FORMS
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_is_the_equations(feedback: bool, channels: int) -> None:
    layer = make(feedback, channels)
    inputs_BTD, lengths_B = batch()
    outputs_BTH = layer(inputs_BTD, lengths_B)
    for outputs_TH, inputs_TD, length in zip(outputs_BTH, inputs_BTD, lengths_B, strict=True):
        torch.testing.assert_close(
            outputs_TH[:length].double(), reference(layer, inputs_TD[:length]), rtol=0, atol=TOLERANCE
        )


@FORMS
def test_gradients_are_those_of_the_equations(feedback: bool) -> None:
    layer = make(feedback)
    inputs_BTD, _ = batch()
    upstream_TH = torch.randn(60, 7)
    actual = torch.autograd.grad(layer(inputs_BTD[:1], torch.tensor([60]))[0], list(layer.parameters()), upstream_TH)
    double = copy.deepcopy(layer).double()
    expected = torch.autograd.grad(reference(double, inputs_BTD[0]), list(double.parameters()), upstream_TH.double())
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@FORMS
@pytest.mark.parametrize("filler", [1e3, float("nan")])
def test_padded_batch_equals_one_by_one(feedback: bool, filler: float) -> None:
    layer = make(feedback)
    inputs_BTD, lengths_B = batch()
    for inputs_TD, length in zip(inputs_BTD, lengths_B, strict=True):
        inputs_TD[length:] = filler
    outputs_BTH, final_BH = layer(inputs_BTD, lengths_B), layer.final(inputs_BTD, lengths_B)
    for i, length in enumerate(lengths_B):
        alone_TH = layer(inputs_BTD[i : i + 1, :length], length.view(1))[0]
        torch.testing.assert_close(outputs_BTH[i, :length], alone_TH, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(final_BH[i], alone_TH[-1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("algorithm", ["fft", "chunked", "sequential"])
def test_a_signal_is_silent_in_the_padding_whatever_the_padding_holds(algorithm: str) -> None:
    """A NaN in the padding must not reach valid frames: block products and transforms would spread it, even with a factor of 0."""
    layer = make(feedback=False)
    layer.memory.algorithm = algorithm
    inputs_BTD, lengths_B = batch(200)
    alone = [layer(inputs_BTD[i : i + 1, :length], length.view(1))[0] for i, length in enumerate(lengths_B)]
    for inputs_TD, length in zip(inputs_BTD, lengths_B, strict=True):
        inputs_TD[length:] = float("nan")
    assert layer._signal(inputs_BTD, lengths_B).isfinite().all()
    outputs_BTH = layer(inputs_BTD, lengths_B)
    for outputs_TH, alone_TH, length in zip(outputs_BTH, alone, lengths_B, strict=True):
        torch.testing.assert_close(outputs_TH[:length], alone_TH, rtol=0, atol=TOLERANCE)


def test_initial_weights_are_those_of_voelker_et_al() -> None:
    """Encoders are LeCun uniform (within ±sqrt(3 / fan-in), variance 1 / fan-in), e_m is zero, kernels are Xavier normal."""
    torch.manual_seed(0)
    layer = LMU(300, 200, order=4, theta=8.0, memory_channels=150, feedback=True)
    for encoder, fan_in in ((layer.signal_from_input, 300), (layer.signal_from_hidden, 200)):
        bound = (3 / fan_in) ** 0.5
        assert 0.999 * bound < encoder.weight.abs().max() <= bound
        assert encoder.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    assert not layer.signal_from_memory.weight.any()
    for kernel in (layer.hidden_from_input, layer.hidden_from_hidden, layer.hidden_from_memory):
        std = (2 / sum(kernel.weight.shape)) ** 0.5
        assert kernel.weight.std().item() == pytest.approx(std, rel=0.02)
        assert kernel.weight.abs().max() > 3.5 * std  # beyond any uniform distribution
    parallel = LMU(300, 200, order=4, theta=8.0, memory_channels=150)
    assert parallel.signal_from_input.weight.abs().max() <= 0.1
    assert not parallel.signal_from_input.bias.any() and not parallel.hidden_from_input.bias.any()


@FORMS
def test_final_is_forward_at_the_last_frame(feedback: bool) -> None:
    layer = make(feedback)
    inputs_BTD, lengths_B = batch()
    expected_BH = layer(inputs_BTD, lengths_B)[torch.arange(4), lengths_B - 1]
    torch.testing.assert_close(layer.final(inputs_BTD, lengths_B), expected_BH, rtol=0, atol=TOLERANCE)


@FORMS
def test_steps_equal_the_sequence(feedback: bool) -> None:
    layer = make(feedback, f="linear" if feedback else "tanh")
    inputs_BTD, _ = batch()
    expected_BTH = layer(inputs_BTD, torch.full((4,), 60))
    state = layer.initial_state(4, like=inputs_BTD)
    for frame, inputs_BD in enumerate(inputs_BTD.unbind(1)):
        output_BH, state = layer.step(inputs_BD, state)
        torch.testing.assert_close(output_BH, expected_BTH[:, frame], rtol=0, atol=TOLERANCE)


@FORMS
def test_half_precision_and_copies(feedback: bool) -> None:
    layer = make(feedback)
    inputs_BTD, lengths_B = batch()
    outputs_BTH = layer(inputs_BTD, lengths_B)
    with torch.autocast("cpu", torch.bfloat16):
        half_BTH = layer(inputs_BTD, lengths_B)
    assert (half_BTH[0] - outputs_BTH[0]).abs().max() < 0.03  # a few roundings of 2^-9 on pre-activations up to 5
    other = LMU(5, 7, order=6, theta=15.0, memory_channels=2, feedback=feedback)
    other.load_state_dict(layer.state_dict())
    for copied in (copy.deepcopy(layer), other):
        assert torch.equal(copied(inputs_BTD, lengths_B)[0], outputs_BTH[0])


def test_parallel_size_by_hand() -> None:
    size = LMU(20, 40, order=8, theta=30.0, memory_channels=2).size()
    # 2 encoders of 20 + bias; 40 outputs of 16 memories, 20 inputs, bias; A 8 x 8 and B 8
    assert (size.parameters, size.fixed, size.bytes()) == (2 * 21 + 40 * (16 + 20 + 1), 72, 4 * (42 + 1480 + 72))


def test_original_size_by_hand() -> None:
    size = LMU(20, 40, order=8, theta=30.0, feedback=True).size()
    # e_x 20, e_h 40, e_m 8; W_x 40 x 20, W_h 40 x 40, W_m 40 x 8; A and B
    assert (size.parameters, size.fixed) == (20 + 40 + 8 + 800 + 1600 + 320, 72)


@FORMS
def test_size_counts_what_the_module_holds(feedback: bool) -> None:
    layer = make(feedback)
    assert layer.size().parameters == sum(parameter.numel() for parameter in layer.parameters())
    assert layer.size().fixed == sum(buffer.numel() for buffer in layer.buffers())
    assert layer.window_frames() == 15.0
