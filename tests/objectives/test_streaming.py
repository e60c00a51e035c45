"""Streamed words equal those of the network and decoder over the whole utterance."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.models.asr_encoder import AsrEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.ctc import CtcNetwork
from speech_exp.objectives.decoders import Greedy, TimedWord
from speech_exp.objectives.streaming import GreedyStream
from speech_exp.objectives.text import SYMBOLS, to_ids


def one_hot(path: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(path, dtype=torch.int64), len(SYMBOLS)).float()


@given(st.lists(st.integers(0, 4), max_size=30))
def test_the_words_are_those_of_the_whole_path_with_their_times(path):
    stream = GreedyStream()
    found = [word for logits_V in one_hot(path) for word in stream.push(logits_V)] + stream.finish()
    (expected,) = Greedy().word_times(one_hot(path).unsqueeze(0), torch.tensor([len(path)]))
    assert found == expected
    assert stream.finish() == []


def test_a_word_is_given_with_the_space_behind_it_and_the_last_at_the_end():
    path = [0 if symbol == "_" else to_ids(symbol)[0] for symbol in "_hh_i__ _ _y_o"]
    stream = GreedyStream()
    given_at = {frame: words for frame, logits_V in enumerate(one_hot(path)) if (words := stream.push(logits_V))}
    assert given_at == {7: [TimedWord("hi", 1, 5)]}
    assert stream.finish() == [TimedWord("yo", 11, 14)]


def test_the_network_gives_the_logits_of_the_whole_at_every_downsampled_frame():
    torch.manual_seed(0)
    encoder = AsrEncoder(3, lambda size: GRU(size, 6), False, 2, 0.0, 8, 4, "off", 2, 2, False)
    network = CtcNetwork(encoder, len(SYMBOLS), 0.0, 0.0).eval()
    features_BTF = torch.randn(2, 11, 3)
    logits_BTV, _ = network(features_BTF, torch.tensor([11, 11]))
    state, found = network.initial_state(2, features_BTF), []
    for features_BF in features_BTF.unbind(1):
        logits_BV, state = network.step(features_BF, state)
        found.append(logits_BV)
    assert [frame for frame, logits_BV in enumerate(found) if logits_BV is not None] == [0, 4, 8]
    # float32 sums in another order
    torch.testing.assert_close(torch.stack(found[::4], 1), logits_BTV, atol=1e-5, rtol=0)
