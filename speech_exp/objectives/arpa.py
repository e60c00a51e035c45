"""Validate ARPA language models before KenLM loads them: some broken files would make it abort the whole process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speech_exp.objectives.language_model import BEGIN, END, ORDERS
from speech_exp.safe_text import escaped

_BINARY = b"mmap lm http://kheafield.com/code"
_LONGEST_LINE = 2**16
_SPACE = " \t\r\n"  # the only blanks that KenLM accepts
_GAP = r"[ \t]+"
_NUMBER = r"(?:[0-9]{1,20}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE](?:\+?[0-9]|-[0-9]{1,2}))?"  # fits float32


def read_words(path: Path) -> list[str]:
    """Return the words of the unigrams in file order, including sentence marks; raise a ValueError if the file is not complete.

    The counts must match the listed n-grams and the scores must be finite: KenLM relies on both.
    """
    lines = _Lines(path)
    counts = _counts(lines)
    words: list[str] = []
    for order, count in enumerate(counts, start=1):
        lines.expect(f"\\{order}-grams:")
        found, pattern = 0, _gram(order, highest=order == len(counts))
        for line in lines:
            if line.startswith("\\"):
                lines.back = line
                break
            found += 1
            if found > count:
                raise lines.error(f"lists more n-grams of order {order} than its header states ({count:,})")
            gram = pattern.fullmatch(line)
            if gram is None:
                raise lines.error(f"is {line:.40}, expected a log10 probability of at most 0 and {order} words")
            if order == 1:
                words.append(gram[1])
        if found < count:
            raise lines.error(f"lists {found:,} of the {count:,} n-grams of order {order} that its header states")
    lines.expect("\\end\\")
    if len(set(words)) < len(words) or not {BEGIN, END} <= set(words):
        raise lines.error(f"must list each word once, {BEGIN} and {END} among them")
    return words


class _Lines:
    """The non-blank lines of an untrusted file; `back` is a line to read again."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.back = path, 0, ""
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, self.back = self.back, ""
        return line or next(self._lines)

    def _read(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            if file.read(len(_BINARY)) == _BINARY:
                raise self.error(
                    "is a KenLM binary, which cannot be checked before loading: use the ARPA file that it was built from"
                )
            file.seek(0)
            while line := file.readline(_LONGEST_LINE):
                self.number += 1
                if len(line) == _LONGEST_LINE:
                    raise self.error(f"is longer than {_LONGEST_LINE:,} bytes")
                try:
                    text = line.decode("utf-8").strip(_SPACE)
                except UnicodeDecodeError:
                    raise self.error("is not UTF-8: not a complete language model in ARPA format") from None
                if text:
                    yield text

    def expect(self, wanted: str) -> None:
        if (found := next(self, "the end of the file")) != wanted:
            raise self.error(f"is {found:.40}, expected {wanted}: not a complete language model in ARPA format")

    def error(self, what: str) -> ValueError:
        place = f"line {self.number:,} " if self.number else ""
        return ValueError(f"decoder.lm={self.path}: {place}{escaped(what)}, change decoder.lm")


def _counts(lines: _Lines) -> list[int]:
    """Read the number of n-grams of each order from the header of the file."""
    lines.expect("\\data\\")
    counts: list[int] = []
    for line in lines:
        if line.startswith("\\"):
            lines.back = line
            break
        order, _, count = line.removeprefix("ngram ").partition("=")
        if order.strip() != str(len(counts) + 1) or not (count.strip().isdecimal() and int(count[:19]) > 0):
            raise lines.error(f"is {line:.40}, expected ngram {len(counts) + 1}= and a count above 0")
        counts.append(int(count[:19]))
    if len(counts) not in ORDERS:
        raise lines.error(f"ends the counts of {len(counts)} orders, expected {ORDERS[0]} to {ORDERS[-1]}")
    return counts


def _gram(order: int, highest: bool) -> re.Pattern[str]:
    """Return the pattern of a line: log10 probability, `order` words, and below the highest order an optional back-off."""
    words = rf"([^ \t]+){_GAP}" * order
    return re.compile(
        f"(?:-{_NUMBER}|0(?:\\.0*)?){_GAP}{words.removesuffix(_GAP)}" + ("" if highest else f"(?:{_GAP}-?{_NUMBER})?")
    )
