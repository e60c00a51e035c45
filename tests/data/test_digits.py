"""Where a data set of digits is searched for, its content, and errors if it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from speech_exp.data import root as data_root
from speech_exp.data.audio import AudioError
from speech_exp.data.digits import Digits
from speech_exp.data.recordings import fingerprint, index_recordings, read_contents
from speech_exp.data.root import candidate_roots, find_root

FSDD_CONFIG: Any = OmegaConf.load(Path(__file__).parents[2] / "conf" / "dataset" / "fsdd.yaml")


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the user's cache folder, which must not affect a test."""
    folder = tmp_path / "user_cache"
    monkeypatch.setattr(data_root, "user_cache", lambda: folder)
    return folder


def test_the_pinned_fingerprint_is_that_of_the_real_recordings(fsdd_root: Path) -> None:
    recordings, dropped = index_recordings(fsdd_root / "recordings")
    assert (len(recordings), dropped) == (3000, [])
    assert fingerprint(recordings, read_contents(recordings)) == FSDD_CONFIG.download.sha256


def test_loading_gives_recordings_contents_and_parts_that_belong_together(
    tiny_digits: Callable[..., Digits], tiny_root: Path
) -> None:
    loaded = tiny_digits().recorded
    assert len(loaded.recordings) == len(loaded.contents) == 54
    assert {name: len(members) for name, members in loaded.parts.items()} == {"train": 36, "validation": 9, "test": 9}
    assert loaded.fingerprint == fingerprint(loaded.recordings, loaded.contents)
    for position in (0, 17, 53):
        written, _ = soundfile.read(loaded.recordings[position].path, dtype="float32")
        np.testing.assert_array_equal(loaded.waveform(position), written)


def test_a_wrong_name_is_dropped_and_a_bad_file_fails_when_it_is_read(
    tiny_digits: Callable[..., Digits], tiny_root: Path
) -> None:
    (tiny_root / "recordings" / "three_anna_1.wav").write_bytes(b"x")
    (tiny_root / "recordings" / "0_anna_0.wav").write_bytes(b"")
    loaded = tiny_digits().recorded
    assert [item.id for item in loaded.dropped] == ["three_anna_1.wav"]
    assert loaded.recordings[0].id == "0_anna_0"
    with pytest.raises(AudioError, match=r"^0_anna_0\.wav is empty"):
        loaded.waveform(0)


def test_each_split_is_reached(tiny_digits: Callable[..., Digits]) -> None:
    by_speaker = tiny_digits(split="speaker", test_speaker="bert").recorded.parts
    assert {item.speaker for item in by_speaker["test"]} == {"bert"}
    assert {item.index for item in by_speaker["validation"]} == {0, 1}  # range unseen_validation
    both = tiny_digits(split="speaker", test_speaker="bert", validation_speaker="cleo").recorded.parts
    assert {item.speaker for item in both["validation"]} == {"cleo"}
    by_seed = [tiny_digits(split="random", split_seed=seed).recorded.parts for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


@pytest.mark.parametrize("split", ["official", "random"])
@pytest.mark.parametrize("key", ["test_speaker", "validation_speaker"])
def test_a_speaker_without_the_split_by_speaker_is_refused(
    tiny_digits: Callable[..., Digits], split: str, key: str
) -> None:
    with pytest.raises(
        ValueError,
        match=f"dataset.split={split} takes no .* speaker, got .*{key}=anna.*: add dataset.split=speaker",
    ):
        tiny_digits(split=split, **{key: "anna"})


def test_a_split_that_leaves_a_part_empty_is_refused(tiny_digits: Callable[..., Digits]) -> None:
    ranges = {"test": [0, 0], "validation": [50, 60], "train": [1, 5], "unseen_validation": [0, 1]}
    with pytest.raises(ValueError, match=r"dataset\.split=official leaves no recording for validation in .*change"):
        _ = tiny_digits(index_ranges=ranges).recorded
    with pytest.raises(ValueError, match=r"dataset\.split=random leaves no recording for train"):
        _ = tiny_digits(split="random", shares={"test": 0.5, "validation": 0.5}).recorded


def test_a_folder_without_recordings_is_refused(tiny_digits: Callable[..., Digits], tmp_path: Path) -> None:
    (tmp_path / "other" / "recordings").mkdir(parents=True)
    (tmp_path / "other" / "recordings" / "speech.wav").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"recordings contains no recording named .*\.wav or \.flac: change dataset\.root"
    ):
        _ = tiny_digits(root=str(tmp_path / "other")).recorded


def test_a_missing_data_set_error_names_the_places_searched_and_the_remedies(
    tiny_digits: Callable[..., Digits], tmp_path: Path, own_user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH_EXP_DATA", str(tmp_path / "shared"))
    with pytest.raises(ValueError, match="dataset=tiny was not found at") as caught:
        _ = tiny_digits(root=None).recorded
    message = str(caught.value)
    for part in (
        str(tmp_path / "shared" / "tiny" / "recordings"),
        str(own_user_cache / "datasets" / "tiny" / "recordings"),
        "set dataset.root=FOLDER",
        "SPEECH_EXP_DATA",
        "action=prepare dataset=tiny",
        "dataset=digits_demo needs no download",
    ):
        assert part in message
    assert "\n" not in message


def test_the_root_of_the_config_wins_over_the_environment_and_that_over_the_cache(
    tmp_path: Path, own_user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "given", tmp_path / "shared" / "tiny", own_user_cache / "datasets" / "tiny"]
    for place in places:
        (place / "recordings").mkdir(parents=True)
    monkeypatch.setenv("SPEECH_EXP_DATA", str(tmp_path / "shared"))
    assert find_root("tiny", str(places[0]), "recordings") == places[0].resolve()
    assert find_root("tiny", None, "recordings") == places[1].resolve()
    (places[1] / "recordings").rmdir()
    assert find_root("tiny", None, "recordings") == places[2]
    monkeypatch.delenv("SPEECH_EXP_DATA")
    assert candidate_roots("tiny", None) == places[2:]


def test_dataset_root_without_the_data_is_not_replaced_by_another_place(
    tiny_digits: Callable[..., Digits], tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH_EXP_DATA", str(tiny_root.parent))  # holds tiny/recordings
    with pytest.raises(ValueError, match=r"dataset=tiny was not found at .*typo"):
        _ = tiny_digits(root=str(tmp_path / "typo")).recorded


def test_prepare_finds_a_data_set_that_needs_no_download(tiny_digits: Callable[..., Digits], tiny_root: Path) -> None:
    assert tiny_digits().fetch() == tiny_root.resolve()
