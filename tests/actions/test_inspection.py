"""action=inspect agrees with the recordings and transcripts."""

import io
import json
import shutil
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from composition import experiment
from hydra.errors import ConfigCompositionException
from run_files import table

from speech_exp.actions import inspection
from speech_exp.actions.prepare import Prepare
from speech_exp.data.corpus import selection
from speech_exp.data.digits import BUNDLED
from speech_exp.experiment import Experiment

GIGASPEECH = (
    "dataset=gigaspeech_mini",
    "dataset.workers=0",
    "features.normalization=utterance",
)  # which needs no statistics
STRINGS = ("dataset=fsdd_strings", "dataset.bundled=true", "dataset.folder=digits_demo", "dataset.split=random")
FILES = {"inspection.json", "dropped.csv", "characters.csv", "listening.csv", "listening", "figures"}
FIGURES = {"durations.png", "characters.png", "batch.png"}
GARBAGE = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")
RATE_HZ = 16000


class Inspected(NamedTuple):
    folder: Path
    built: Experiment
    found: dict
    printed: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def inspect(compose, cache, prepared):
    def run(folder, *overrides):
        here = [f"dataset.prepared={prepared}"] if GIGASPEECH[0] in overrides else []
        config = compose(*here, *overrides, "action=inspect", "trainer.device=cpu", f"cache_dir={cache}")
        built = experiment(config, folder)
        with redirect_stdout(io.StringIO()) as printed:
            built.build("action")(built)
        found = json.loads((folder / "inspection.json").read_text())
        return Inspected(folder, built, found, printed.getvalue())

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Skip the figures, which take most of the time with a small data set."""
    monkeypatch.setattr(inspection, "_draw", lambda *_: None)


@pytest.fixture(scope="module")
def corpus(inspect, gigaspeech_root, tmp_path_factory):
    return inspect(tmp_path_factory.mktemp("corpus"), *GIGASPEECH, "augment=none", "listen=4")


@pytest.fixture(scope="module")
def digits(inspect, tmp_path_factory):
    return inspect(tmp_path_factory.mktemp("digits"), "dataset=digits_demo", "listen=3")


@pytest.fixture(scope="module")
def segments(gigaspeech_root):
    """Return each segment of the release by its id: subsets, begin, end, text and file."""
    release = json.loads((gigaspeech_root / "GigaSpeech.json").read_text())
    return {
        one["sid"]: {**one, "path": gigaspeech_root / audio["path"]}
        for audio in release["audios"]
        for one in audio["segments"]
    }


def garbage(segment):
    return any(tag in segment["text_tn"].split() for tag in GARBAGE)


def speech(segments, subset):
    return [one for one in segments.values() if "{" + subset + "}" in one["subsets"] and not garbage(one)]


def test_a_corpus_is_distinguished_from_its_release(corpus, segments):
    folder, _, found, printed = corpus
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in (folder / "figures").iterdir()} == FIGURES
    for name, subset in (("train", "XS"), ("validation", "DEV"), ("test", "TEST")):
        seconds = np.array([one["end_time"] - one["begin_time"] for one in speech(segments, subset)])
        part = found["parts"][name]
        assert part["utterances"] == len(seconds)
        expected = [seconds.sum() / 3600, seconds.min(), np.median(seconds), seconds.mean(), np.percentile(seconds, 95)]
        assert list(part.values())[1:-1] == pytest.approx(expected, abs=1 / RATE_HZ)
        assert part["max_s"] == pytest.approx(seconds.max(), abs=1 / RATE_HZ)
    parts = [one for one in segments.values() if {"{XS}", "{DEV}", "{TEST}"} & set(one["subsets"])]
    dropped = {row["id"]: row["reason"] for row in table(folder / "dropped.csv")}
    assert dropped.keys() == {one["sid"] for one in parts if garbage(one)}
    assert found["dropped"] == {"a garbage tag, which marks a lack of speech": len(dropped)}
    assert f"train       114 utterances, {found['parts']['train']['hours']:.2f} h" in printed
    assert f"{len(dropped)} dropped: a garbage tag" in printed


def test_an_epoch_is_reported_as_its_batches_come(corpus):
    _, built, found, printed = corpus
    batches = list(built.data.parts["train"].shuffled(built.trainer.training_batch, torch.Generator().manual_seed(0)))
    shapes = [batch.features_BTF.shape for batch in batches]
    unpadded = sum(int(batch.lengths_B.sum()) for batch in batches)
    sizes, frames, features = zip(*shapes, strict=True)
    assert found["epoch"] == {
        "batches": len(batches),
        "utterances": [min(sizes), max(sizes)],
        "frames": [min(frames), max(frames)],
        "features": features[0],
        "padding_share": pytest.approx(1 - unpadded / sum(size * long for size, long, _ in shapes)),
    }
    assert f"{len(batches)} batches of" in printed


def test_characters_of_a_corpus_are_those_of_its_transcripts(corpus, segments):
    folder, _, found, printed = corpus
    expected = Counter()
    for one in speech(segments, "XS"):
        words = one["text_tn"].lower().replace("-", " ").split()
        expected.update(" ".join(word for word in words if not word.startswith("<")))
    rows = table(folder / "characters.csv")
    assert {row["character"].replace("␣", " "): int(row["count"]) for row in rows if row["count"] != "0"} == expected
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)
    assert found["targets"] == {"transcripts": 114, "symbols": 28, "missing": sorted(set("z'jqx") - expected.keys())}
    assert "114 of 114 transcripts" in printed


def test_inspect_plays_what_training_reads(corpus, segments):
    listening_is_at_speed(1.0, corpus.folder, segments)


@pytest.mark.usefixtures("undrawn")
def test_a_speed_change_is_audible(inspect, segments, tmp_path):
    inspect(tmp_path, *GIGASPEECH, "augment.speeds=[0.9]", "listen=4")
    listening_is_at_speed(0.9, tmp_path, segments)


def listening_is_at_speed(speed, folder, segments):
    rows = table(folder / "listening.csv")
    assert len(rows) == len({row["id"] for row in rows}) == 4
    by_length = sorted(speech(segments, "XS"), key=lambda one: one["end_time"] - one["begin_time"])
    assert [row["id"] for row in rows[:2]] == [by_length[0]["sid"], by_length[-1]["sid"]]
    for row in rows:
        segment = segments[row["id"]]
        assert float(row["speed"]) == speed
        words = segment["text_tn"].lower().split()
        assert row["text"] == " ".join(word for word in words if not word.startswith("<"))
        played_N, rate_hz = soundfile.read(folder / "listening" / row["file"], dtype="float32")
        first, end = (round(segment[key] * RATE_HZ) for key in ("begin_time", "end_time"))
        assert (rate_hz, len(played_N)) == (RATE_HZ, -(-(end - first) * 100 // round(100 * speed)))
        assert float(row["seconds"]) == len(played_N) / RATE_HZ
        if speed == 1:
            spoken_N, _ = soundfile.read(segment["path"], start=first, stop=end, dtype="float32")
            np.testing.assert_allclose(played_N, spoken_N, atol=2e-3)  # Opus decodes a little differently after a seek


@pytest.mark.usefixtures("undrawn")
def test_of_a_large_corpus_all_that_was_dropped_is_named_and_some_transcripts_are_read(
    inspect, segments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(selection, "_NAMED", 2)
    monkeypatch.setattr(inspection, "_MOST_TRANSCRIPTS", 20)
    _, built, found, printed = inspect(tmp_path, *GIGASPEECH, "dataset.limits.max_s=5", "listen=0")
    assert not (tmp_path / "listening").exists()
    rows = table(tmp_path / "dropped.csv")
    long = {one["sid"] for one in speech(segments, "XS") if one["end_time"] - one["begin_time"] > 5}
    assert {row["id"] for row in rows if "max_s=5" in row["reason"]} == long
    assert found["dropped"]["longer than dataset.limits.max_s=5"] == len(long)
    assert len(rows) == len({row["id"] for row in rows}) == sum(found["dropped"].values())
    assert f"and {len(long) - 2} more" in [item.id for item in built.data.dropped]
    Prepare()(built)
    assert f"dropped in total  {len(rows)}\n" in capsys.readouterr().out
    short = {one["sid"]: one for one in speech(segments, "XS") if one["sid"] not in long}
    assert f"20 of {len(short)} transcripts" in printed
    longest = sorted(len(one["text_tn"]) for one in short.values())[-20:]
    assert 0 < sum(int(row["count"]) for row in table(tmp_path / "characters.csv")) <= sum(longest)


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_read_is_passed_over_and_named(inspect, gigaspeech_root, segments, tmp_path):
    root = tmp_path / "release"
    root.mkdir()
    (root / "GigaSpeech.json").write_bytes((gigaspeech_root / "GigaSpeech.json").read_bytes())
    for one in segments.values():
        path = root / one["path"].relative_to(gigaspeech_root)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copyfile(one["path"], path)
    longest = max(speech(segments, "XS"), key=lambda one: one["end_time"] - one["begin_time"])
    broken = root / longest["path"].relative_to(gigaspeech_root)
    broken.unlink()
    broken.write_bytes(b"no audio")
    inspect(tmp_path, *GIGASPEECH, f"dataset.root={root}", "listen=2")
    played = [row["id"] for row in table(tmp_path / "listening.csv")]
    assert len(played) == 2
    assert longest["sid"] not in played
    reasons = {row["id"]: row["reason"] for row in table(tmp_path / "dropped.csv")}
    assert "is not readable as audio" in reasons[longest["sid"]]


def test_inspect_lists_and_plays_digits_from_their_files(digits):
    folder, built, found, _ = digits
    paths = {path.stem: path for path in (BUNDLED / "digits_demo").glob("*.flac")}
    seconds = {name: soundfile.info(path).duration for name, path in paths.items()}
    train = {name: one for name, one in seconds.items() if int(name.split("_")[2]) >= 4}
    assert found["parts"]["train"]["utterances"] == len(train) == 960
    assert found["parts"]["train"]["hours"] == pytest.approx(sum(train.values()) / 3600)
    assert [(row["class"], row["count"]) for row in table(folder / "characters.csv")] == [
        (str(digit), "96") for digit in range(10)
    ]
    assert found["targets"] == {"transcripts": 960, "symbols": 10, "missing": []}
    assert table(folder / "dropped.csv") == []
    rows = table(folder / "listening.csv")
    assert [row["seconds"] for row in rows[:2]] == [str(min(train.values())), str(max(train.values()))]
    for row in rows:
        played_N, rate_hz = soundfile.read(folder / "listening" / row["file"])
        np.testing.assert_array_equal(played_N, soundfile.read(paths[row["id"]])[0])
        assert (rate_hz, row["text"]) == (built.dataset.sample_rate_hz, row["id"][0])


def test_inspect_lists_and_plays_strings_as_they_are_joined(inspect, tmp_path):
    _, built, found, _ = inspect(tmp_path, *STRINGS, "listen=5")
    train = built.data.parts["train"]
    seconds = [len(train.waveform(number)) / built.dataset.sample_rate_hz for number in range(len(train))]
    assert found["parts"]["train"]["hours"] * 3600 == pytest.approx(sum(seconds))
    for row in table(tmp_path / "listening.csv"):
        number = train.ids.index(row["id"])
        assert (row["text"], float(row["seconds"])) == (train.strings[number].text, seconds[number])
        played_N, _ = soundfile.read(tmp_path / "listening" / row["file"], dtype="float32")
        np.testing.assert_array_equal(played_N, train.waveform(number))
    counts = Counter("".join(string.text for string in train.strings))
    assert found["targets"]["missing"] == [symbol for symbol in "'abcdefghijklmnopqrstuvwxyz" if not counts[symbol]]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides_what_is_shown(inspect, digits, tmp_path, seed):
    inspect(tmp_path, "dataset=digits_demo", "listen=3", f"seed={seed}")
    for name in ("listening.csv", "figures/batch.png"):
        assert ((tmp_path / name).read_bytes() == (digits.folder / name).read_bytes()) == (seed == 0)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("listen=-1", "^listen=-1: expected an integer of at least 0, change listen$"),
        ("listen=few", "listen=few: expected an integer"),
    ],
)
def test_a_wrong_number_to_listen_to_is_reported_in_one_sentence(compose, tmp_path, override, expected):
    with pytest.raises(ValueError, match=expected):
        experiment(compose("action=inspect", override), tmp_path).build("action")


def test_an_unknown_key_fails(compose):
    with pytest.raises(ConfigCompositionException):
        compose("action=inspect", "listne=3")
