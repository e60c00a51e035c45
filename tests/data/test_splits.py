"""No recording is in two parts and none is lost, for any data set and split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from speech_exp.data.recordings import Recording, index_recordings
from speech_exp.data.splits import SPLITS, Parts, split_official, split_random, split_speaker

CONFIG: Any = OmegaConf.load(Path(__file__).parents[2] / "conf" / "dataset" / "fsdd.yaml")
RANGES = OmegaConf.to_container(CONFIG.index_ranges)
SHARES = OmegaConf.to_container(CONFIG.shares)
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def recording(label: int, speaker: str, index: int) -> Recording:
    name = f"{label}_{speaker}_{index}"
    return Recording(name, Path(f"{name}.wav"), label, speaker, index)


FSDD = [recording(label, speaker, index) for label in range(10) for speaker in SPEAKERS for index in range(50)]

made_up = st.sets(
    st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 60)), min_size=1, max_size=150
).map(lambda names: [recording(*name) for name in sorted(names)])


def assert_disjoint_and_complete(parts: Parts, recordings: list[Recording]) -> None:
    assert tuple(parts) == SPLITS
    together = [item.id for name in SPLITS for item in parts[name]]
    assert sorted(together) == sorted(item.id for item in recordings)  # as lists, so that a duplicate would show


def ids(parts: Parts) -> dict[str, list[str]]:
    return {name: [item.id for item in members] for name, members in parts.items()}


# ---- official


@given(made_up)
def test_official_parts_are_disjoint_and_hold_all_within_the_ranges(recordings: list[Recording]) -> None:
    within = [item for item in recordings if item.index <= 49]
    parts = split_official(recordings, RANGES)
    assert_disjoint_and_complete(parts, within)
    assert all(item.index < 5 for item in parts["test"])
    assert all(5 <= item.index < 10 for item in parts["validation"])
    assert all(10 <= item.index < 50 for item in parts["train"])


def test_official_parts_of_fsdd_have_their_published_sizes(fsdd_root: Path) -> None:
    recordings, dropped = index_recordings(fsdd_root / "recordings")
    assert dropped == []
    parts = split_official(recordings, RANGES)
    assert_disjoint_and_complete(parts, recordings)
    assert {name: len(members) for name, members in parts.items()} == {"train": 2400, "validation": 300, "test": 300}
    for name in SPLITS:  # every digit of every speaker, equally often
        assert len(set(Counter((item.label, item.speaker) for item in parts[name]).values())) == 1


@pytest.mark.parametrize(
    ("part", "indices"), [("test", [0, 5]), ("test", [49, 49]), ("validation", [5, 10]), ("train", [9, 49])]
)
def test_ranges_that_share_an_index_are_refused(part: str, indices: list[int]) -> None:
    with pytest.raises(
        ValueError, match=r"dataset\.index_ranges .+=\[.+\] and .+=\[.+\] overlap: .*change dataset\.index_ranges"
    ) as caught:
        split_official(FSDD, {**RANGES, part: indices})
    assert f"{part}={indices}" in str(caught.value)


# ---- random


@given(made_up, st.integers(0, 2**32))
def test_random_parts_are_disjoint_complete_and_the_same_for_the_same_seed(
    recordings: list[Recording], seed: int
) -> None:
    parts = split_random(recordings, SHARES, seed)
    assert_disjoint_and_complete(parts, recordings)
    assert ids(split_random(recordings, SHARES, seed)) == ids(parts)
    for label, members in Counter(item.label for item in recordings).items():
        for name in ("test", "validation"):
            assert sum(item.label == label for item in parts[name]) == round(0.1 * members)


def test_random_parts_hold_every_digit_at_80_10_10() -> None:
    parts = split_random(FSDD, SHARES, seed=0)
    for name, each in {"train": 240, "validation": 30, "test": 30}.items():
        assert Counter(item.label for item in parts[name]) == dict.fromkeys(range(10), each)


def test_random_parts_differ_by_seed() -> None:
    assert len({tuple(ids(split_random(FSDD, SHARES, seed))["test"]) for seed in range(20)}) == 20


def test_random_parts_do_not_follow_speaker_or_index() -> None:
    test = split_random(FSDD, SHARES, seed=0)["test"]
    speakers = Counter(item.speaker for item in test)
    assert set(speakers) == set(SPEAKERS)
    # 300 of 3000 drawn: 50 a speaker, deviation 6.1 (hypergeometric within digits); 4 deviations
    assert all(abs(count - 50) < 25 for count in speakers.values())
    assert len({item.index for item in test}) > 40


# ---- speaker


@given(made_up, st.data())
def test_speaker_parts_are_disjoint_complete_and_hold_the_whole_speaker(
    recordings: list[Recording], data: st.DataObject
) -> None:
    speakers = sorted({item.speaker for item in recordings})
    test_speaker = data.draw(st.sampled_from(speakers))
    others = [speaker for speaker in speakers if speaker != test_speaker]
    validation_speaker = data.draw(st.sampled_from([None, *others]))
    parts = split_speaker(recordings, test_speaker, validation_speaker, RANGES["unseen_validation"])
    assert_disjoint_and_complete(parts, recordings)
    assert {item.speaker for item in parts["test"]} == {test_speaker}
    assert test_speaker not in {item.speaker for name in ("train", "validation") for item in parts[name]}
    if validation_speaker is not None:
        assert {item.speaker for item in parts["validation"]} == {validation_speaker}
        assert validation_speaker not in {item.speaker for item in parts["train"]}
    else:
        assert all(item.index <= 4 for item in parts["validation"])
        assert all(item.index > 4 for item in parts["train"])


@pytest.mark.parametrize("test_speaker", SPEAKERS)
def test_speaker_parts_of_fsdd_have_their_sizes(test_speaker: str, fsdd_root: Path) -> None:
    recordings, _ = index_recordings(fsdd_root / "recordings")
    other = next(speaker for speaker in SPEAKERS if speaker != test_speaker)
    for validation_speaker, sizes in ((None, [2250, 250, 500]), (other, [2000, 500, 500])):
        parts = split_speaker(recordings, test_speaker, validation_speaker, RANGES["unseen_validation"])
        assert_disjoint_and_complete(parts, recordings)
        assert [len(parts[name]) for name in SPLITS] == sizes


@pytest.mark.parametrize("test_speaker", ["nobody", None, "Theo"])
def test_a_test_speaker_who_is_not_there_is_refused(test_speaker: str | None) -> None:
    with pytest.raises(
        ValueError,
        match=f"dataset.test_speaker={test_speaker}: .* needs one of george, jackson, .*, set dataset.test_speaker",
    ):
        split_speaker(FSDD, test_speaker, None, (0, 4))


@pytest.mark.parametrize("validation_speaker", ["nobody", "theo"])
def test_a_validation_speaker_who_is_not_there_or_the_test_speaker_is_refused(validation_speaker: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"dataset.validation_speaker={validation_speaker}: expected one of george, .*nicolas, yweweler",
    ):
        split_speaker(FSDD, "theo", validation_speaker, (0, 4))
