"""Self-attention against its equation, with positions and window."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.models.attention import (
    BLOCKS_FROM_WINDOWS,
    SelfAttention,
    band_mask,
    plan_attention,
    rotary_tables,
    rotate,
)

# float64 leaves rounding of about 1e-16 an operation, a few hundred operations a value, values of order one.
TOLERANCE = 1e-12
WIDTH, HEADS = 12, 2
LENGTHS = [7, 1, 40, 23]


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(WIDTH, HEADS).double()


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(len(lengths), max(lengths), WIDTH, dtype=torch.float64), torch.tensor(lengths)


def attend(layer: SelfAttention, inputs_BTW: torch.Tensor, lengths_B: torch.Tensor, window: int | None) -> torch.Tensor:
    plan = plan_attention(lengths_B, inputs_BTW.shape[1], WIDTH // HEADS, window, inputs_BTW)
    return layer(inputs_BTW, plan)


def plain(layer: SelfAttention, inputs_TW: torch.Tensor, window: int | None) -> torch.Tensor:
    """Compute one unpadded utterance pair by pair: softmax(q k' / sqrt(D)) v for each head, rotations as complex numbers."""
    frames, size = len(inputs_TW), WIDTH // HEADS
    q_TW, k_TW, v_TW = layer.query_key_value(inputs_TW).chunk(3, -1)
    angle_TP = torch.arange(frames).double().unsqueeze(1) * 10000.0 ** (-torch.arange(0, size, 2).double() / size)
    turn_TP = torch.polar(torch.ones_like(angle_TP), angle_TP)
    heads = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        q_TP, k_TP = (torch.complex(*x[:, own].contiguous().chunk(2, -1)) * turn_TP for x in (q_TW, k_TW))
        score_TT = (q_TP @ k_TP.conj().T).real / size**0.5
        if window is not None:
            far_TT = (torch.arange(frames).unsqueeze(1) - torch.arange(frames)).abs() > window
            score_TT = score_TT.masked_fill(far_TT, -torch.inf)
        weight_TT = score_TT.exp() / score_TT.exp().sum(1, keepdim=True)
        heads.append(weight_TT @ v_TW[:, own])
    return layer.output(torch.cat(heads, -1))


# 1, 3 and 4 run in blocks (more than eight windows in 40 frames; 3 does not divide them), 10 and 100 as one band.
@pytest.mark.parametrize("window", [None, 1, 3, 4, 10, 100])
def test_a_padded_batch_is_the_plain_softmax_of_each_utterance(window):
    layer = attention()
    inputs_BTW, lengths_B = padded(LENGTHS)
    outputs_BTW = attend(layer, inputs_BTW, lengths_B, window)
    assert outputs_BTW.shape == inputs_BTW.shape
    assert outputs_BTW.isfinite().all()
    for number, length in enumerate(LENGTHS):
        expected_TW = plain(layer, inputs_BTW[number, :length], window)
        torch.testing.assert_close(outputs_BTW[number, :length], expected_TW, rtol=0, atol=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), window=st.integers(1, 6))
