"""Three ways to split spoken digits into train, validation and test; each recording is in at most one part."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations

from speech_exp.data.recordings import Recording

SPLITS = ("train", "validation", "test")
Parts = dict[str, list[Recording]]


def split_official(recordings: Sequence[Recording], ranges: Mapping[str, Sequence[int]]) -> Parts:
    """Split by recording index; `ranges` gives the first and last index of each part, inclusive."""
    for first, second in combinations(SPLITS, 2):
        if max(ranges[first][0], ranges[second][0]) <= min(ranges[first][1], ranges[second][1]):
            raise ValueError(
                f"dataset.index_ranges {first}={list(ranges[first])} and {second}={list(ranges[second])} overlap: "
                f"a recording may be in only one part, change dataset.index_ranges.{second}"
            )
    return {
        name: [recording for recording in recordings if ranges[name][0] <= recording.index <= ranges[name][1]]
        for name in SPLITS
    }


def split_random(recordings: Sequence[Recording], shares: Mapping[str, float], seed: int) -> Parts:
    """Split at random within each digit: after shuffling, the test share comes first, then validation, then train."""
    generator = random.Random(seed)
    parts: Parts = {name: [] for name in SPLITS}
    for label in sorted({recording.label for recording in recordings}):
        members = [recording for recording in recordings if recording.label == label]
        generator.shuffle(members)
        num_test, num_validation = (round(len(members) * shares[name]) for name in ("test", "validation"))
        parts["test"] += members[:num_test]
        parts["validation"] += members[num_test : num_test + num_validation]
        parts["train"] += members[num_test + num_validation :]
    order = {recording.id: position for position, recording in enumerate(recordings)}
    return {name: sorted(members, key=lambda recording: order[recording.id]) for name, members in parts.items()}


def split_speaker(
    recordings: Sequence[Recording],
    test_speaker: str | None,
    validation_speaker: str | None,
    validation_range: Sequence[int],
) -> Parts:
    """Split by speaker: one is the test set; validation is a second speaker, or an index range of all other speakers."""
    speakers = sorted({recording.speaker for recording in recordings})
    if test_speaker not in speakers:
        raise ValueError(
            f"dataset.test_speaker={test_speaker}: dataset.split=speaker needs one of {', '.join(speakers)}, "
            f"set dataset.test_speaker"
        )
    if validation_speaker is not None and (validation_speaker not in speakers or validation_speaker == test_speaker):
        others = [speaker for speaker in speakers if speaker != test_speaker]
        raise ValueError(
            f"dataset.validation_speaker={validation_speaker}: expected one of {', '.join(others)} "
            f"(not the test speaker) or null, change dataset.validation_speaker"
        )
    parts: Parts = {name: [] for name in SPLITS}
    for recording in recordings:
        if validation_speaker is None:
            held_out = validation_range[0] <= recording.index <= validation_range[1]
        else:
            held_out = recording.speaker == validation_speaker
        parts["test" if recording.speaker == test_speaker else "validation" if held_out else "train"].append(recording)
    return parts
