"""Characters of a CTC recogniser, and GigaSpeech's rules for the text it learns and the text it is scored on."""

from __future__ import annotations

import string
from collections.abc import Iterable

BLANK = 0  # no character (Graves et al. 2006, section 3); torch's kernel and the decoders count on its number
SPACE = 1
SYMBOLS = ("<blank>", " ", *string.ascii_lowercase, "'")
_ID_OF = {symbol: number for number, symbol in enumerate(SYMBOLS) if number != BLANK}

GARBAGE_TAGS = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")  # segments without speech to learn
PUNCTUATION_TAGS = ("<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>")
FILLERS = ("UH", "UHH", "UM", "EH", "MM", "HM", "AH", "HUH", "HA", "ER", "OOF", "HEE", "ACH", "EEE", "EW")
_NOT_SCORED = frozenset((*FILLERS, "<UNK>", *PUNCTUATION_TAGS, *GARBAGE_TAGS))


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


def training_text(text: str) -> str | None:
    """What training learns of a `text_tn` of GigaSpeech.json; None where a garbage tag says to leave the segment out.

    Punctuation tags go, as in the recipes of the release; letters become lower-case and a hyphen a space, as scoring
    reads it. Other characters stay, for `to_ids` to name.
    """
    words = text.replace("-", " ").split()
    if any(word.upper() in GARBAGE_TAGS for word in words):
        return None
    return " ".join(word.lower() for word in words if word.upper() not in PUNCTUATION_TAGS)


def scoring_text(text: str) -> str:
    """A reference or hypothesis as GigaSpeech's official scoring compares it.

    Upper case, a hyphen is a space; conversational fillers, `<UNK>`, punctuation and garbage tags do not count.
    """
    return " ".join(word for word in text.upper().replace("-", " ").split() if word not in _NOT_SCORED)
