"""Strings use every recording of their part about equally, have one speaker, and depend only on the seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.data.digits import Digits
from speech_exp.data.recordings import Recording
from speech_exp.data.string_rules import WORDS, DigitString, StringRules
from speech_exp.data.strings import DigitStrings

RATE_HZ = 8000
RULES = StringRules([3, 7], [0.05, 0.3], [0.0, 0.2], noise_db=0.0, evaluation_passes=3, seed=0)


def members(counts: dict[str, int], first: int = 0) -> dict[int, Recording]:
    """Return `counts` recordings of each speaker, with the speakers shuffled and the digits in turn."""
    speakers = [speaker for speaker, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(speakers)
    return {
        first + 3 * number: Recording(f"r{number}", Path("r"), number % 10, speaker, number)
        for number, speaker in enumerate(speakers)
    }


def used(strings: list[DigitString]) -> Counter[int]:
    return Counter(position for string in strings for position in string.recordings)


ranges = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(sorted)


@given(
    ranges, st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1), st.integers(1, 3), st.integers()
)
def test_every_string_is_of_one_speaker_and_every_recording_is_used(
    digits: list[int], counts: dict[str, int], passes: int, seed: int
) -> None:
    rules, given_members = replace(RULES, digits=digits), members(counts)
    strings = rules.draw(given_members, RATE_HZ, random.Random(seed), passes)
    assert len({string.id for string in strings}) == len(strings) == passes * sum(map(rules.count, counts.values()))
    for string in strings:
        recordings = [given_members[position] for position in string.recordings]
        assert {recording.speaker for recording in recordings} == {string.speaker}
        assert digits[0] <= len(recordings) <= digits[1]
        assert string.text == " ".join(WORDS[recording.label] for recording in recordings)
        assert len(string.pauses) == len(recordings) + 1
    times = used(strings)
    assert set(times) == set(given_members)
    for speaker, count in counts.items():
        own = [times[position] for position, recording in given_members.items() if recording.speaker == speaker]
        if any(number * digits[0] <= count <= number * digits[1] for number in range(1, count + 1)):
            assert set(own) == {passes}
        else:
            # too few for strings of this length: some recordings are used again, at most once if there is more than one string
            most = 1 if count >= digits[0] else math.ceil(digits[0] / count) - 1
            assert passes <= min(own) and max(own) <= passes * (1 + most)


@given(st.integers())
def test_pauses_keep_their_ranges_and_find_enough_noise(seed: int) -> None:
    rules = replace(RULES, pause_s=[0.1, 0.2], edge_s=[0.25, 0.5])
    for string in rules.draw(members({"a": 40}), RATE_HZ, random.Random(seed)):
        assert all(2000 <= pause <= 4000 for pause in (string.pauses[0], string.pauses[-1]))
        assert all(800 <= pause <= 1600 for pause in string.pauses[1:-1])
        assert 0 <= string.noise_start <= rules.noise_samples(RATE_HZ) - sum(string.pauses)


def test_all_lengths_and_pauses_occur() -> None:
    strings = RULES.draw(members({"a": 2400}), RATE_HZ, random.Random(0))
    lengths = Counter(len(string.recordings) for string in strings)
    assert set(lengths) == set(range(3, 8))
    assert min(lengths.values()) > len(strings) / 5 / 2  # 96 expected, deviation 9
    between = [pause for string in strings for pause in string.pauses[1:-1]]
    assert min(between) < 420 and max(between) > 2380
    assert len(set(between)) > 1000


def test_the_seed_decides_and_epochs_differ() -> None:
    recordings = members({"a": 50, "b": 30})
    epochs = [RULES.draw(recordings, RATE_HZ, random.Random(seed)) for seed in range(5)]
    assert epochs == [RULES.draw(recordings, RATE_HZ, random.Random(seed)) for seed in range(5)]
    chosen = [{string.recordings for string in epoch} for epoch in epochs]
    assert all(not chosen[one] & chosen[other] for one in range(5) for other in range(one))
    assert len({len(epoch) for epoch in epochs}) == 1


def test_fixed_strings_never_change() -> None:
    recordings = members({"a": 20, "b": 12})
    for part in ("train", "validation", "test"):
        assert RULES.fixed(part, recordings, RATE_HZ) == RULES.fixed(part, recordings, RATE_HZ)
    first = RULES.fixed("test", recordings, RATE_HZ)[0]
    # fixed values: results of different machines and versions must be over the same strings
    assert (first.id, first.pauses) == ("0_a_63860", (423, 2037, 1841, 1585, 1145, 686))
    assert RULES.fixed("validation", recordings, RATE_HZ) != RULES.fixed("test", recordings, RATE_HZ)
    assert RULES.fixed("test", recordings, RATE_HZ) != replace(RULES, seed=1).fixed("test", recordings, RATE_HZ)


def test_evaluation_uses_each_recording_in_each_pass_and_training_once() -> None:
    recordings = members({"a": 50, "b": 50})
    assert set(used(RULES.fixed("train", recordings, RATE_HZ)).values()) == {1}
    for part in ("validation", "test"):
        strings = RULES.fixed(part, recordings, RATE_HZ)
        assert set(used(strings).values()) == {3}
        assert len({string.recordings for string in strings}) == len(strings) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digits": [7, 3]}, r"dataset.strings.digits=\[7, 3\]: expected the least and the most, from 1 on"),
        ({"digits": [0, 3]}, "dataset.strings.digits"),
        ({"digits": [3]}, "dataset.strings.digits"),
        ({"pause_s": [-0.1, 0.3]}, "dataset.strings.pause_s"),
        ({"pause_s": [0.1, math.inf]}, "dataset.strings.pause_s"),
        ({"edge_s": [math.nan, 0.3]}, "dataset.strings.edge_s"),
    ],
)
def test_rules_without_meaning_are_reported_in_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RULES, **change)


@pytest.fixture
def tiny_strings(tiny_digits: Callable[..., Digits]) -> Callable[..., DigitStrings]:
    def make(**changes: Any) -> DigitStrings:
        own = vars(tiny_digits())
        names = (
            "bundled", "root", "folder", "sample_rate_hz", "split", "index_ranges", "shares", "split_seed", "test_speaker",
            "validation_speaker", "synthetic_voices", "max_dropped_share", "download",
        )  # fmt: skip
        arguments = {name: own[name] for name in names}
        return DigitStrings(name="tiny_strings", recordings_of="tiny", strings=RULES, **{**arguments, **changes})

    return make


@pytest.mark.parametrize("split", ["official", "random", "speaker"])
def test_parts_are_those_of_the_source(
    tiny_strings: Callable[..., DigitStrings], tiny_digits: Callable[..., Digits], split: str
) -> None:
    speaker = {"test_speaker": "cleo"} if split == "speaker" else {}
    dataset = tiny_strings(split=split, **speaker)
    loaded = dataset.recorded
    assert loaded.parts == tiny_digits(split=split, **speaker).recorded.parts
    assert (dataset.name, dataset.split, dataset.test_speaker) == ("tiny_strings", split, speaker.get("test_speaker"))
    position = {recording.id: number for number, recording in enumerate(loaded.recordings)}
    parts = {}
    for name, recordings in loaded.parts.items():
        own = {position[recording.id]: recording for recording in recordings}
        strings = RULES.fixed(name, own, RATE_HZ)
        parts[name] = set(used(strings))
        assert parts[name] == set(own)
        if name == "train":
            assert len(strings) == dataset.utterances_per_epoch
    assert not parts["train"] & parts["validation"]
    assert not (parts["train"] | parts["validation"]) & parts["test"]


def test_the_source_is_looked_for_by_its_own_name(
    tiny_strings: Callable[..., DigitStrings], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH_EXP_DATA", str(tiny_root.parent))
    dataset = tiny_strings(root=None)
    assert len(dataset.recorded.recordings) == 54
    assert dataset.fetch() == tiny_root


def test_synthetic_voices_are_refused(tiny_strings: Callable[..., DigitStrings]) -> None:
    with pytest.raises(ValueError, match=r"dataset\.synthetic_voices=10 cannot be used with dataset=tiny_strings"):
        tiny_strings(synthetic_voices=10)


def test_fsdd_gives_the_counts_of_the_documentation(fsdd_root: Path) -> None:
    ranges = {"test": [0, 4], "validation": [5, 9], "train": [10, 49], "unseen_validation": [0, 4]}
    shares = {"test": 0.1, "validation": 0.1}
    dataset = DigitStrings(
        "fsdd_strings", False, str(fsdd_root), "recordings", RATE_HZ, "official", ranges, shares, 0, None, None, 0, 0.01,
        None, "fsdd", RULES,
    )  # fmt: skip
    loaded = dataset.recorded
    assert dataset.utterances_per_epoch == 480
    for name, count in {"train": 480, "validation": 180, "test": 180}.items():
        own = {loaded.recordings.index(recording): recording for recording in loaded.parts[name]}
        strings = RULES.fixed(name, own, RATE_HZ)
        assert len(strings) == count
        assert set(used(strings).values()) == {1 if name == "train" else 3}
