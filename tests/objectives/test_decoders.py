"""Decoders against brute force: the collapse of paths, and the search over all labels of tiny vocabularies."""

import itertools
import math
import sys
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.objectives.decoders import Beam, Greedy, TimedWord
from speech_exp.objectives.text import SYMBOLS, normalise_spaces, to_ids, to_text

EXHAUSTIVE = {"beam": 100_000, "threshold": 1e4}


def collapsed(path: list[int]) -> tuple[int, ...]:
    """Collapse a path by the definition: keep each symbol that is not blank and differs from the one before."""
    return tuple(now for before, now in zip([0, *path], path, strict=False) if now not in (0, before))


def logits_of(paths: list[list[int]], vocabulary: int) -> torch.Tensor:
    frames = max(map(len, paths))
    padded = torch.tensor([path + [vocabulary - 1] * (frames - len(path)) for path in paths])
    return torch.nn.functional.one_hot(padded, vocabulary).float()


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=4))
@settings(deadline=None)
def test_greedy_collapses_the_best_path_of_each_utterance_alone(paths):
    logits_BTV, lengths_B = logits_of(paths, 5), torch.tensor([len(path) for path in paths])
    expected = [list(collapsed(path)) for path in paths]
    assert Greedy().labels(logits_BTV, lengths_B) == expected
    assert Greedy().paths(logits_BTV, lengths_B) == paths
    assert Greedy().decode(logits_BTV, lengths_B) == [normalise_spaces(to_text(labels)) for labels in expected]


def path_of(text: str) -> list[int]:
    return [0 if one == "_" else to_ids(one)[0] for one in text]


@pytest.mark.parametrize("decoder", [Greedy(), Beam(beam=20)], ids=["greedy", "beam"])
def test_word_times_are_the_frames_of_their_letters(decoder):
    paths = [path_of("_ aa_b__  _ccc"), path_of("____"), path_of("a_ b_b ")]
    logits_BTV, lengths_B = 20 * logits_of(paths, len(SYMBOLS)), torch.tensor([14, 4, 7])
    assert decoder.word_times(logits_BTV, lengths_B) == [
        [TimedWord("ab", 2, 6), TimedWord("c", 11, 14)],
        [],
        [TimedWord("a", 0, 1), TimedWord("bb", 3, 6)],
    ]
    assert decoder.decode(logits_BTV, lengths_B) == ["ab c", "", "a bb"]


@pytest.mark.parametrize("decoder", [Greedy(), Beam(beam=20)], ids=["greedy", "beam"])
def test_padding_never_changes_a_text(decoder):
    logits_BTV, lengths_B = torch.randn(3, 12, 29, generator=torch.Generator().manual_seed(0)), torch.tensor([12, 0, 5])
    together = decoder.labels(logits_BTV, lengths_B)
    alone = [
        decoder.labels(logits_BTV[n : n + 1, :length], lengths_B[n : n + 1])[0] for n, length in enumerate((12, 0, 5))
    ]
    assert together == alone
    assert together[1] == []


def random_logits(seed: int, frames: int, vocabulary: int) -> torch.Tensor:
    return 1.5 * torch.randn(1, frames, vocabulary, generator=torch.Generator().manual_seed(seed))


