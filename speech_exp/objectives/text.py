"""The characters of a CTC recogniser, and GigaSpeech's rules for scoring text."""

from __future__ import annotations

from collections.abc import Iterable

from speech_exp.data.gigaspeech.transcripts import FILLERS, GARBAGE_TAGS, LETTERS, PUNCTUATION_TAGS, UNKNOWN_TAG

BLANK = 0  # not a character (Graves et al. 2006, section 3); torch's kernel and the decoders rely on index 0
SPACE = 1
SYMBOLS = ("<blank>", " ", *LETTERS)
_ID_OF = {symbol: number for number, symbol in enumerate(SYMBOLS) if number != BLANK}

_NOT_SCORED = frozenset((*FILLERS, UNKNOWN_TAG, *PUNCTUATION_TAGS, *GARBAGE_TAGS))


def to_ids(text: str) -> list[int]:
    """Return the ids of the characters of lower-case text; a ValueError names characters without a symbol."""
    try:
        return [_ID_OF[character] for character in text]
    except KeyError:
        unknown = ", ".join(repr(character) for character in dict.fromkeys(text) if character not in _ID_OF)
        raise ValueError(
            f"{unknown} in {text!r}: expected lower-case letters a to z, apostrophes and spaces, change the transcript or "
            f"drop its utterance"
        ) from None


def to_text(ids: Iterable[int]) -> str:
    """Return the characters of ids without blanks; spaces are unchanged (`normalise_spaces` tidies them)."""
    return "".join(SYMBOLS[number] for number in ids if number != BLANK)


def normalise_spaces(text: str) -> str:
    """Return the words with single spaces between them and none at the ends."""
    return " ".join(text.split())


def scoring_text(text: str) -> str:
    """Return a reference or hypothesis in the form that GigaSpeech's official scoring compares.

    Upper case, hyphens become spaces; conversational fillers, `<UNK>`, punctuation and garbage tags are removed.
    """
    return " ".join(word for word in text.upper().replace("-", " ").split() if word not in _NOT_SCORED)
