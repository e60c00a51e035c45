"""Word and character error rates of a corpus, and the errors behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jiwer import CharacterOutput, WordOutput

_GAP = "*"


@dataclass(frozen=True)
class Edits:
    """The minimum number of edits (Levenshtein) that turn the references of a corpus into its hypotheses."""

    substitutions: int
    deletions: int
    insertions: int
    reference: int  # words or characters of all references

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits divided by reference size over the corpus: long utterances weigh more, and the rate can exceed 1.

        Without any reference word it is the number of edits.
        """
        return self.total / max(1, self.reference)


@dataclass(frozen=True)
class AlignedUtterance:
    """One utterance as three lines of equal length for a fixed-width font; `*` marks a missing word."""

    id: str
    edits: int
    words: int  # in the reference
    reference: str
    hypothesis: str
    marks: str  # S, D or I under the first letter of a word substituted, deleted, inserted

    def text(self) -> str:
        return f"{self.id}: {self.edits} edits, {self.words} words\nREF {self.reference}\nHYP {self.hypothesis}\n    {self.marks}"


@dataclass(frozen=True)
class Errors:
    words: Edits
    characters: Edits
    confusions: list[tuple[str, str, int]]  # reference word, hypothesis word, count; most frequent first
    deleted: list[tuple[str, int]]  # word, count
    inserted: list[tuple[str, int]]
    worst: list[AlignedUtterance]  # most edits first; utterances without edits are left out


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Count edits over characters, including the spaces between words."""
    import jiwer

    return _edits(jiwer.process_characters(_tidy(references), _tidy(hypotheses))) if references else Edits(0, 0, 0, 0)


def edits_of_words(reference: str, hypothesis: str, characters: bool) -> tuple[list[int], list[int]]:
    """Return the edits and the size of each reference word, in words or in characters (a word includes the space after it).

    The sums equal the edits of `find_errors`. An insertion counts for the word that follows it, or for the
    last word if none follows.
    """
    import jiwer

    words = reference.split()
    if not words:
        words = hypothesis.split()
        return [len(" ".join(words)) if characters else len(words)], [0]
    texts = [" ".join(words)], _tidy([hypothesis])
    if characters:
        sizes = [len(word) + 1 for word in words[:-1]] + [len(words[-1])]
        output: WordOutput | CharacterOutput = jiwer.process_characters(*texts)
    else:
        sizes = [1] * len(words)
        output = jiwer.process_words(*texts)
    word_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    edits = [0] * len(words)
    for chunk in output.alignments[0]:
        if chunk.type == "insert":
            edits[word_of[min(chunk.ref_start_idx, len(word_of) - 1)]] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for place in range(chunk.ref_start_idx, chunk.ref_end_idx):
                edits[word_of[place]] += 1
    return edits, sizes


def find_errors(ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], worst: int = 20) -> Errors:
    """Return the errors of a corpus by kind and word, and its `worst` utterances: by edits, then edits per word, then id."""
    pairs: Counter[tuple[str, str]] = Counter()
    aligned = []
    output = _words(references, hypotheses)
    alignments = output.alignments if output else []
    for number, chunks in enumerate(alignments):
        assert output is not None
        steps: list[tuple[str, str]] = []
        for chunk in chunks:
            spoken = output.references[number][chunk.ref_start_idx : chunk.ref_end_idx]
            recognised = output.hypotheses[number][chunk.hyp_start_idx : chunk.hyp_end_idx]
            length = max(len(spoken), len(recognised))
            steps += zip(
                spoken + [""] * (length - len(spoken)), recognised + [""] * (length - len(recognised)), strict=True
            )
        wrong = [step for step in steps if step[0] != step[1]]
        pairs.update(wrong)
        if wrong:
            aligned.append(_lines(ids[number], steps))
    aligned.sort(key=lambda one: (-one.edits, -one.edits / max(1, one.words), one.id))
    counted = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return Errors(
        words=_edits(output),
        characters=character_edits(references, hypotheses),
        confusions=[(spoken, recognised, count) for (spoken, recognised), count in counted if spoken and recognised],
        deleted=[(spoken, count) for (spoken, recognised), count in counted if not recognised],
        inserted=[(recognised, count) for (spoken, recognised), count in counted if not spoken],
        worst=aligned[:worst],
    )


def _words(references: Sequence[str], hypotheses: Sequence[str]) -> WordOutput | None:
    """Align words; None for a corpus without utterances, which jiwer refuses."""
    import jiwer

    return jiwer.process_words(_tidy(references), _tidy(hypotheses)) if references else None


def _tidy(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _edits(output: WordOutput | CharacterOutput | None) -> Edits:
    if output is None:
        return Edits(0, 0, 0, 0)
    reference = output.hits + output.substitutions + output.deletions
    return Edits(output.substitutions, output.deletions, output.insertions, reference)


def _lines(utterance: str, steps: Sequence[tuple[str, str]]) -> AlignedUtterance:
    """Format `steps`, pairs of reference and hypothesis word that are empty where one is missing."""
    kinds = [
        "I" if not spoken else "D" if not recognised else "S" if spoken != recognised else ""
        for spoken, recognised in steps
    ]
    widths = [max(len(spoken), len(recognised)) for spoken, recognised in steps]

    def line(words: Sequence[str], gap: str) -> str:
        return " ".join((word or gap * width).ljust(width) for word, width in zip(words, widths, strict=True))

    return AlignedUtterance(
        id=utterance,
        edits=sum(map(bool, kinds)),
        words=sum(bool(spoken) for spoken, _ in steps),
        reference=line([spoken for spoken, _ in steps], _GAP),
        hypothesis=line([recognised for _, recognised in steps], _GAP),
        marks=line(kinds, " "),
    )
