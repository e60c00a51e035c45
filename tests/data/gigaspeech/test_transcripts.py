"""GigaSpeech's rules for training text, on hand-written cases."""

import pytest

from speech_exp.data.gigaspeech.transcripts import training_text


@pytest.mark.parametrize(
    ("text", "learned"),
    [
        ("PRINTING <COMMA> IN THE ONLY SENSE <PERIOD>", "printing in the only sense"),
        ("IS IT <QUESTIONMARK> YES <EXCLAMATIONPOINT>", "is it yes"),
        ("STATE-OF-THE-ART", "state of the art"),
        ("DON'T  UH STOP", "don't uh stop"),  # fillers are spoken, so they are learned
        ("", ""),
        ("<SIL>", None),
        ("<MUSIC>", None),
        ("<NOISE>", None),
        ("HELLO <OTHER>", None),
        ("NUMBER 9", "number 9"),  # to_ids will name the 9
        ("A <UNK> WORD", "a <unk> word"),
    ],
)
def test_training_text(text, learned):
    assert training_text(text) == learned
