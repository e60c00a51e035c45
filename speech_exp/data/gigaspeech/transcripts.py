"""GigaSpeech's rules for transcripts: tags, fillers, and the text for training."""

from __future__ import annotations

import string

LETTERS = (*string.ascii_lowercase, "'")  # characters of a transcript, besides the space

GARBAGE_TAGS = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")  # mark segments without speech
PUNCTUATION_TAGS = ("<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>")
UNKNOWN_TAG = "<UNK>"  # a word that transcribers did not understand
FILLERS = ("UH", "UHH", "UM", "EH", "MM", "HM", "AH", "HUH", "HA", "ER", "OOF", "HEE", "ACH", "EEE", "EW")


def training_text(text: str) -> str | None:
    """Return the training text for a `text_tn` of GigaSpeech.json; None if it has a garbage tag, so the segment is left out.

    Punctuation tags are removed, as in the release's recipes. Letters become lower-case and hyphens become spaces, as in
    scoring. Other characters are kept; `speech_exp.objectives.text.to_ids` reports them.
    """
    words = text.replace("-", " ").split()
    if any(word.upper() in GARBAGE_TAGS for word in words):
        return None
    return " ".join(word.lower() for word in words if word.upper() not in PUNCTUATION_TAGS)
