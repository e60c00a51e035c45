"""N-gram language models, estimated from text with interpolated modified Kneser-Ney smoothing.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3: the probability of an
n-gram is its discounted count, plus the discounted mass distributed by the model that is one word shorter. The counts of
all orders except the highest are *adjusted*: the number of different words that precede an n-gram, because the shorter
n-gram is only used after words it was not seen with. The conventions are those of KenLM's lmplz (Heafield et al. 2013,
"Scalable modified Kneser-Ney language model estimation"): an n-gram that begins a sentence keeps its count, because nothing
can precede it; unigrams are interpolated with 1 / |vocabulary|, the share of `<unk>`; `</s>` and `<unk>` belong to the
vocabulary, `<s>` does not. Nothing is pruned.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from speech_exp.bounds import Between

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ORDERS = range(2, 7)  # orders that KenLM supports as built for flashlight-text
Order = Annotated[int, Between(ORDERS[0], ORDERS[-1])]
# As lmplz --discount_fallback, for text so small or uniform that its counts of counts give no usable discounts.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_NEVER = -99.0  # conventional log10 probability of `<s>`, which is never predicted

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Perplexity:
    value: float  # 10 to the mean of -log10 p over all words and sentence ends
    words: int
    unknown: int  # words outside the vocabulary, scored as `<unk>`


@dataclass(frozen=True)
class LanguageModel:
    """An n-gram model with back-off.

    `log10[n - 1]` maps every n-gram to the log10 probability of its last word after the others; `backoff` maps every context
    to the log10 of the share that it leaves to the context one word shorter.
    """

    log10: list[dict[Gram, float]]
    backoff: dict[Gram, float]

    @property
    def words(self) -> list[str]:
        """The vocabulary without sentence marks and the unknown word."""
        return sorted(word for (word,) in self.log10[0] if word not in (BEGIN, END, UNKNOWN))

    def score(self, gram: Gram) -> float:
        """Return the log10 probability of the last word after the others; `gram` is at most as long as the order."""
        listed = self.log10[len(gram) - 1].get(gram)
        return self.backoff.get(gram[:-1], 0.0) + self.score(gram[1:]) if listed is None else listed

    def perplexity(self, sentences: Iterable[str]) -> Perplexity:
        words = unknown = scored = 0
        total = 0.0
        for sentence in sentences:
            spoken = sentence.split()
            known = [word if (word,) in self.log10[0] else UNKNOWN for word in spoken]
            words, unknown = words + len(spoken), unknown + known.count(UNKNOWN)
            for gram in _grams(known, len(self.log10)):
                total, scored = total + self.score(gram), scored + 1
        return Perplexity(10 ** (-total / scored), words, unknown)

    def arpa(self) -> Iterator[str]:
        """Yield the lines of the model in ARPA text, sorted so that equal models give equal files."""
        yield "\\data\\\n"
        for order, grams in enumerate(self.log10, start=1):
            yield f"ngram {order}={len(grams)}\n"
        for order, grams in enumerate(self.log10, start=1):
            yield f"\n\\{order}-grams:\n"
            for gram in sorted(grams):
                weight = "" if order == len(self.log10) else f"\t{self.backoff.get(gram, 0.0):.7f}"
                yield f"{grams[gram]:.7f}\t{' '.join(gram)}{weight}\n"
        yield "\n\\end\\\n"


def estimate(sentences: Iterable[str], order: Order) -> LanguageModel:
    """Estimate a model of `order` from sentences of words; empty sentences are ignored.

    The sentences are read once and not kept. All distinct n-grams are kept in memory, about 450 bytes each at the peak.
    """
    counts = _adjusted_counts(sentences, order)
    if not counts[0]:
        raise ValueError("the text of the language model contains no word: expected one sentence per line, change text")
    if not counts[-1]:
        raise ValueError(f"order={order}: no sentence has the {order - 2} words that this order needs, lower order")
    uniform = 1 / (len(counts[0]) + 1)  # plus `<unk>`, which was not counted
    log10: list[dict[Gram, float]] = []
    backoff: dict[Gram, float] = {}
    lower: dict[Gram, float] = {(): uniform}  # probabilities of the order below
    for counted in counts:
        probabilities, left = _interpolated(counted, lower)
        log10.append({gram: math.log10(value) for gram, value in probabilities.items()})
        backoff |= {context: math.log10(share) for context, share in left.items()}
        lower = probabilities
    log10[0] |= {(UNKNOWN,): backoff.pop(()) + math.log10(uniform), (BEGIN,): _NEVER}
    return LanguageModel(log10, backoff)


def _grams(words: list[str], order: int) -> Iterator[Gram]:
    """Yield, for each word of a sentence and its end, the longest n-gram that ends there; the first ones begin with `<s>`."""
    marked = (BEGIN, *words, END)
    for end in range(2, len(marked) + 1):
        yield marked[max(0, end - order) : end]


def _adjusted_counts(sentences: Iterable[str], order: int) -> list[Counter[Gram]]:
    """Return the counts by order; the lower orders count each distinct n-gram that is one word longer once."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = sentence.split()
        if reserved := {BEGIN, END, UNKNOWN}.intersection(words):
            raise ValueError(
                f"the text of the language model contains {min(reserved)}, which is not a word: change text"
            )
        if words:
            for gram in _grams(words, order):
                counts[len(gram) - 1][gram] += 1
    for longer, shorter in pairwise(reversed(counts)):
        shorter.update(gram[1:] for gram in longer)
    return counts


def _interpolated(counts: Counter[Gram], lower: dict[Gram, float]) -> tuple[dict[Gram, float], dict[Gram, float]]:
    """Return the probability of each n-gram, and the share that each context leaves to `lower`."""
    discounts = (0.0, *_discounts(counts))
    totals: defaultdict[Gram, int] = defaultdict(int)
    taken: defaultdict[Gram, float] = defaultdict(float)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        taken[gram[:-1]] += discounts[min(count, 3)]
    left = {context: taken[context] / total for context, total in totals.items()}
    probabilities = {
        gram: (count - discounts[min(count, 3)]) / totals[gram[:-1]] + left[gram[:-1]] * lower[gram[1:]]
        for gram, count in counts.items()
    }
    return probabilities, left


def _discounts(counts: Counter[Gram]) -> tuple[float, float, float]:
    """Estimate the discounts of counts 1, 2 and 3+ as lmplz does: Y = n1 / (n1 + 2 n2), D_k = k - (k + 1) Y n_{k+1} / n_k.

    n_k is the number of n-grams with adjusted count k. If a divisor is 0, or a discount is not above 0 and at most k, the
    fallback is used for all three.
    """
    n = Counter(count for count in counts.values() if count <= 4)
    if not (n[1] and n[2] and n[3]):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    one, two, three = (k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return (one, two, three) if 0 < one <= 1 and 0 < two <= 2 and 0 < three <= 3 else FALLBACK_DISCOUNTS
