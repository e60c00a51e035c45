"""Word and character error rates of a corpus, and where the errors are."""

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
    """Edits of least number (Levenshtein) that turn the references of a corpus into its hypotheses."""

    substitutions: int
    deletions: int
    insertions: int
    reference: int  # words or characters of all references

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits of the corpus over its reference, so long utterances weigh more and 1 can be exceeded.

        Without any reference word it is the number of edits.
        """
        return self.total / max(1, self.reference)


@dataclass(frozen=True)
class AlignedUtterance:
    """One utterance as three lines of equal length to print in a fixed-width font; `*` is a missing word."""

    id: str
    edits: int
    words: int  # of the reference
    reference: str
    hypothesis: str
    marks: str  # S, D or I under the first letter of a word substituted, deleted, inserted

    def text(self) -> str:
        return f"{self.id}: {self.edits} edits, {self.words} words\nREF {self.reference}\nHYP {self.hypothesis}\n    {self.marks}"


@dataclass(frozen=True)
class Errors:
    words: Edits
    characters: Edits
    confusions: list[tuple[str, str, int]]  # reference word, hypothesis word, count; the most frequent first
    deleted: list[tuple[str, int]]  # word, count
    inserted: list[tuple[str, int]]
    worst: list[AlignedUtterance]  # most edits first, utterances without any left out


def word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    return _edits(_words(references, hypotheses))


def character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Over characters, the space between two words one of them."""
    import jiwer

    return _edits(jiwer.process_characters(_tidy(references), _tidy(hypotheses))) if references else Edits(0, 0, 0, 0)


def find_errors(ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], worst: int = 20) -> Errors:
    """Errors of a corpus by kind and word, and its `worst` utterances: by edits, then by edits a word, then by id."""
    pairs: Counter[tuple[str, str]] = Counter()
    aligned = []
    output = _words(references, hypotheses)
    alignments = output.alignments if output else []
    for number, chunks in enumerate(alignments):
        assert output is not None
        steps: list[tuple[str, str]] = []
        for chunk in chunks:
            spoken = output.references[number][chunk.ref_start_idx : chunk.ref_end_idx]
            heard = output.hypotheses[number][chunk.hyp_start_idx : chunk.hyp_end_idx]
            length = max(len(spoken), len(heard))
            steps += zip(spoken + [""] * (length - len(spoken)), heard + [""] * (length - len(heard)), strict=True)
        wrong = [step for step in steps if step[0] != step[1]]
        pairs.update(wrong)
        if wrong:
            aligned.append(_lines(ids[number], steps))
    aligned.sort(key=lambda one: (-one.edits, -one.edits / max(1, one.words), one.id))
    counted = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return Errors(
        words=_edits(output),
        characters=character_edits(references, hypotheses),
        confusions=[(spoken, heard, count) for (spoken, heard), count in counted if spoken and heard],
        deleted=[(spoken, count) for (spoken, heard), count in counted if not heard],
        inserted=[(heard, count) for (spoken, heard), count in counted if not spoken],
        worst=aligned[:worst],
    )


def _words(references: Sequence[str], hypotheses: Sequence[str]) -> WordOutput | None:
    """None for a corpus without utterances, which jiwer refuses."""
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
    """`steps` are pairs of reference and hypothesis word, empty where one has none."""
    kinds = ["I" if not spoken else "D" if not heard else "S" if spoken != heard else "" for spoken, heard in steps]
    widths = [max(len(spoken), len(heard)) for spoken, heard in steps]

    def line(words: Sequence[str], gap: str) -> str:
        return " ".join((word or gap * width).ljust(width) for word, width in zip(words, widths, strict=True))

    return AlignedUtterance(
        id=utterance,
        edits=sum(map(bool, kinds)),
        words=sum(bool(spoken) for spoken, _ in steps),
        reference=line([spoken for spoken, _ in steps], _GAP),
        hypothesis=line([heard for _, heard in steps], _GAP),
        marks=line(kinds, " "),
    )
