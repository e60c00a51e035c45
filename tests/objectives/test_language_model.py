"""Kneser-Ney models against the definition, through an independent reader of ARPA text, and against KenLM."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_exp.objectives.language_model import FALLBACK_DISCOUNTS, LanguageModel, estimate

SENTENCES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "dd", "e"]), min_size=1, max_size=7), min_size=1, max_size=40
)
ENGLISH = """the cat sat on the mat
the dog sat on the cat
a cat saw the dog on a mat
the cat saw a bird
a bird sat on the dog and the dog saw the bird
the mat
on the mat the cat sat and on the mat the dog sat
a dog and a cat and a bird sat
the bird saw the mat
the cat sat on the bird""".splitlines()
TINY = ["a b a", "a b"]


class Arpa:
    """An independent reader of ARPA text with its back-off rule (Katz 1987); shares nothing with the code under test."""

    def __init__(self, text: str) -> None:
        self.listed, self.weight, self.stated = {}, {}, {}
        for line in text.splitlines():
            if line.startswith("ngram "):
                order, _, count = line.removeprefix("ngram ").partition("=")
                self.stated[int(order)] = int(count)
            elif "\t" in line:
                value, words, *weight = line.split("\t")
                gram = tuple(words.split(" "))
                self.listed[gram] = float(value)
                self.weight[gram] = float(weight[0]) if weight else 0.0
        self.order = max(map(len, self.listed))
        self.vocabulary = {gram[0] for gram in self.listed if len(gram) == 1}

    def log10(self, word: str, context: tuple[str, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        gram = (*context, word)
        if gram in self.listed:
            return self.listed[gram]
        return self.weight.get(context, 0.0) + self.log10(word, context[1:])

    def sentence(self, words: list[str]) -> float:
        marked = ["<s>", *(word if word in self.vocabulary else "<unk>" for word in words), "</s>"]
        return sum(self.log10(marked[n], tuple(marked[:n])) for n in range(1, len(marked)))


def arpa(model: LanguageModel) -> Arpa:
    return Arpa("".join(model.arpa()))


def text_of(sentences: list[list[str]]) -> list[str]:
    return [" ".join(words) for words in sentences]


@given(SENTENCES, st.integers(2, 4))
@settings(max_examples=50)
def test_behind_every_context_the_probabilities_of_the_vocabulary_sum_to_one(sentences, order):
    if max(map(len, sentences)) < order - 2:
        return
    read = arpa(estimate(text_of(sentences), order))
    assert read.stated == {n: sum(len(gram) == n for gram in read.listed) for n in range(1, order + 1)}
    words = sorted(read.vocabulary - {"<s>"})
    assert {"</s>", "<unk>"} <= set(words)
    histories = [h for n in range(order) for h in itertools.product([w for w in words if w != "</s>"], repeat=n)]
    histories += [("<s>", *history) for history in histories if len(history) < order - 1]
    for history in histories:
        total = sum(10 ** read.log10(word, history) for word in words)
        assert total == pytest.approx(1.0, abs=1e-5), history


def test_a_tiny_model_is_as_calculated_by_hand():
    # Bigrams: <s> a 2, a b 2, b a 1, a </s> 1, b </s> 1; their first words' totals: <s> 2, a 3, b 2.
    # Words adjusted: a follows <s> and b: 2, b follows a: 1, </s> follows a and b: 2; together 5.
    # No count of 3 at either order, so the discounts are 0.5, 1 and 1.5. The vocabulary is a, b, </s>, <unk>.
    assert FALLBACK_DISCOUNTS == (0.5, 1.0, 1.5)
    share = (1 + 0.5 + 1) / 5
    p = {"a": 1 / 5 + share / 4, "b": 0.5 / 5 + share / 4, "</s>": 1 / 5 + share / 4, "<unk>": share / 4}
    left_a = (1 + 0.5) / 3
    read = arpa(estimate(TINY, 2))
    for word, value in p.items():
        assert 10 ** read.log10(word, ()) == pytest.approx(value, abs=1e-6)
    assert 10 ** read.log10("b", ("a",)) == pytest.approx((2 - 1) / 3 + left_a * p["b"], abs=1e-6)
    assert 10 ** read.log10("</s>", ("a",)) == pytest.approx((1 - 0.5) / 3 + left_a * p["</s>"], abs=1e-6)
    assert 10 ** read.log10("a", ("a",)) == pytest.approx(left_a * p["a"], abs=1e-6)
    assert 10 ** read.log10("a", ("<s>",)) == pytest.approx((2 - 1) / 2 + 1 / 2 * p["a"], abs=1e-6)
    assert len(read.listed) == 5 + 5


def test_discounts_follow_the_counts_of_counts():
    # One context with successors of counts 1 x4, 2 x2, 3 x1, 4 x1 (15 in all): n = 4, 2, 1, 1 and Y = 1/2, so that
    # D1 = 1 - 2/2 * 2/4 = 0.5, D2 = 2 - 3/2 * 1/2 = 1.25, D3 = 3 - 4/2 * 1 = 1. The bigrams `w </s>` have the same counts.
    counts = dict(zip("abcdefgh", (1, 1, 1, 1, 2, 2, 3, 4), strict=True))
    model = estimate([word for word, count in counts.items() for _ in range(count)], 2)
    # Both sets together: n = 8, 4, 2, 2 and the same Y and discounts.
    left = (4 * 0.5 + 2 * 1.25 + 2 * 1.0) / 15
    assert 10 ** model.backoff[("<s>",)] == pytest.approx(left)
    assert 10 ** model.backoff[("h",)] == pytest.approx(1.0 / 4)
    lower = 10 ** model.log10[0][("h",)]
    assert 10 ** model.log10[1][("<s>", "h")] == pytest.approx((4 - 1) / 15 + left * lower)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_kenlm_and_the_independent_reader_score_alike(tmp_path, order):
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    model = estimate(ENGLISH, order)
    path = tmp_path / "lm.arpa"
    path.write_text("".join(model.arpa()))
    names = [*model.words, "<unk>"]
    kenlm, read = KenLM(str(path), Dictionary(names)), Arpa(path.read_text())
    for sentence in (*ENGLISH, "bird bird bird", "on", "the zebra sat on the mat"):
        words, state, total = sentence.split(), kenlm.start(False), 0.0
        for word in words:
            state, score = kenlm.score(state, names.index(word if word in names else "<unk>"))
            total += score
        total += kenlm.finish(state)[1]
        assert total == pytest.approx(read.sentence(words), abs=1e-4)
        perplexity = model.perplexity([sentence])
        assert math.log10(perplexity.value) * (len(words) + 1) == pytest.approx(-total, abs=1e-4)
        assert (perplexity.words, perplexity.unknown) == (len(words), words.count("zebra"))


def test_longer_n_grams_predict_text_of_the_same_kind_better_than_words_alone():
    held_out = ["the dog sat on the mat", "a cat saw the bird", "the cat sat on a mat"]
    tokens = [token for sentence in ENGLISH for token in (*sentence.split(), "</s>")]
    asked = [token for sentence in held_out for token in (*sentence.split(), "</s>")]
    unigram = 10 ** -(sum(math.log10(tokens.count(token) / len(tokens)) for token in asked) / len(asked))
    assert estimate(ENGLISH, 3).perplexity(held_out).value < 0.7 * unigram


def test_the_order_of_sentences_does_not_matter_and_empty_ones_do_not_count():
    assert list(estimate(ENGLISH, 3).arpa()) == list(estimate(iter(["", *reversed(ENGLISH), " "]), 3).arpa())


@pytest.mark.parametrize(
    ("sentences", "order", "message"),
    [
        (["", "  "], 3, "contains no word: expected one sentence per line, change text"),
        (TINY, 6, "order=6: no sentence has the 4 words that this order needs, lower order"),
        (["a <s> b"], 2, "contains <s>, which is not a word"),
    ],
)
def test_what_gives_no_model_is_reported_in_one_sentence(sentences, order, message):
    with pytest.raises(ValueError, match=message):
        estimate(sentences, order)
