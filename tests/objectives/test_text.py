"""The alphabet, and GigaSpeech's rules for text, on cases written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.data.gigaspeech.transcripts import training_text
from speech_exp.objectives.text import BLANK, SYMBOLS, normalise_spaces, scoring_text, to_ids, to_text


def test_there_are_29_symbols_and_the_blank_is_the_first():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 29
    assert BLANK == 0
    assert to_ids(" az'") == [1, 2, 27, 28]


@given(st.text("abcdefghijklmnopqrstuvwxyz '"))
def test_text_to_ids_and_back_is_the_identity(text):
    assert BLANK not in to_ids(text)
    assert to_text(to_ids(text)) == text


def test_text_leaves_blanks_out():
    assert to_text([0, 2, 0, 0, 3, 0]) == "ab"


@pytest.mark.parametrize(
    ("text", "named"), [("room 10-b", "'1', '0', '-'"), ("A", "'A'"), ("é\t", "'é', '\\t'"), ("<blank>", "'<'")]
)
def test_unknown_characters_are_named(text, named):
    with pytest.raises(ValueError, match="expected lower-case letters") as caught:
        to_ids(text)
    assert str(caught.value).startswith(named)


def test_words_are_separated_by_one_space():
    assert normalise_spaces("  one   two ") == "one two"
    assert normalise_spaces(" ") == ""


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("state-of-the-art", "STATE OF THE ART"),
        ("UH I um THINK hm SO", "I THINK SO"),
        ("UH UHH UM EH MM HM AH HUH HA ER OOF HEE ACH EEE EW", ""),
        ("AN UHMM ERR HUM", "AN UHMM ERR HUM"),  # only whole words of the list
        ("UH-HUH", ""),  # the hyphen is replaced first, then both halves are fillers
        ("NO <COMMA> YES <PERIOD> <QUESTIONMARK> <EXCLAMATIONPOINT>", "NO YES"),
        ("<unk> FOUND <UNK>", "FOUND"),
        ("<SIL> <MUSIC> <NOISE> <OTHER>", ""),
        ("don't", "DON'T"),
        ("  two   words ", "TWO WORDS"),
    ],
)
def test_scoring_text(text, scored):
    assert scoring_text(text) == scored
    assert scoring_text(scored) == scored


@pytest.mark.parametrize(
    "raw",
    ["STATE-OF-THE-ART <COMMA> UH IT'S <PERIOD>", "A <UNK> B <QUESTIONMARK>", "UM <EXCLAMATIONPOINT>", "HA-HA  YES"],
)
def test_a_normalised_reference_scores_like_the_raw_one(raw):
    """Evaluation scores characters only; `CutTable.text` leaves out `<UNK>`, which has no characters."""
    text = " ".join(word for word in training_text(raw).split() if word != "<unk>")
    assert scoring_text(to_text(to_ids(text))) == scoring_text(raw)
