"""An incomplete release is refused in one sentence that names the fault, its place and the remedy; nothing is prepared."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speech_exp.data.gigaspeech import json_guard
from speech_exp.data.gigaspeech.data_set import GigaSpeech
from speech_exp.data.gigaspeech.release import Release

SEGMENT = {
    "sid": "A_S0", "speaker": "N/A", "begin_time": 0.5, "end_time": 2.0, "text_tn": "HI", "subsets": ["{XS}", "{S}"],
}  # fmt: skip
AUDIO = {
    "aid": "A", "path": "audio/A.opus", "md5": "0", "duration": 2.0, "sample_rate": 16000, "channels": 1,
    "subsets": ["{XS}", "{S}"], "segments": [SEGMENT],
}  # fmt: skip


def release_of(root: Path, *audios: dict[str, Any]) -> Path:
    """Write a release whose audio files are empty."""
    (root / "audio").mkdir(exist_ok=True)
    for audio in audios:
        if isinstance(audio.get("path"), str):
            (root / audio["path"]).touch()
    (root / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": audios}))
    return root


def other_audio(**changes: Any) -> dict[str, Any]:
    return {**AUDIO, "aid": "B", "path": "audio/B.opus", "segments": [{**SEGMENT, "sid": "B_S0"}], **changes}


def test_a_valid_release_yields_its_cuts(tmp_path: Path) -> None:
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
    release = Release(release_of(tmp_path, other_audio(), audio), ("xs",))
    with pytest.raises(
        ValueError, match=rf"GigaSpeech\.json: audio number 1 has no field {key}: replace the file, or download"
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
        ({"duration": "long"}, "field duration of audio number 0 is 'long', expected a number"),
        ({"segments": None}, "field segments of audio number 0 is None, expected list"),
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
    assert "GIGASPEECH_PASSWORD" in str(caught.value)


WRONG = {
    "absolute path": ({"path": "/etc/passwd"}, "field path of audio A is '/etc/passwd', expected a file inside"),
    "path outside": ({"path": "audio/../../x.opus"}, "expected a file inside"),
    "path of a control character": ({"path": "audio/a\n.opus"}, "expected a file inside"),
    "path of Windows": ({"path": "..\\..\\x.opus"}, "expected a file inside"),
    "long path": ({"path": "a/" * 1000}, "expected a file inside"),
    "no path": ({"path": ""}, "expected a file inside"),
    "id of a folder": ({"aid": "../A"}, r"the aid of audio number 0 is '\.\./A', expected a name of at most 128"),
    "id of an escape": ({"aid": "A\x1b[2J"}, "the aid of audio number 0 is"),
    "no id": ({"aid": ""}, "the aid of audio number 0 is ''"),
    "long id": ({"aid": "A" * 129}, "the aid of audio number 0 is"),
    "sid of a folder": ({"segments": [{**SEGMENT, "sid": "a/b"}]}, "the sid of segment number 0 of audio A is 'a/b'"),
    "sid of a null": ({"segments": [{**SEGMENT, "sid": "a\0b"}]}, "the sid of segment number 0 of audio A is"),
    "sid twice": ({"segments": [SEGMENT, SEGMENT]}, "segment A_S0 of audio A repeats the sid of an earlier segment"),
    "no rate": ({"sample_rate": 0}, "field sample_rate of audio A is 0, expected more than 0 and at most 1,000,000"),
    "negative rate": ({"sample_rate": -16000}, "field sample_rate of audio A is -16000"),
    "rate of a fraction": ({"sample_rate": 16000.5}, "field sample_rate of audio number 0 is 16000.5, expected int"),
    "rate of a truth": ({"sample_rate": True}, "field sample_rate of audio number 0 is True, expected int"),
    "no channels": ({"channels": 0}, "field channels of audio A is 0"),
    "many channels": ({"channels": 10**9}, "field channels of audio A is 1000000000"),
    "no duration": ({"duration": 0}, "field duration of audio A is 0, expected more than 0"),
    "negative duration": ({"duration": -2.0}, "field duration of audio A is -2.0"),
    "absurd duration": ({"duration": 1e300}, "field duration of audio A is 1e[+]300"),
    "end long after": ({"segments": [{**SEGMENT, "end_time": 1e9}]}, r"lasts from 0.5 to 1000000000.0 s in a recording of 2.0 s: correct"),
    "long segment": ({"duration": 9e3, "segments": [{**SEGMENT, "end_time": 601.0}]}, "segment A_S0 of audio A lasts 600.5 s, expected at most 600 s"),
    "begin behind the end": ({"segments": [{**SEGMENT, "begin_time": 1.5, "end_time": 1.0}]}, "lasts from 1.5 to 1.0 s"),
    "audio of two parts": ({"subsets": ["{XS}", "{DEV}"]}, "audio A belongs to DEV and training, expected only one of them"),
    "audio of two tests": ({"subsets": ["{DEV}", "{TEST}"]}, "audio A belongs to DEV and TEST, expected only one of them"),
    "segment of two parts": ({"segments": [{**SEGMENT, "subsets": ["{XS}", "{TEST}"]}]}, "segment A_S0 of audio A belongs to TEST and training"),
    "segment of another part": ({"segments": [{**SEGMENT, "subsets": ["{TEST}"]}]}, "segment A_S0 of audio A belongs to TEST, but its audio to training"),
    "subset of a list": ({"subsets": [["{XS}"]]}, r"audio A is in the unknown subset \['{XS}'\]"),
    "segment of a number": ({"segments": [7]}, "segment number 0 of audio A has no field sid"),
    "deep field": ({"duration": functools.reduce(lambda inner, _: [inner], range(40), 0)}, "field duration of audio number 0 is .*, expected a number"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_release_holds_is_reported_in_one_sentence_that_names_the_entry(tmp_path: Path, kind: str) -> None:
    change, message = WRONG[kind]
    (tmp_path / "GigaSpeech.json").write_text(json.dumps({"audios": [{**AUDIO, **change}]}))
    release = Release(tmp_path, ("xs",))
    with pytest.raises(ValueError, match=message) as caught:
        list(release.cuts())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("key", "value"), [("aid", "A"), ("path", "audio/A.opus"), ("path", "audio/./A.opus")])
def test_two_audios_share_no_id_and_no_file(tmp_path: Path, key: str, value: str) -> None:
    release = Release(release_of(tmp_path, AUDIO, other_audio(**{key: value})), ("xs",))
    with pytest.raises(ValueError, match=rf"audio . repeats the {key} .* of an earlier audio: replace the file"):
        list(release.cuts())


def test_segments_of_different_audios_share_no_id(tmp_path: Path) -> None:
    release = Release(release_of(tmp_path, AUDIO, other_audio(segments=[SEGMENT])), ("xs",))
    with pytest.raises(ValueError, match=r"segment A_S0 of audio B repeats the sid of an earlier segment"):
        list(release.cuts())


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_release_is_refused_and_one_inside_is_allowed(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "A.opus").touch()
    root = tmp_path / "release"
    root.mkdir()
    release_of(root, AUDIO)
    place = root / "audio" / "A.opus" if link == "file" else root / "audio"
    shutil.move(root / "audio", root / "kept")
    if link == "file":
        place.parent.mkdir()
    place.symlink_to(root / "kept" / ("A.opus" if link == "file" else ""))
    assert len(list(Release(root, ("xs",)).cuts())) == 1
    place.unlink()
    place.symlink_to(outside / ("A.opus" if link == "file" else ""))
    with pytest.raises(ValueError, match=rf"field path of audio A is 'audio/A.opus', expected a file inside {root}"):
        list(Release(root, ("xs",)).cuts())


@pytest.mark.parametrize("inside", [b'{"audios": [%s]}', b'{"x": %s}', b'{"audios": [{"aid": "\\"[", "x": %s}]}'])
@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_deep_json_is_reported_in_one_sentence(tmp_path: Path, inside: bytes, bracket: bytes) -> None:
    """ijson needs a gigabyte for 20,000 levels, so it must not be given such a file."""
    depth = 200_000
    end = b"]" if bracket == b"[" else b"}"
    (tmp_path / "GigaSpeech.json").write_bytes(inside % (bracket * depth + b"1" + end * depth))
    with pytest.raises(ValueError, match=r"GigaSpeech\.json is nested deeper than 64 levels: replace the file$"):
        list(Release(tmp_path, ("xs",)).cuts())


def test_brackets_in_texts_do_not_count_as_nesting(tmp_path: Path) -> None:
    text = '[{"' * 1000 + "\\"
    release = Release(
        release_of(
            tmp_path,
            *[
                other_audio(aid=str(n), path=f"audio/{n}", segments=[{**SEGMENT, "sid": str(n), "text_tn": text}])
                for n in range(50)
            ],
        ),
        ("xs",),
    )
    assert [cut.supervisions[0].text for cut, _, _ in release.cuts()] == [text] * 50


def test_an_entry_or_a_text_without_end_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "GigaSpeech.json"
    path.write_bytes(b'{"audios": [{"aid": "' + b"a" * 2**21 + b'"}]}')
    with pytest.raises(
        ValueError, match=r"GigaSpeech\.json contains a text of more than 1,048,576 bytes: replace the file$"
    ):
        list(Release(tmp_path, ("xs",)).cuts())
    monkeypatch.setattr(json_guard, "_MOST_ENTRY_BYTES", 2**20)
    path.write_text(json.dumps({"audios": [{**AUDIO, "segments": [SEGMENT] * 10_000}]}))
    with pytest.raises(
        ValueError, match=r"GigaSpeech\.json contains an entry of more than 1,048,576 bytes: replace the file$"
    ):
        list(Release(tmp_path, ("xs",)).cuts())


def test_a_segment_may_end_a_rounding_after_its_recording(tmp_path: Path) -> None:
    release = Release(release_of(tmp_path, {**AUDIO, "duration": 1.9995}), ("xs",))
    assert len(list(release.cuts())) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_not_whole_json(tmp_path: Path, share: float) -> None:
    release = Release(release_of(tmp_path, AUDIO, other_audio()), ("xs",))
    content = release.path.read_bytes()
    release.path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"GigaSpeech\.json is not complete JSON \(.*\): replace it, or download it"):
        list(release.cuts())


@pytest.mark.parametrize("content", ["{}", '{"audios": []}', "[]"])
def test_a_file_without_audios_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "GigaSpeech.json").write_text(content)
    with pytest.raises(ValueError, match=r"GigaSpeech\.json lists no audio \(field audios\)"):
        list(Release(tmp_path, ("xs",)).cuts())


def test_missing_metadata_and_unknown_subsets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"GigaSpeech\.json is missing: set dataset\.root to the folder that contains it"
    ):
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
        _ = dataset.corpus
    assert prepared(tmp_path / "prepared") == []
    shutil.rmtree(root / "audio")
    audios = [
        other_audio(aid=str(number), path=f"audio/{number}.opus", segments=[{**SEGMENT, "sid": f"{number}_S0"}])
        for number in range(5)
    ]
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
        _ = gigaspeech(root=str(root), prepared=str(tmp_path / "prepared")).corpus
    assert prepared(tmp_path / "prepared") == []


def test_what_training_cannot_learn_is_kept_and_reported(tmp_path: Path, gigaspeech: Callable[..., GigaSpeech]) -> None:
    texts = ["HELLO", "<NOISE>", "ROOM 9", "<COMMA>", "HELLO", "A <UNK>"]
    audios = [
        {
            **AUDIO,
            "aid": f"A{number}",
            "path": f"audio/A{number}.opus",
            "segments": [{**SEGMENT, "sid": f"A{number}", "text_tn": text}],
        }
        for number, text in enumerate(texts)
    ]
    audios[4]["segments"][0]["end_time"] = AUDIO["duration"] + 0.1
    for tag in ("{DEV}", "{TEST}"):
        segment = {**SEGMENT, "sid": f"{tag}_S0", "subsets": [tag]}
        audios.append({**AUDIO, "aid": tag, "path": f"audio/{tag}.opus", "subsets": [tag], "segments": [segment]})
    dataset = gigaspeech(root=str(release_of(tmp_path, *audios)), prepared=str(tmp_path / "prepared"))
    loaded = dataset.corpus
    assert loaded.tables["train"].refusal_U.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.utterances_per_epoch == 1
