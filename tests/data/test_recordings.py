"""The index of a folder by file name, and the fingerprint of its content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from speech_exp.data.recordings import Recording, fingerprint, index_recordings, read_contents


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def test_recordings_are_ordered_by_digit_speaker_and_number(tmp_path: Path) -> None:
    touch(tmp_path, "1_ann_0.wav", "0_bob_10.wav", "0_bob_9.flac", "0_ann_3.WAV", "0_bob_100.wav")
    recordings, dropped = index_recordings(tmp_path)
    assert [recording.id for recording in recordings] == ["0_ann_3", "0_bob_9", "0_bob_10", "0_bob_100", "1_ann_0"]
    assert recordings[1] == Recording("0_bob_9", tmp_path / "0_bob_9.flac", label=0, speaker="bob", index=9)
    assert dropped == []


@pytest.mark.parametrize(
    "name", ["10_ann_0.wav", "a_ann_0.wav", "0_ann.wav", "0_ann_x.wav", "0__0.wav", "0_ann_0_1.wav", "._0_ann_0.wav"]
)
def test_a_wrong_name_is_dropped_and_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "0_ann_0.wav", name)
    recordings, dropped = index_recordings(tmp_path)
    assert [recording.id for recording in recordings] == ["0_ann_0"]
    assert [(item.id, item.reason) for item in dropped] == [(name, "name is not {digit}_{speaker}_{index}")]


def test_files_that_are_not_recordings_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "0_ann_0.wav", "README.md", "0_ann_1.txt", "0_ann_2")
    assert [[item.id for item in found] for found in index_recordings(tmp_path)] == [["0_ann_0"], []]


def test_the_same_recording_in_two_formats_counts_once(tmp_path: Path) -> None:
    recordings, dropped = index_recordings(touch(tmp_path, "0_ann_0.wav", "0_ann_0.flac"))
    assert [recording.path.name for recording in recordings] == ["0_ann_0.flac"]
    assert [(item.id, item.reason) for item in dropped] == [
        ("0_ann_0.wav", "a second file of the same name with another suffix")
    ]


def test_any_changed_added_or_removed_recording_changes_the_fingerprint(tmp_path: Path) -> None:
    recordings, _ = index_recordings(touch(tmp_path, "0_ann_0.wav", "0_ann_1.wav", "0_ann_2.wav"))
    contents = read_contents(recordings)
    changed = [
        fingerprint(recordings, contents),
        fingerprint(recordings, [contents[0] + b"x", *contents[1:]]),
        fingerprint(recordings, [contents[1], contents[0], contents[2]]),
        fingerprint(recordings[1:], contents[1:]),
        fingerprint(recordings[:2], contents[:2]),
        fingerprint([replace(recordings[0], id="0_ann_7"), *recordings[1:]], contents),
        # the last byte of one content moved to the front of the next
        fingerprint(recordings, [contents[0][:-1], contents[0][-1:] + contents[1], contents[2]]),
        # the second recording hidden in the first
        fingerprint([recordings[0], recordings[2]], [contents[0] + b"0_ann_1:" + contents[1], contents[2]]),
        fingerprint([recordings[0], recordings[2]], [contents[0] + b"0_ann_1:11:" + contents[1], contents[2]]),
    ]
    assert len(set(changed)) == len(changed)


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        recordings, _ = index_recordings(touch(tmp_path / place, "0_ann_0.wav", "1_bob_1.wav"))
        found.append(fingerprint(recordings, read_contents(recordings)))
    assert found[0] == found[1]
