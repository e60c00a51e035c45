"""action=language_model through the composition root, and the decoder's use of its file."""

import pytest
import torch
from composition import experiment

from speech_exp.actions.language_model import BuildLanguageModel, transcripts
from speech_exp.data.corpus.readers import RecordingReader
from speech_exp.objectives.decoders import Beam, Greedy
from speech_exp.objectives.text import SYMBOLS, to_ids

DATA = ("dataset=fsdd_strings", "dataset.bundled=true", "dataset.folder=digits_demo", "trainer.device=cpu")


@pytest.fixture(scope="module")
def strings(compose, tmp_path_factory):
    """Return an experiment over connected digits whose features all tests of this module share."""
    return experiment(compose("action=language_model", *DATA), tmp_path_factory.mktemp("run"))


def test_the_training_transcripts_become_a_file_that_the_decoder_reads(strings, capsys):
    strings.build("action")(strings)
    assert [path.name for path in strings.folder.iterdir()] == ["lm.arpa"]
    printed = capsys.readouterr().out
    assert "10 words" in printed and "13 of order 1" in printed and "0 unknown" in printed
    path = [0 if symbol == "_" else to_ids(symbol)[0] for symbol in "_ofe t_wo_"]
    logits_1TV = 5 * torch.nn.functional.one_hot(torch.tensor([path]), len(SYMBOLS)).float()
    beam = Beam(beam=50, lm=str(strings.folder / "lm.arpa"), lm_weight=1.0)
    assert Greedy().decode(logits_1TV, torch.tensor([len(path)])) == ["ofe two"]
    assert beam.decode(logits_1TV, torch.tensor([len(path)])) == ["one two"]


def test_transcripts_are_those_of_the_part_in_its_order(strings):
    expected = [string.text for string in strings.data.parts["validation"].strings]
    assert list(transcripts(strings, "validation")) == expected


def test_no_audio_of_a_corpus_is_read_for_its_transcripts(compose, small_release, tmp_path, monkeypatch):
    corpus = ("dataset=gigaspeech", f"dataset.root={small_release}", f"dataset.prepared={tmp_path}")
    small = ("encoder=asr_small", "dataset.workers=0", "trainer.device=cpu")
    unread = "features.normalization=utterance"  # global statistics would be computed from audio
    built = experiment(compose("action=language_model", *corpus, *small, unread), tmp_path / "run")

    def refuse(reader, number):
        raise AssertionError(f"utterance {number} was read")

    monkeypatch.setattr(RecordingReader, "__call__", refuse)
    texts = list(transcripts(built, "train"))
    assert len(texts) == len(built.data.parts["train"])
    assert all(text and set(text) <= set(SYMBOLS) for text in texts)
    with pytest.raises(AssertionError, match="was read"):
        next(built.data.parts["train"].in_order(1))


def test_a_text_file_needs_no_data_set_with_transcripts(compose, tmp_path, capsys):
    digits = experiment(compose("action=language_model", "dataset=digits_demo", "trainer.device=cpu"), tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("one two\n")
    BuildLanguageModel(2, str(text), None)(digits)
    assert "\tone two\n" in (tmp_path / "lm.arpa").read_text()
    assert "perplexity  unknown" in capsys.readouterr().out


def test_a_text_file_takes_their_place_in_lower_case(strings, tmp_path, capsys):
    text, output = tmp_path / "text.txt", tmp_path / "new" / "own.arpa"
    text.write_text("ONE two\nthree one\n\none two three\n")
    BuildLanguageModel(2, str(text), str(output))(strings)
    assert "\tone two\n" in output.read_text()
    assert "3 words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/nowhere.txt", r"text=/nowhere.txt cannot be read \(No such file"),
        ("speech_exp/data/digits_demo/3_emil_0.flac", "3_emil_0.flac is not UTF-8"),
        ("/dev/null", "contains no word"),
    ],
)
def test_what_gives_no_model_is_reported_in_one_sentence_and_leaves_no_file(strings, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        BuildLanguageModel(3, text, str(tmp_path / "lm.arpa"))(strings)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_is_named(strings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output=.*file/lm.arpa cannot be written"):
        BuildLanguageModel(3, None, str(tmp_path / "file" / "lm.arpa"))(strings)


def test_a_data_set_of_classes_has_no_transcripts(compose, tmp_path):
    built = experiment(compose("action=language_model", "dataset=digits_demo"), tmp_path)
    with pytest.raises(ValueError, match="dataset=digits_demo provides classes: expected transcripts"):
        built.build("action")(built)
