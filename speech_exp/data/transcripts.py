"""GigaSpeech's rules for transcripts: tags, fillers, and the text that training learns."""

from __future__ import annotations

import string

LETTERS = (*string.ascii_lowercase, "'")  # what a transcript consists of, beside spaces

GARBAGE_TAGS = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")  # segments without speech to learn
PUNCTUATION_TAGS = ("<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>")
UNKNOWN_TAG = "<UNK>"  # a word that transcribers did not understand
FILLERS = ("UH", "UHH", "UM", "EH", "MM", "HM", "AH", "HUH", "HA", "ER", "OOF", "HEE", "ACH", "EEE", "EW")


def training_text(text: str) -> str | None:
    """What training learns of a `text_tn` of GigaSpeech.json; None where a garbage tag says to leave the segment out.

    Punctuation tags go, as in the recipes of the release; letters become lower-case and a hyphen a space, as scoring
    reads it. Other characters stay, for `speech_exp.objectives.text.to_ids` to name.
    """
    words = text.replace("-", " ").split()
    if any(word.upper() in GARBAGE_TAGS for word in words):
        return None
    return " ".join(word.lower() for word in words if word.upper() not in PUNCTUATION_TAGS)
