"""A release that is not whole is one sentence that names what is wrong where, and what to do; nothing is prepared of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speech_exp.data.gigaspeech import GigaSpeech
from speech_exp.data.gigaspeech_release import Release

SEGMENT = {
    "sid": "A_S0", "speaker": "N/A", "begin_time": 0.5, "end_time": 2.0, "text_tn": "HI", "subsets": ["{XS}", "{S}"],
}  # fmt: skip
AUDIO = {
    "aid": "A", "path": "audio/A.opus", "md5": "0", "duration": 2.0, "sample_rate": 16000, "channels": 1,
    "subsets": ["{XS}", "{S}"], "segments": [SEGMENT],
}  # fmt: skip


def release_of(root: Path, *audios: dict[str, Any]) -> Path:
    """Release whose audio files are empty."""
    (root / "audio").mkdir(exist_ok=True)
    for audio in audios:
        if isinstance(audio.get("path"), str):
            (root / audio["path"]).touch()
    (root / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": audios}))
    return root


def test_a_sound_release_gives_its_cuts(tmp_path: Path) -> None:
    read_mb: list[float] = []
    release = Release(release_of(tmp_path, AUDIO), ("xs",), read_mb.append)
    ((cut, subsets, md5),) = release.cuts()
    assert (cut.id, cut.start, cut.duration, cut.supervisions[0].text) == ("A_S0", 0.5, 1.5, "HI")
    assert (subsets, md5) == (["xs", "s"], "0")
    assert sum(read_mb) * 1e6 == pytest.approx(release.path.stat().st_size)
    assert list(Release(tmp_path, ("m", "dev")).cuts()) == []


@pytest.mark.parametrize("key", list(AUDIO))
def test_a_missing_field_of_an_audio_is_named(tmp_path: Path, key: str) -> None:
    audio = {other: value for other, value in AUDIO.items() if other != key}
    name = "audio number 1" if key == "aid" else "audio A"
    release = Release(release_of(tmp_path, {**AUDIO, "aid": "B"}, audio), ("xs",))
    with pytest.raises(
        ValueError, match=rf"GigaSpeech\.json: {name} has no field {key}: replace the file, or download"
    ):
        list(release.cuts())


@pytest.mark.parametrize("key", list(SEGMENT))
def test_a_missing_field_of_a_segment_is_named(tmp_path: Path, key: str) -> None:
    segment = {other: value for other, value in SEGMENT.items() if other != key}
    release = Release(release_of(tmp_path, {**AUDIO, "segments": [SEGMENT, segment]}), ("xs",))
    with pytest.raises(
        ValueError, match=rf"segment number 1 of audio A has no field {key}: replace the file, or download"
    ):
        list(release.cuts())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": "long"}, "field duration of audio A is 'long', expected a number"),
        ({"segments": None}, "field segments of audio A is None, expected list"),
        ({"subsets": ["{XXS}"]}, r"audio A is in the unknown subset '{XXS}', expected one of {XS}, {S}, {M}, {L}, {XL}, {DEV}, {TEST}"),
        ({"segments": [{**SEGMENT, "subsets": ["S"]}]}, "segment A_S0 of audio A is in the unknown subset 'S'"),
        ({"segments": [{**SEGMENT, "text_tn": 7}]}, "field text_tn of segment number 0 of audio A is 7, expected str"),
        ({"segments": [{**SEGMENT, "begin_time": 3.0, "end_time": 4.0}]}, "lasts from 3.0 to 4.0 s in a recording of 2.0 s"),
        ({"segments": [{**SEGMENT, "begin_time": 2.0}]}, "lasts from 2.0 to 2.0 s"),
        ({"segments": [{**SEGMENT, "begin_time": -0.1}]}, "lasts from -0.1 to 2.0 s"),
    ],
)  # fmt: skip
def test_a_field_without_meaning_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    release = Release(release_of(tmp_path, {**AUDIO, **change}), ("xs",))
    with pytest.raises(ValueError, match=message) as caught:
        list(release.cuts())
    assert str(tmp_path / "GigaSpeech.json") in str(caught.value)
    assert "dataset.password=PASSWORD" in str(caught.value)


def test_a_segment_may_end_a_rounding_after_its_recording(tmp_path: Path) -> None:
    release = Release(release_of(tmp_path, {**AUDIO, "duration": 1.9995}), ("xs",))
    assert len(list(release.cuts())) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_not_whole_json(tmp_path: Path, share: float) -> None:
    release = Release(release_of(tmp_path, AUDIO, {**AUDIO, "aid": "B"}), ("xs",))
    content = release.path.read_bytes()
    release.path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"GigaSpeech\.json is not whole JSON \(.*\): replace it, or download it"):
        list(release.cuts())


@pytest.mark.parametrize("content", ["{}", '{"audios": []}', "[]"])
def test_a_file_without_audios_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "GigaSpeech.json").write_text(content)
    with pytest.raises(ValueError, match=r"GigaSpeech\.json lists no audio \(field audios\)"):
        list(Release(tmp_path, ("xs",)).cuts())


def test_missing_metadata_and_unknown_subsets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GigaSpeech\.json is missing: set dataset\.root to the folder that holds it"):
        list(Release(tmp_path, ("xs",)).cuts())
    with pytest.raises(ValueError, match=r"dataset\.subset=xxl is unknown: expected one of xs, s, m, l, xl$"):
        Release(tmp_path, ("xxl",))


def prepared(folder: Path) -> list[str]:
    return [
        path.name
        for path in folder.rglob("*")
        if not path.name.endswith(".lock") and not path.name.startswith("gigaspeech-mini-")
    ]


def test_missing_audio_is_counted_and_nothing_is_prepared(
    small_release: Path, tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]
) -> None:
    root = tmp_path / "release"
    shutil.copytree(small_release, root)
    shutil.rmtree(root / "audio/podcast")
    dataset = gigaspeech(root=str(root), prepared=str(tmp_path / "prepared"))
    with pytest.raises(
        ValueError,
        match=r"^1 audio files of the subsets xs, dev, test are missing below .*release \(audio/podcast/P0001/POD0000000002\.opus\): check dataset\.root and dataset\.subset, or download it with",
    ):
        dataset.load()
    assert prepared(tmp_path / "prepared") == []
    shutil.rmtree(root / "audio")
    audios = [{**AUDIO, "aid": str(number), "path": f"audio/{number}.opus"} for number in range(5)]
    (root / "GigaSpeech.json").write_text(json.dumps({"audios": audios}))
    release = Release(root, ("xs",))
    list(release.cuts())
    with pytest.raises(
        ValueError, match=r"^5 audio files .*\(audio/0\.opus, audio/1\.opus, audio/2\.opus and 2 more\)"
    ):
        release.refuse_missing()


def test_a_subset_without_a_segment_is_refused_and_nothing_is_prepared(
    small_release: Path, tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]
) -> None:
    root = tmp_path / "release"
    shutil.copytree(small_release, root)
    path = root / "GigaSpeech.json"
    path.write_text(path.read_text().replace("{DEV}", "{XS}"))
    with pytest.raises(
        ValueError, match=r"GigaSpeech\.json has no segment of the subset dev: change dataset\.subset or dataset\.root"
    ):
        gigaspeech(root=str(root), prepared=str(tmp_path / "prepared")).load()
    assert prepared(tmp_path / "prepared") == []


def test_what_training_cannot_learn_is_kept_and_told(tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]) -> None:
    texts = ["HELLO", "<NOISE>", "ROOM 9", "<COMMA>", "HELLO", "A <UNK>"]
    audios = [
        {**AUDIO, "aid": f"A{number}", "segments": [{**SEGMENT, "sid": f"A{number}", "text_tn": text}]}
        for number, text in enumerate(texts)
    ]
    audios[4]["segments"][0]["end_time"] = AUDIO["duration"] + 0.1
    for tag in ("{DEV}", "{TEST}"):
        audios.append({**AUDIO, "aid": tag, "subsets": [tag], "segments": [{**SEGMENT, "subsets": [tag]}]})
    dataset = gigaspeech(root=str(release_of(tmp_path, *audios)), prepared=str(tmp_path / "prepared"))
    loaded = dataset.load()
    assert loaded.tables["train"].refusal_U.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.utterances_per_epoch(loaded) == 1