def probabilities(logits_TV: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return the probability of every label sequence, summed over all its paths."""
    log_probabilities_TV = logits_TV.double().log_softmax(-1)
    found: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(logits_TV.shape[1]), repeat=len(logits_TV)):
        found[collapsed(list(path))] += math.exp(sum(log_probabilities_TV[t, n].item() for t, n in enumerate(path)))
    return found


@given(st.integers(0, 2**20), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_beam_of_all_prefixes_is_the_exact_search_over_all_labels(seed, frames):
    logits_1TV = random_logits(seed, frames, 3)
    exact = probabilities(logits_1TV[0])
    assert sum(exact.values()) == pytest.approx(1.0)
    (labels,) = Beam(**EXHAUSTIVE).labels(logits_1TV, torch.tensor([frames]))
    # flashlight adds float32 scores: if two label sequences are closer than their rounding, either may win
    assert exact[tuple(labels)] == pytest.approx(max(exact.values()), rel=1e-5)


def test_the_beam_sums_paths_where_greedy_takes_the_best():
    # Two frames of blank 0.6, a 0.4: the best path is empty (0.36), but "a" has three paths (0.16 + 0.24 + 0.24).
    logits_1TV = torch.tensor([[[0.6, 0.0, 0.4], [0.6, 0.0, 0.4]]]).clamp(min=1e-12).log()
    lengths_B = torch.tensor([2])
    assert Greedy().decode(logits_1TV, lengths_B) == [""]
    assert Beam(beam=10).decode(logits_1TV, lengths_B) == ["a"]


def test_fewer_symbols_a_frame_are_tried_where_asked():
    logits_1TV = torch.tensor([[[0.6, 0.0, 0.4], [0.6, 0.0, 0.4]]]).clamp(min=1e-12).log()
    assert Beam(beam=10, beam_symbols=1).decode(logits_1TV, torch.tensor([2])) == [""]


WORDS_ARPA = """\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.3
-0.8\t</s>
-0.5\tAB\t-0.2
-0.7\tb\t-0.1
-1.1\tbb\t-0.4

\\2-grams:
-0.2\t<s> AB
-0.4\tAB b
-0.3\tb </s>

\\end\\
"""
CHARACTERS_ARPA = """\\data\\
ngram 1=6
ngram 2=3

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.1
-0.9\t</s>
-0.4\t|\t-0.2
-0.5\ta\t-0.3
-0.8\tb\t-0.2

\\2-grams:
-0.1\ta b
-0.3\tb |
-0.2\t| a

\\end\\
"""


def log10_of(arpa: str, tokens: list[str]) -> float:
    """Score tokens with a bigram model: p(b | a) if listed, else the back-off weight of a times p(b) (Katz 1987)."""
    listed, backoff = {}, {}
    for fields in (line.split("\t") for line in arpa.splitlines() if line.startswith("-")):
        listed[tuple(fields[1].split())] = float(fields[0])
        backoff[fields[1]] = float(fields[2]) if len(fields) > 2 else 0.0
    sentence = ["<s>", *tokens, "</s>"]
    return sum(
        listed.get(pair) if pair in listed else backoff[pair[0]] + listed[(pair[1],)]
        for pair in itertools.pairwise(sentence)
    )


def file_of(folder, arpa: str) -> str:
    path = folder / "lm.arpa"
    path.write_text(arpa)
    return str(path)


@given(st.integers(0, 2**20), st.integers(1, 5), st.sampled_from([0.0, 0.7, 3.0]), st.sampled_from([-1.0, 0.0, 2.0]))
@settings(max_examples=20, deadline=None)
def test_with_a_language_model_of_words_the_search_is_exact_over_its_words(
    tmp_path_factory, seed, frames, weight, bonus
):
    lm = file_of(tmp_path_factory.mktemp("lm"), WORDS_ARPA)
    spelled = {"ab": "AB", "b": "b", "bb": "bb"}
    logits_1TV = random_logits(seed, frames, 4)
    texts: defaultdict[str, float] = defaultdict(float)
    for labels, probability in probabilities(logits_1TV[0]).items():
        texts[normalise_spaces(to_text(labels))] += probability
    exact = {
        text: math.log(probability)
        + weight * log10_of(WORDS_ARPA, [spelled[word] for word in text.split()])
        + bonus * len(text.split())
        for text, probability in texts.items()
        if set(text.split()) <= set(spelled)
    }
    beam = Beam(**EXHAUSTIVE, lm=lm, lm_weight=weight, word_score=bonus)
    (text,) = beam.decode(logits_1TV, torch.tensor([frames]))
    assert exact[text] == pytest.approx(max(exact.values()), abs=1e-4)


@given(st.integers(0, 2**20), st.integers(1, 4), st.sampled_from([0.0, 0.7, 3.0]))
@settings(max_examples=20, deadline=None)
def test_with_a_language_model_of_characters_the_search_is_exact_over_all_labels(
    tmp_path_factory, seed, frames, weight
):
    lm = file_of(tmp_path_factory.mktemp("lm"), CHARACTERS_ARPA)
    logits_1TV = random_logits(seed, frames, 4)
    exact = {
        labels: math.log(probability) + weight * log10_of(CHARACTERS_ARPA, ["_|ab"[symbol] for symbol in labels])
        for labels, probability in probabilities(logits_1TV[0]).items()
    }
    (labels,) = Beam(**EXHAUSTIVE, lm=lm, lm_weight=weight).labels(logits_1TV, torch.tensor([frames]))
    assert exact[tuple(labels)] == pytest.approx(max(exact.values()), abs=1e-4)


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path):
    lm = file_of(tmp_path, WORDS_ARPA)
    # The first frame is nearly a tie of a and b, the second is surely b: "bb" would need a blank, so the text is "ab" or "b".
    logits_1TV = torch.tensor([[[0.0, 0.0, 0.45, 0.55], [0.0, 0.0, 0.0, 1.0]]]).clamp(min=1e-9).log()
    lengths_B = torch.tensor([2])
    assert Beam(beam=10).decode(logits_1TV, lengths_B) == ["b"]
    assert Beam(beam=10, lm=lm, lm_weight=4.0).decode(logits_1TV, lengths_B) == ["ab"]
    words = tmp_path / "words.txt"
    words.write_text("b\nbb\n")
    assert Beam(beam=10, lm=lm, lexicon=str(words), lm_weight=4.0).decode(logits_1TV, lengths_B) == ["b"]


FORKED_ARPA = """\\data\\
ngram 1=7
ngram 2=1

\\1-grams:
-2.0\t<unk>
-99\t<s>\t0.0
-2.0\t</s>
-0.7\taa\t0.0
-0.7\tab\t0.0
-0.7\tac\t0.0
-0.5\tbb\t0.0

\\2-grams:
-2.0\taa </s>

\\end\\
"""


def test_a_narrow_beam_judges_a_prefix_by_the_best_word_that_it_may_become(tmp_path):
    """For the first letter the sound favours a over b, but the language model favours the word bb over each of aa, ab and ac.

    Without the words' scores, or with their sum, a beam of one would keep a.
    """
    rows = [[0.0, 0.0, 0.51, 0.49, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.33, 0.34, 0.33]]
    logits_1TV = torch.tensor([rows]).clamp(min=1e-9).log()
    lm = file_of(tmp_path, FORKED_ARPA)
    assert Beam(**EXHAUSTIVE, lm=lm, lm_weight=1.0).decode(logits_1TV, torch.tensor([3])) == ["bb"]
    assert Beam(beam=1, lm=lm, lm_weight=1.0).decode(logits_1TV, torch.tensor([3])) == ["bb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam": 1, "lm": "/none.arpa"}, "decoder.lm=/none.arpa: no such file"),
        ({"beam": 1, "word_score": 1.0}, "decoder.word_score was set without a language model"),
        ({"beam": 1, "lexicon": __file__}, "decoder.lexicon was set without a language model"),
        ({"beam": 1, "lm": __file__}, "not a complete language model in ARPA format"),
    ],
)
def test_what_the_beam_cannot_do_is_reported_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        Beam(**arguments)


def test_a_language_model_must_contain_words_and_be_readable(tmp_path):
    with pytest.raises(ValueError, match="is a language model of characters"):
        Beam(beam=1, lm=file_of(tmp_path, CHARACTERS_ARPA), word_score=1.0)
    with pytest.raises(ValueError, match="no word of letters a to z"):
        Beam(beam=1, lm=file_of(tmp_path, WORDS_ARPA.replace("AB", "42").replace("b", "7")))
    unlisted = Beam(beam=1, lm=file_of(tmp_path, WORDS_ARPA.replace("AB b", "AB x")))
    with pytest.raises(
        ValueError, match=r"lm\.arpa: KenLM cannot read it \(.*Word x was not seen.*\), change decoder\.lm$"
    ) as caught:
        unlisted.decode(torch.zeros(1, 2, 4), torch.tensor([2]))
    assert "\n" not in str(caught.value)


def test_a_lexicon_that_is_not_text_is_reported_in_one_sentence(tmp_path):
    words = tmp_path / "words.txt"
    words.write_bytes(b"\xff\xfe")
    with pytest.raises(
        ValueError, match=r"^decoder\.lexicon=.*words\.txt cannot be read as UTF-8 .*change decoder\.lexicon$"
    ):
        Beam(beam=1, lm=file_of(tmp_path, WORDS_ARPA), lexicon=str(words))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("words", [False, True])
def test_scores_that_are_not_finite_are_reported_in_one_sentence_and_padding_does_not_matter(tmp_path, value, words):
    beam = Beam(beam=5, lm=file_of(tmp_path, WORDS_ARPA) if words else None)
    logits_BTV, lengths_B = torch.zeros(2, 3, 4), torch.tensor([3, 2])
    logits_BTV[1, 2, 3] = value
    assert len(beam.decode(logits_BTV, lengths_B)) == 2
    logits_BTV[1, 1, 3] = value
    with pytest.raises(ValueError, match=r"NaN or infinite scores \(utterance 1 of the batch, frame 1\)"):
        beam.decode(logits_BTV, lengths_B)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(ValueError, match=r"pip install 'speech_exp\[asr\]' .*or set decoder=greedy"):
        Beam(beam=1)
