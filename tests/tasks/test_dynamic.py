"""Dynamic INT8 is close to the float network and smaller, and leaves that network unchanged."""

import copy

import pytest
import torch

from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.lmu import LMU
from speech_exp.models.recurrent import GRU, LSTM
from speech_exp.objectives.classification import Classification
from speech_exp.objectives.ctc import Ctc
from speech_exp.tasks.dynamic import dynamic_bytes, dynamic_int8

CELLS = {
    "gru": lambda width: GRU(width, 9),
    "lstm": lambda width: LSTM(width, 9),
    "lmu": lambda width: LMU(width, 9, 4, 6.0, 2),
    "lmu with feedback": lambda width: LMU(width, 9, 4, 6.0, 2, feedback=True),
}


def network(model, pooling="mean", bidirectional=False):
    torch.manual_seed(0)
    return Classification(pooling, 0.1, 0.1).network(CompactEncoder(5, CELLS[model], bidirectional, 1, 0.0), 10).eval()


@torch.no_grad()
@pytest.mark.parametrize("model", CELLS)
@pytest.mark.parametrize(("pooling", "bidirectional"), [("mean", False), ("last", True), ("attention", False)])
def test_logits_are_close_to_those_of_the_float_network(model, pooling, bidirectional):
    float_network = network(model, pooling, bidirectional)
    before = copy.deepcopy(float_network.state_dict())
    features_BTF, lengths_B = torch.randn(4, 12, 5), torch.tensor([12, 5, 7, 1])
    expected = float_network(features_BTF, lengths_B)
    found = dynamic_int8(float_network)(features_BTF, lengths_B)
    # 8 bits per weight: within a few hundredths of the logits' spread, yet different from the float network
    assert 0 < (found - expected).abs().max() < 0.1 * expected.std() + 0.02
    for name, tensor in float_network.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.no_grad()
@pytest.mark.parametrize("model", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recogniser_with_attention_is_close_too(model, bidirectional):
    torch.manual_seed(0)
    encoder = AsrEncoder(5, CELLS[model], bidirectional, 2, 0.1, 8, 2, "window", 2, 3, False)
    float_network = Ctc(0.0, 0.1, 0.0, "wer").network(encoder, 10).eval()
    features_BTF, lengths_B = torch.randn(4, 25, 5), torch.tensor([25, 9, 13, 1])
    expected_BTV, frames_B = float_network(features_BTF, lengths_B)
    quantised = dynamic_int8(float_network)
    found_BTV, found_frames_B = quantised(features_BTF, lengths_B)
    assert torch.equal(found_frames_B, frames_B)
    for found_TV, expected_TV, frames in zip(found_BTV, expected_BTV, frames_B.tolist(), strict=True):
        assert 0 < (found_TV - expected_TV)[:frames].abs().max() < 0.15 * expected_BTV.std() + 0.02
    for part in (quantised.encoder.blocks[1].attention.query_key_value, quantised.encoder.blocks[0].projection):
        assert part.weight().dtype == torch.qint8


def test_bytes_by_hand():
    # GRU 5 -> 9: matrices 3*9*5 + 3*9*9 = 378; linear 9 -> 10: 90. Biases 2*27 + 10 = 64. Three matrices with a scale.
    assert dynamic_bytes(network("gru")) == 378 + 90 + 4 * 64 + 8 * 3
    # LMU: matrices 2*5 + 9*5 + 9*8 = 127 and 90; biases 2 + 9 + 10; A and B 16 + 4, in float; four matrices.
    assert dynamic_bytes(network("lmu")) == 127 + 90 + 4 * (21 + 20) + 8 * 4
    # Attention of width 4: 16 * 3 and 16; downsampling: 3 * 5 * 4 in float and 16; GRU 4 -> 2: 24 and 12; projection 8;
    # output 4 * 6. Biases 12 + 4, 4 + 4, 12, 4 and 6; three norms with 8 numbers each; seven matrices.
    encoder = AsrEncoder(5, lambda width: GRU(width, 2), False, 1, 0.0, 4, 2, "full", 2, 3, False)
    recogniser = Ctc(0.0, 0.0, 0.0, "wer").network(encoder, 6)
    int8 = 48 + 16 + 16 + 24 + 12 + 8 + 24
    assert dynamic_bytes(recogniser) == int8 + 4 * (60 + 46 + 24) + 8 * 7