def test_a_window_in_blocks_is_full_attention_with_a_band_mask(lengths, window):
    """Both forms agree in outputs and gradients, even in the padding."""
    layer = attention()
    inputs_BTW, lengths_B = padded(lengths)
    weights_BTW = torch.randn_like(inputs_BTW)
    full = plan_attention(lengths_B, inputs_BTW.shape[1], WIDTH // HEADS, None, inputs_BTW)
    banded = full._replace(mask=band_mask(lengths_B, inputs_BTW.shape[1], window))
    windowed = plan_attention(lengths_B, inputs_BTW.shape[1], WIDTH // HEADS, window, inputs_BTW)
    assert windowed.block_frames == (window if max(lengths) > BLOCKS_FROM_WINDOWS * window else 0)
    results = []
    for plan in (banded, windowed):
        leaf_BTW = inputs_BTW.clone().requires_grad_()
        outputs_BTW = layer(leaf_BTW, plan)
        results.append((outputs_BTW, *torch.autograd.grad((outputs_BTW * weights_BTW).sum(), leaf_BTW)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("window", [2, 15])
def test_frames_beyond_the_window_have_no_influence_and_those_at_its_edge_have(window):
    layer = attention()
    inputs_BTW, lengths_B = padded([40])
    frame = 19
    outputs_BTW = attend(layer, inputs_BTW, lengths_B, window)
    for other in range(40):
        changed_BTW = inputs_BTW.clone()
        changed_BTW[0, other] += 5
        same = torch.equal(attend(layer, changed_BTW, lengths_B, window)[0, frame], outputs_BTW[0, frame])
        assert same == (abs(other - frame) > window)


def test_scores_depend_on_the_distance_alone():
    torch.manual_seed(2)
    cos_TD, sin_TD = rotary_tables(50, 8, torch.zeros(1, dtype=torch.float64))
    q_D, k_D = torch.randn(2, 8, dtype=torch.float64)
    q_TD, k_TD = (rotate(x_D.expand(1, 50, 1, 8), cos_TD, sin_TD)[0, :, 0] for x_D in (q_D, k_D))
    score_TT = q_TD @ k_TD.T
    for distance in range(-49, 50):
        diagonal = score_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(score_TT[0, 0], q_D @ k_D, rtol=0, atol=TOLERANCE)  # at distance 0 nothing is rotated
    assert (score_TT[0] - score_TT[0, 0]).abs()[1:].min() > 1e-3  # elsewhere it is rotated
    torch.testing.assert_close(q_TD.norm(dim=1), q_D.norm().expand(50), rtol=0, atol=TOLERANCE)


def test_attention_is_the_same_wherever_an_utterance_stands():
    """Positions are relative: frames after a masked silence give the same outputs as on their own."""
    layer = attention()
    inputs_BTW, lengths_B = padded([9])
    later_BTW = torch.cat([torch.zeros(1, 5, WIDTH, dtype=torch.float64), inputs_BTW], 1)
    plan = plan_attention(torch.tensor([14]), 14, WIDTH // HEADS, None, later_BTW)
    hidden = plan._replace(mask=(torch.arange(14) >= 5).view(1, 1, 1, 14))
    torch.testing.assert_close(
        layer(later_BTW, hidden)[:, 5:], attend(layer, inputs_BTW, lengths_B, None), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("window", [None, 3, 20])
def test_padding_gets_no_gradient(window):
    layer = attention()
    inputs_BTW, lengths_B = padded(LENGTHS)
    inputs_BTW.requires_grad_()
    heard_BT1 = (torch.arange(40) < lengths_B.unsqueeze(1)).unsqueeze(2)
    loss = (attend(layer, inputs_BTW, lengths_B, window) * heard_BT1).square().sum()
    (gradient_BTW,) = torch.autograd.grad(loss, inputs_BTW)
    assert gradient_BTW.isfinite().all()
    assert (gradient_BTW * ~heard_BT1 == 0).all()
    assert (gradient_BTW.abs().sum(2)[heard_BT1.squeeze(2)] > 0).all()


@pytest.mark.parametrize("window", [None, 3, 20])
def test_attention_compiles_as_one_graph_and_runs_in_bf16(window):
    layer = attention().float()
    inputs_BTW, lengths_B = padded(LENGTHS)
    inputs_BTW = inputs_BTW.float()
    expected_BTW = attend(layer, inputs_BTW, lengths_B, window)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    # The same operations in the same order, except for fused ones: a few float32 roundings.
    torch.testing.assert_close(compiled(layer, inputs_BTW, lengths_B, window), expected_BTW, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        half_BTW = attend(layer, inputs_BTW, lengths_B, window)
    assert half_BTW.dtype == torch.bfloat16
    # Outputs are means of values of order one: rounding of 2^-8 in input, weight, score and output each.
    heard_BT = torch.arange(40) < lengths_B.unsqueeze(1)
    torch.testing.assert_close(half_BTW.float()[heard_BT], expected_BTW[heard_BT], rtol=0, atol=4 * 2**-8)
