"""Characters of a CTC recogniser, and GigaSpeech's rules for the text it is scored on."""

from __future__ import annotations

from collections.abc import Iterable

from speech_exp.data.transcripts import FILLERS, GARBAGE_TAGS, LETTERS, PUNCTUATION_TAGS, UNKNOWN_TAG

BLANK = 0  # no character (Graves et al. 2006, section 3); torch's kernel and the decoders count on its number
SPACE = 1
SYMBOLS = ("<blank>", " ", *LETTERS)
_ID_OF = {symbol: number for number, symbol in enumerate(SYMBOLS) if number != BLANK}

_NOT_SCORED = frozenset((*FILLERS, UNKNOWN_TAG, *PUNCTUATION_TAGS, *GARBAGE_TAGS))


def to_ids(text: str) -> list[int]:
    """Ids of the characters of lower-case text; what has no symbol is a ValueError that names it."""
    try:
        return [_ID_OF[character] for character in text]
    except KeyError:
        unknown = ", ".join(repr(character) for character in dict.fromkeys(text) if character not in _ID_OF)
        raise ValueError(
            f"{unknown} in {text!r}: expected lower-case letters a to z, apostrophes and spaces, change the transcript or "
            f"drop its utterance"
        ) from None


def to_text(ids: Iterable[int]) -> str:
    """The characters of ids without blanks; spaces stand as they are (`words_apart` tidies them)."""
    return "".join(SYMBOLS[number] for number in ids if number != BLANK)


def words_apart(text: str) -> str:
    """The words with one space between them and none around them."""
    return " ".join(text.split())


def scoring_text(text: str) -> str:
    """A reference or hypothesis as GigaSpeech's official scoring compares it.

    Upper case, a hyphen is a space; conversational fillers, `<UNK>`, punctuation and garbage tags do not count.
    """
    return " ".join(word for word in text.upper().replace("-", " ").split() if word not in _NOT_SCORED)
